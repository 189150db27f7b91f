#include "common/kv/tiers/memory_tier.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "common/kv/tiers/plane_codec.h"

namespace trivium::kv {
namespace {

constexpr int64_t kPageBytes = 4096;

size_t PagesFor(size_t bytes) { return (bytes + kPageBytes - 1) / static_cast<size_t>(kPageBytes); }

}  // namespace

absl::StatusOr<std::unique_ptr<MemoryTier>> MemoryTier::Create(MemoryTierOptions options) {
  const int64_t pages = options.bytes_max / kPageBytes;
  if (options.block_bytes < 2 || options.block_bytes % 2 != 0 || pages > INT32_MAX ||
      options.bytes_max < options.block_bytes) {
    return InvalidArgument("a memory tier of {} bytes for blocks of {}", options.bytes_max,
                           options.block_bytes);
  }
  const auto bytes = static_cast<size_t>(pages * kPageBytes);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || madvise(memory, bytes, MADV_DONTDUMP) != 0) {
    return ResourceExhausted("{} bytes of memory tier: {}", bytes, std::strerror(errno));
  }
  std::unique_ptr<MemoryTier> tier(new MemoryTier(std::move(options), static_cast<uint8_t*>(memory),
                                                  static_cast<int32_t>(pages)));
#ifdef MADV_POPULATE_WRITE
  if (madvise(memory, bytes, MADV_POPULATE_WRITE) != 0 && errno == ENOMEM) {
    return ResourceExhausted("{} bytes of memory tier: {}", bytes, std::strerror(errno));
  }
#endif
  return tier;
}

MemoryTier::MemoryTier(MemoryTierOptions options, uint8_t* arena, int32_t pages)
    : options_(std::move(options)), arena_(arena), pages_(pages) {
  free_pages_.reserve(static_cast<size_t>(pages));
  for (int32_t page = pages - 1; page >= 0; --page) free_pages_.push_back(page);
}

MemoryTier::~MemoryTier() {
  munmap(arena_, static_cast<size_t>(pages_) * static_cast<size_t>(kPageBytes));
}

bool MemoryTier::Contains(const BlockKey& key) const {
  std::lock_guard lock(mutex_);
  return entries_.contains(key);
}

void MemoryTier::Use(Entry& entry) { order_.splice(order_.end(), order_, entry.rank); }

std::vector<uint8_t> MemoryTier::PackedOf(const Entry& entry) const {
  std::vector<uint8_t> packed(entry.bytes);
  size_t at = 0;
  for (const int32_t page : entry.pages) {
    const size_t bytes = std::min(packed.size() - at, static_cast<size_t>(kPageBytes));
    std::memcpy(packed.data() + at, arena_ + page * kPageBytes, bytes);
    at += bytes;
  }
  return packed;
}

MemoryTier::Fallen MemoryTier::Forget(Entries::iterator found) {
  Entry& entry = found->second;
  Fallen fallen{found->first, std::move(entry.tokens), PackedOf(entry)};
  if (options_.events != nullptr) {
    options_.events->Removed(BlockId{entry.pages.front()}, Tier::kMemory);
  }
  counts_.bytes -= static_cast<int64_t>(entry.pages.size()) * kPageBytes;
  free_pages_.insert(free_pages_.end(), entry.pages.begin(), entry.pages.end());
  order_.erase(entry.rank);
  entries_.erase(found);
  return fallen;
}

void MemoryTier::Add(const BlockContent& block, std::span<const uint8_t> packed) {
  Entry entry{.tokens = {block.tokens.begin(), block.tokens.end()},
              .pages = {},
              .bytes = packed.size(),
              .rank = order_.insert(order_.end(), block.key)};
  while (!packed.empty()) {
    const int32_t page = free_pages_.back();
    free_pages_.pop_back();
    entry.pages.push_back(page);
    const size_t bytes = std::min(packed.size(), static_cast<size_t>(kPageBytes));
    std::memcpy(arena_ + page * kPageBytes, packed.data(), bytes);
    packed = packed.subspan(bytes);
  }
  counts_.bytes += static_cast<int64_t>(entry.pages.size()) * kPageBytes;
  if (options_.events != nullptr) {
    options_.events->Stored(BlockId{entry.pages.front()}, Cut(block.key), Tier::kMemory);
  }
  entries_.emplace(block.key, std::move(entry));
}

bool MemoryTier::Put(const BlockContent& block, std::span<const uint8_t> kv) {
  TRIVIUM_CHECK(std::ssize(kv) == options_.block_bytes, "a block of {} bytes", kv.size());
  {
    std::lock_guard lock(mutex_);
    if (const auto found = entries_.find(block.key); found != entries_.end()) {
      Use(found->second);
      return true;
    }
  }
  const std::vector<uint8_t> packed = PackPlanes(kv);
  const size_t pages = PagesFor(packed.size());
  std::vector<Fallen> all_fallen;
  {
    std::lock_guard lock(mutex_);
    if (packed.empty() || pages > static_cast<size_t>(pages_)) {
      ++counts_.failed_writes;
      return false;
    }
    if (entries_.contains(block.key)) return true;  // another thread put it meanwhile
    while (free_pages_.size() < pages) {
      all_fallen.push_back(Forget(entries_.find(order_.front())));
    }
    Add(block, packed);
  }
  std::vector<uint8_t> unpacked(kv.size());
  for (const Fallen& fallen : all_fallen) {
    if (options_.overflow == nullptr || !UnpackPlanes(fallen.packed, unpacked)) continue;
    options_.overflow({fallen.key, fallen.tokens}, unpacked);
  }
  return true;
}

bool MemoryTier::Get(const BlockContent& block, std::span<uint8_t> kv) {
  TRIVIUM_CHECK(std::ssize(kv) == options_.block_bytes, "a block of {} bytes", kv.size());
  std::vector<uint8_t> packed;
  {
    std::lock_guard lock(mutex_);
    const auto found = entries_.find(block.key);
    if (found == entries_.end() || !std::ranges::equal(found->second.tokens, block.tokens)) {
      ++counts_.misses;
      return false;
    }
    Use(found->second);
    packed = PackedOf(found->second);
  }
  const bool unpacked = UnpackPlanes(packed, kv);
  std::lock_guard lock(mutex_);
  ++(unpacked ? counts_.hits : counts_.misses);
  if (unpacked) return true;
  ++counts_.broken;
  if (const auto found = entries_.find(block.key); found != entries_.end()) Forget(found);
  return false;
}

TierCounts MemoryTier::counts() const {
  std::lock_guard lock(mutex_);
  TierCounts counts = counts_;
  counts.capacity_bytes = pages_ * kPageBytes;
  counts.blocks = static_cast<int64_t>(entries_.size());
  return counts;
}

}  // namespace trivium::kv
