// KV blocks in memory, packed (plane_codec.h), behind those that can be computed with. What has no
// room left any more goes to `overflow`: to a disk, where there is one.
//
// Packed blocks lie in pages of one arena, which is backed at the start and kept out of core dumps.
//
// Bounds: the arena has as many bytes as given; about 500 bytes a block besides.
// Thread-safety: all methods, any thread; `overflow` is called on the thread that puts.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "common/base/status.h"
#include "common/kv/event_log.h"
#include "common/kv/tiers/block_tier.h"

namespace trivium::kv {

struct MemoryTierOptions {
  int64_t bytes_max = 0;
  int64_t block_bytes = 0;  // KV of one block
  std::function<void(const BlockContent&, std::span<const uint8_t> kv)> overflow = nullptr;
  EventLog* events = nullptr;  // outlives the tier; null: nobody watches
};

class MemoryTier final : public BlockTier {
 public:
  // INVALID_ARGUMENT for sizes that hold no block, RESOURCE_EXHAUSTED when memory can't be had.
  static absl::StatusOr<std::unique_ptr<MemoryTier>> Create(MemoryTierOptions options);
  ~MemoryTier() override;
  MemoryTier(const MemoryTier&) = delete;
  MemoryTier& operator=(const MemoryTier&) = delete;

  bool Contains(const BlockKey& key) const override;
  bool Put(const BlockContent& block, std::span<const uint8_t> kv) override;
  bool Get(const BlockContent& block, std::span<uint8_t> kv) override;
  TierCounts counts() const override;

 private:
  struct KeyHash {
    size_t operator()(const BlockKey& key) const { return static_cast<size_t>(Cut(key).high); }
  };
  struct Entry {
    std::vector<int32_t> tokens;
    std::vector<int32_t> pages;  // of the arena; the first names the entry in events
    size_t bytes = 0;
    std::list<BlockKey>::iterator rank;  // in order_
  };
  struct Fallen {
    BlockKey key;
    std::vector<int32_t> tokens;
    std::vector<uint8_t> packed;
  };
  using Entries = std::unordered_map<BlockKey, Entry, KeyHash>;

  MemoryTier(MemoryTierOptions options, uint8_t* arena, int32_t pages);
  // These four under the lock.
  void Use(Entry& entry);
  std::vector<uint8_t> PackedOf(const Entry& entry) const;
  Fallen Forget(Entries::iterator entry);
  void Add(const BlockContent& block, std::span<const uint8_t> packed);

  const MemoryTierOptions options_;
  uint8_t* const arena_;
  const int32_t pages_;
  mutable std::mutex mutex_;
  std::vector<int32_t> free_pages_;
  Entries entries_;
  std::list<BlockKey> order_;  // the next to go first
  TierCounts counts_;
};

}  // namespace trivium::kv
