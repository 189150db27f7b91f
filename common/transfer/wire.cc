#include "common/transfer/wire.h"

#include <xxhash.h>
// The dispatching header must follow: it redirects the names of the first to the widest vectors
// here.
#include <xxh_x86dispatch.h>

#include <cstring>

namespace trivium::transfer {
namespace {

// Offsets of docs/transfer.md. All numbers are little-endian.
enum Offset : size_t {
  kMagicAt = 0,
  kVersionAt = 4,
  kTypeAt = 6,
  kFlagsAt = 7,
  kSourceAt = 8,
  kEpochAt = 16,
  kLandingAt = 24,
  kSenderAt = 32,
  kRequestAt = 40,
  kSecretAt = 48,
  kGenerationAt = 64,
  kSequenceAt = 72,
  kAttemptAt = 80,
  kLayersAt = 84,
  kTokensAt = 92,
  kPayloadAt = 100,
  kFormatAt = 104,
  kRefusalAt = 105,
  kReservedAt = 106,
  kChecksumAt = 112,
};
static_assert(kChecksumAt + 8 == kHeaderBytes);

constexpr uint8_t kFlagKvComplete = 1;

template <typename T>
void Put(HeaderBytes& bytes, size_t at, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) {
    bytes[at + i] = static_cast<uint8_t>(static_cast<uint64_t>(value) >> (8 * i));
  }
}

template <typename T>
T Get(std::span<const uint8_t> bytes, size_t at) {
  uint64_t value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value |= uint64_t{bytes[at + i]} << (8 * i);
  return static_cast<T>(value);
}

HeaderBytes HeaderPrefix(const MessageHeader& header) {
  HeaderBytes bytes{};
  Put(bytes, kMagicAt, kWireMagic);
  Put(bytes, kVersionAt, kWireVersion);
  Put(bytes, kTypeAt, static_cast<uint8_t>(header.type));
  Put(bytes, kFlagsAt, static_cast<uint8_t>(header.kv_complete ? kFlagKvComplete : 0));
  Put(bytes, kSourceAt, header.source);
  Put(bytes, kEpochAt, header.epoch);
  Put(bytes, kLandingAt, header.landing_id);
  Put(bytes, kSenderAt, header.sender_id);
  Put(bytes, kRequestAt, header.request_hash);
  std::memcpy(bytes.data() + kSecretAt, header.secret.data(), header.secret.size());
  Put(bytes, kGenerationAt, header.generation);
  Put(bytes, kSequenceAt, header.sequence);
  Put(bytes, kAttemptAt, header.attempt);
  Put(bytes, kLayersAt, header.rows.layer_begin);
  Put(bytes, kLayersAt + 4, header.rows.layer_end);
  Put(bytes, kTokensAt, header.rows.token_begin);
  Put(bytes, kTokensAt + 4, header.rows.token_end);
  Put(bytes, kPayloadAt, header.payload_bytes);
  Put(bytes, kFormatAt, static_cast<uint8_t>(header.wire_format));
  Put(bytes, kRefusalAt, static_cast<uint8_t>(header.refusal));
  return bytes;
}

// The part of the header that its checksum covers.
std::span<const uint8_t> Covered(std::span<const uint8_t> header_bytes) {
  return header_bytes.first(kHeaderBytes - 8);
}

bool TypeIsKnown(uint8_t type) {
  return type >= static_cast<uint8_t>(MessageType::kBegin) &&
         type <= static_cast<uint8_t>(MessageType::kPong);
}

}  // namespace

const char* RefusalName(Refusal refusal) {
  switch (refusal) {
    case Refusal::kMalformed:
      return "malformed";
    case Refusal::kUnknownLanding:
      return "unknown_landing";
    case Refusal::kWrongSecret:
      return "wrong_secret";
    case Refusal::kOldAttempt:
      return "old_attempt";
    case Refusal::kOldEpoch:
      return "old_epoch";
    case Refusal::kOldGeneration:
      return "old_generation";
    case Refusal::kOutOfRange:
      return "out_of_range";
    case Refusal::kReplay:
      return "replay";
    case Refusal::kChecksum:
      return "checksum";
    case Refusal::kOverLimit:
      return "over_limit";
    case Refusal::kUnknownPeer:
      return "unknown_peer";
    case Refusal::kCount:
      break;
  }
  return "none";
}

HeaderBytes EncodeHeader(const MessageHeader& header, std::span<const uint8_t> payload) {
  HeaderBytes bytes = HeaderPrefix(header);
  Checksum checksum;
  checksum.Update(Covered(bytes));
  if (header.type != MessageType::kRows) checksum.Update(payload);
  Put(bytes, kChecksumAt, checksum.Digest());
  return bytes;
}

SealBytes MakeSeal(uint64_t digest) {
  SealBytes seal;
  for (size_t i = 0; i < kSealBytes; ++i) seal[i] = static_cast<uint8_t>(digest >> (8 * i));
  return seal;
}

std::optional<DecodedHeader> DecodeHeader(std::span<const uint8_t> bytes) {
  if (bytes.size() != kHeaderBytes) return std::nullopt;
  if (Get<uint32_t>(bytes, kMagicAt) != kWireMagic) return std::nullopt;
  if (Get<uint16_t>(bytes, kVersionAt) != kWireVersion) return std::nullopt;
  if (!TypeIsKnown(bytes[kTypeAt]) || (bytes[kFlagsAt] & ~kFlagKvComplete) != 0)
    return std::nullopt;
  if (!IsWireFormat(bytes[kFormatAt])) return std::nullopt;
  if (bytes[kRefusalAt] > static_cast<uint8_t>(Refusal::kCount)) return std::nullopt;
  for (size_t at = kReservedAt; at < kChecksumAt; ++at) {
    if (bytes[at] != 0) return std::nullopt;
  }
  DecodedHeader decoded;
  MessageHeader& header = decoded.header;
  header.type = static_cast<MessageType>(bytes[kTypeAt]);
  header.wire_format = static_cast<WireFormat>(bytes[kFormatAt]);
  header.kv_complete = (bytes[kFlagsAt] & kFlagKvComplete) != 0;
  header.source = Get<uint64_t>(bytes, kSourceAt);
  header.epoch = Get<uint64_t>(bytes, kEpochAt);
  header.landing_id = Get<uint64_t>(bytes, kLandingAt);
  header.sender_id = Get<uint64_t>(bytes, kSenderAt);
  header.request_hash = Get<uint64_t>(bytes, kRequestAt);
  std::memcpy(header.secret.data(), bytes.data() + kSecretAt, header.secret.size());
  header.generation = Get<uint64_t>(bytes, kGenerationAt);
  header.sequence = Get<uint64_t>(bytes, kSequenceAt);
  header.attempt = Get<uint32_t>(bytes, kAttemptAt);
  header.rows.layer_begin = Get<int32_t>(bytes, kLayersAt);
  header.rows.layer_end = Get<int32_t>(bytes, kLayersAt + 4);
  header.rows.token_begin = Get<int32_t>(bytes, kTokensAt);
  header.rows.token_end = Get<int32_t>(bytes, kTokensAt + 4);
  header.payload_bytes = Get<uint32_t>(bytes, kPayloadAt);
  header.refusal = static_cast<Refusal>(bytes[kRefusalAt]);
  decoded.checksum = Get<uint64_t>(bytes, kChecksumAt);
  return decoded;
}

bool ChecksumMatches(std::span<const uint8_t> header_bytes, std::span<const uint8_t> payload) {
  if (header_bytes.size() != kHeaderBytes) return false;
  Checksum checksum;
  checksum.Update(Covered(header_bytes));
  if (header_bytes[kTypeAt] != static_cast<uint8_t>(MessageType::kRows)) checksum.Update(payload);
  return checksum.Digest() == Get<uint64_t>(header_bytes, kChecksumAt);
}

size_t MaxPayload(MessageType type) {
  switch (type) {
    case MessageType::kBegin:
      return kMaxAddressBytes;
    case MessageType::kRows:
      return kMaxPayloadBytes;
    case MessageType::kFinish:
      return kMaxTailBytes;
    default:
      return 0;
  }
}

uint64_t HashRequest(const RequestId& request) {
  return XXH3_64bits(request.value.data(), request.value.size());
}

bool SecretsEqual(const Secret& a, const Secret& b) {
  uint8_t difference = 0;
  for (size_t i = 0; i < a.size(); ++i)
    difference = static_cast<uint8_t>(difference | (a[i] ^ b[i]));
  return difference == 0;
}

Checksum::Checksum() : state_(XXH3_createState()) {
  TRIVIUM_CHECK(state_ != nullptr, "no memory for a checksum");
  XXH3_64bits_reset(static_cast<XXH3_state_t*>(state_));
}
Checksum::~Checksum() { XXH3_freeState(static_cast<XXH3_state_t*>(state_)); }
void Checksum::Update(std::span<const uint8_t> bytes) {
  XXH3_64bits_update(static_cast<XXH3_state_t*>(state_), bytes.data(), bytes.size());
}
uint64_t Checksum::Digest() const { return XXH3_64bits_digest(static_cast<XXH3_state_t*>(state_)); }

}  // namespace trivium::transfer
