#include "common/kv/tiers/disk_tier.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace trivium::kv {
namespace {

// File: the shape (one page), then the slots. Header, sealed: key, sequence number.
constexpr int64_t kShapeBytes = 4096;
constexpr int64_t kHeaderPlain = 32 + 8;
constexpr int64_t kHeaderBytes = kHeaderPlain + static_cast<int64_t>(Sealer::kOverhead);
constexpr int64_t kSlotsMax = int64_t{1} << 24;

// `move`: pread or pwrite. False when not all of the bytes can be moved.
template <typename Move, typename Byte>
bool MoveAll(Move move, int file, std::span<Byte> bytes, int64_t offset) {
  while (!bytes.empty()) {
    const ssize_t moved = move(file, bytes.data(), bytes.size(), offset);
    if (moved < 0 && errno == EINTR) continue;
    if (moved <= 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(moved));
    offset += moved;
  }
  return true;
}

bool ReadAll(int file, std::span<uint8_t> bytes, int64_t offset) {
  return MoveAll(pread, file, bytes, offset);
}

bool WriteAll(int file, std::span<const uint8_t> bytes, int64_t offset) {
  return MoveAll(pwrite, file, bytes, offset);
}

std::span<const uint8_t> BytesOf(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

}  // namespace

absl::StatusOr<std::unique_ptr<DiskTier>> DiskTier::Open(DiskTierOptions options) {
  ASSIGN_OR_RETURN(const Sealer sealer, Sealer::Create(options.secret));
  std::fill(options.secret.begin(), options.secret.end(), '\0');
  if (options.block_bytes < 1 || options.block_bytes > (int64_t{1} << 30) ||
      options.block_tokens < 1 || options.block_tokens > 4096) {
    return InvalidArgument("blocks of {} bytes and {} tokens", options.block_bytes,
                           options.block_tokens);
  }
  const int file = open(options.path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) return Unavailable("{}: {}", options.path, std::strerror(errno));
  std::unique_ptr<DiskTier> tier(new DiskTier(std::move(options), sealer, file));
  RETURN_IF_ERROR(tier->Load());
  return tier;
}

DiskTier::DiskTier(DiskTierOptions options, Sealer sealer, int file)
    : options_(std::move(options)), sealer_(sealer), file_(file) {}

DiskTier::~DiskTier() { close(file_); }

int64_t DiskTier::BodyBytes() const {
  return options_.block_tokens * int64_t{sizeof(int32_t)} + options_.block_bytes;
}

int64_t DiskTier::SlotBytes() const {
  return kHeaderBytes + BodyBytes() + static_cast<int64_t>(Sealer::kOverhead);
}

int64_t DiskTier::OffsetOf(int64_t slot) const { return kShapeBytes + slot * SlotBytes(); }

std::string DiskTier::Shape() const {
  std::string shape = fmt::format("trivium kv 1: {} slots of {} tokens and {} bytes\n",
                                  slots_.size(), options_.block_tokens, options_.block_bytes);
  shape.resize(kShapeBytes, '\0');
  return shape;
}

std::string DiskTier::ContextOf(int64_t slot) { return fmt::format("slot {}", slot); }

std::string DiskTier::BodyContext(std::span<const uint8_t> sealed_header) {
  return "body of " + std::string(sealed_header.begin(), sealed_header.end());
}

absl::Status DiskTier::Load() {
  if (flock(file_, LOCK_EX | LOCK_NB) != 0) {
    return FailedPrecondition("{}: another process has it", options_.path);
  }
  const int64_t slots = (options_.bytes_max - kShapeBytes) / SlotBytes();
  if (slots < 1 || slots > kSlotsMax) {
    return InvalidArgument("{}: {} bytes hold no block of {}, or too many", options_.path,
                           options_.bytes_max, SlotBytes());
  }
  slots_.resize(static_cast<size_t>(slots));
  counts_.capacity_bytes = slots * SlotBytes();
  std::vector<uint8_t> found(kShapeBytes);
  const std::string shape = Shape();
  const bool is_ours = ReadAll(file_, found, 0) && std::ranges::equal(found, BytesOf(shape));
  if (!is_ours && (ftruncate(file_, 0) != 0 || ftruncate(file_, OffsetOf(slots)) != 0 ||
                   !WriteAll(file_, BytesOf(shape), 0))) {
    return Unavailable("{}: {}", options_.path, std::strerror(errno));
  }
  LoadHeaders(is_ours);
  return absl::OkStatus();
}

void DiskTier::LoadHeaders(bool any) {
  std::vector<std::pair<uint64_t, int64_t>> written;  // sequence, slot
  for (int64_t i = 0; i < std::ssize(slots_); ++i) {
    const std::optional<uint64_t> sequence = any ? LoadHeader(i) : std::nullopt;
    written.emplace_back(sequence.value_or(0), i);
    sequence_ = std::max(sequence_, written.back().first);
  }
  std::sort(written.begin(), written.end());
  for (const auto& [sequence, i] : written) {
    Slot& slot = slots_[static_cast<size_t>(i)];
    slot.rank = order_.insert(order_.end(), i);
    if (!std::exchange(slot.stored, false)) continue;
    // Of two with one key, the later write counts.
    if (const auto older = by_key_.find(slot.key); older != by_key_.end()) Forget(older->second);
    Remember(i, slot.key);
  }
}

std::optional<uint64_t> DiskTier::LoadHeader(int64_t at) {
  std::array<uint8_t, kHeaderBytes> sealed;
  std::array<uint8_t, kHeaderPlain> plain;
  if (!ReadAll(file_, sealed, OffsetOf(at))) {
    ++counts_.failed_reads;
    return std::nullopt;
  }
  if (std::ranges::count(sealed, uint8_t{0}) == kHeaderBytes) return std::nullopt;  // never written
  if (!sealer_.Open(ContextOf(at), sealed, plain)) {
    ++counts_.broken;
    return std::nullopt;
  }
  Slot& slot = slots_[static_cast<size_t>(at)];
  uint64_t sequence = 0;
  std::memcpy(slot.key.bytes.data(), plain.data(), slot.key.bytes.size());
  std::memcpy(&sequence, plain.data() + slot.key.bytes.size(), sizeof(sequence));
  slot.stored = true;
  return sequence;
}

bool DiskTier::Contains(const BlockKey& key) const {
  std::lock_guard lock(mutex_);
  return by_key_.contains(key);
}

void DiskTier::Remember(int64_t at, const BlockKey& key) {
  Slot& slot = slots_[static_cast<size_t>(at)];
  slot.key = key;
  slot.stored = true;
  by_key_.emplace(key, at);
  if (options_.events == nullptr) return;
  options_.events->Stored(BlockId{static_cast<int32_t>(at)}, Cut(key), Tier::kDisk);
}

void DiskTier::Forget(int64_t at) {
  Slot& slot = slots_[static_cast<size_t>(at)];
  if (!std::exchange(slot.stored, false)) return;
  by_key_.erase(slot.key);
  if (options_.events == nullptr) return;
  options_.events->Removed(BlockId{static_cast<int32_t>(at)}, Tier::kDisk);
}

int64_t DiskTier::TakeSlot() {
  for (const int64_t at : order_) {
    Slot& slot = slots_[static_cast<size_t>(at)];
    if (slot.users > 0) continue;
    Forget(at);
    ++slot.users;
    order_.splice(order_.end(), order_, slot.rank);
    return at;
  }
  return -1;
}

bool DiskTier::Put(const BlockContent& block, std::span<const uint8_t> kv) {
  TRIVIUM_CHECK(
      std::ssize(kv) == options_.block_bytes && std::ssize(block.tokens) == options_.block_tokens,
      "a block of {} bytes and {} tokens", kv.size(), block.tokens.size());
  int64_t at = -1;
  uint64_t sequence = 0;
  {
    std::lock_guard lock(mutex_);
    if (const auto found = by_key_.find(block.key); found != by_key_.end()) {
      order_.splice(order_.end(), order_, slots_[static_cast<size_t>(found->second)].rank);
      return true;
    }
    if (at = TakeSlot(); at < 0) return false;
    sequence = ++sequence_;
  }
  const std::vector<uint8_t> bytes = SealBlock(at, sequence, block, kv);
  const bool ok = !bytes.empty() && WriteAll(file_, bytes, OffsetOf(at));
  std::lock_guard lock(mutex_);
  Slot& slot = slots_[static_cast<size_t>(at)];
  --slot.users;
  if (!ok) {
    ++counts_.failed_writes;
  } else if (!by_key_.contains(block.key)) {  // or another thread wrote it meanwhile
    Remember(at, block.key);
  }
  return by_key_.contains(block.key);
}

bool DiskTier::Get(const BlockContent& block, std::span<uint8_t> kv) {
  TRIVIUM_CHECK(std::ssize(kv) == options_.block_bytes, "a block of {} bytes", kv.size());
  int64_t at = -1;
  {
    std::lock_guard lock(mutex_);
    const auto found = by_key_.find(block.key);
    if (found == by_key_.end()) {
      ++counts_.misses;
      return false;
    }
    at = found->second;
    Slot& slot = slots_[static_cast<size_t>(at)];
    ++slot.users;
    order_.splice(order_.end(), order_, slot.rank);
  }
  std::vector<uint8_t> bytes(static_cast<size_t>(SlotBytes()));
  const bool read = ReadAll(file_, bytes, OffsetOf(at));
  const bool opened = read && OpenBlock(at, bytes, block, kv);
  std::lock_guard lock(mutex_);
  --slots_[static_cast<size_t>(at)].users;
  if (opened) {
    ++counts_.hits;
    return true;
  }
  ++counts_.misses;
  ++(read ? counts_.broken : counts_.failed_reads);
  Forget(at);
  return false;
}

std::vector<uint8_t> DiskTier::SealBlock(int64_t at, uint64_t sequence, const BlockContent& block,
                                         std::span<const uint8_t> kv) const {
  std::array<uint8_t, kHeaderPlain> header;
  std::memcpy(header.data(), block.key.bytes.data(), block.key.bytes.size());
  std::memcpy(header.data() + block.key.bytes.size(), &sequence, sizeof(sequence));
  std::vector<uint8_t> body(static_cast<size_t>(BodyBytes()));
  std::memcpy(body.data(), block.tokens.data(), block.tokens.size_bytes());
  std::memcpy(body.data() + block.tokens.size_bytes(), kv.data(), kv.size());
  std::vector<uint8_t> bytes(static_cast<size_t>(SlotBytes()));
  const std::span<uint8_t> out(bytes);
  if (!sealer_.Seal(ContextOf(at), header, out.first(kHeaderBytes)) ||
      !sealer_.Seal(BodyContext(out.first(kHeaderBytes)), body, out.subspan(kHeaderBytes))) {
    bytes.clear();
  }
  return bytes;
}

bool DiskTier::OpenBlock(int64_t at, std::span<const uint8_t> bytes, const BlockContent& block,
                         std::span<uint8_t> kv) const {
  std::array<uint8_t, kHeaderPlain> header;
  std::vector<uint8_t> body(static_cast<size_t>(BodyBytes()));
  const std::span<const uint8_t> sealed_header = bytes.first(kHeaderBytes);
  if (!sealer_.Open(ContextOf(at), sealed_header, header) ||
      !sealer_.Open(BodyContext(sealed_header), bytes.subspan(kHeaderBytes), body) ||
      std::memcmp(header.data(), block.key.bytes.data(), block.key.bytes.size()) != 0 ||
      block.tokens.size() != static_cast<size_t>(options_.block_tokens) ||
      std::memcmp(body.data(), block.tokens.data(), block.tokens.size_bytes()) != 0) {
    return false;
  }
  std::memcpy(kv.data(), body.data() + block.tokens.size_bytes(), kv.size());
  return true;
}

TierCounts DiskTier::counts() const {
  std::lock_guard lock(mutex_);
  TierCounts counts = counts_;
  counts.blocks = static_cast<int64_t>(by_key_.size());
  counts.bytes = counts.blocks * SlotBytes();
  return counts;
}

}  // namespace trivium::kv
