#include "common/transfer/address.h"

#include <cstring>

#include "common/transfer/wire.h"

namespace trivium::transfer {
namespace {

constexpr char kMagic[4] = {'T', 'X', 'A', '1'};
constexpr size_t kPrefixBytes = 4 + 1 + 8;  // magic, kind, transport id
constexpr size_t kChecksumBytes = 8;

void PutU64(std::string* out, uint64_t value) {
  for (int i = 0; i < 8; ++i) out->push_back(static_cast<char>(value >> (8 * i)));
}

uint64_t GetU64(const char* from) {
  uint64_t value = 0;
  for (int i = 0; i < 8; ++i) value |= uint64_t{static_cast<uint8_t>(from[i])} << (8 * i);
  return value;
}

uint64_t Digest(const char* data, size_t size) {
  Checksum checksum;
  checksum.Update({reinterpret_cast<const uint8_t*>(data), size});
  return checksum.Digest();
}

}  // namespace

std::string EncodeAddress(const TransportAddress& address) {
  std::string out(kMagic, sizeof(kMagic));
  out.push_back(static_cast<char>(address.kind));
  PutU64(&out, address.transport_id);
  out += address.link;
  PutU64(&out, Digest(out.data(), out.size()));
  return out;
}

absl::StatusOr<TransportAddress> DecodeAddress(const std::string& bytes, LinkKind kind) {
  if (bytes.size() <= kPrefixBytes + kChecksumBytes || bytes.size() > kMaxAddressBytes) {
    return InvalidArgument("transfer address: {} bytes can't be one", bytes.size());
  }
  if (std::memcmp(bytes.data(), kMagic, sizeof(kMagic)) != 0) {
    return InvalidArgument("transfer address: not one of ours");
  }
  const size_t covered = bytes.size() - kChecksumBytes;
  if (Digest(bytes.data(), covered) != GetU64(bytes.data() + covered)) {
    return InvalidArgument("transfer address: damaged (its checksum does not match)");
  }
  if (bytes[sizeof(kMagic)] != static_cast<char>(kind)) {
    return InvalidArgument("transfer address: of another kind of transport");
  }
  TransportAddress address;
  address.kind = kind;
  address.transport_id = GetU64(bytes.data() + sizeof(kMagic) + 1);
  address.link = bytes.substr(kPrefixBytes, covered - kPrefixBytes);
  return address;
}

}  // namespace trivium::transfer
