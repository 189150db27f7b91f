// KV blocks on disk, behind those in memory: one file of fixed slots, sealed, bounded, and found
// again after a restart.
//
// A slot is a sealed header (whose block it is: key and sequence number of the write) and a sealed
// body (token ids and KV), each with its own tag; the body's seal covers the header's, so that a
// write that was cut short opens as neither the old nor the new block. At the start only headers
// are read. When all slots are taken, the one goes that was used longest ago (after a restart:
// written).
//
// No byte that does not pass its seal ever leaves.
//
// Bounds: the file has as many bytes as given; about 150 bytes of memory a slot.
//
// Thread-safety: all methods, any thread; reads and writes of different blocks run side by side.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/base/status.h"
#include "common/kv/block_key.h"
#include "common/kv/event_log.h"
#include "common/kv/tiers/block_tier.h"
#include "common/kv/tiers/sealer.h"

namespace trivium::kv {

struct DiskTierOptions {
  std::string path;    // created, readable by its owner alone; a file of another shape is replaced
  std::string secret;  // at least 32 bytes
  int64_t bytes_max = 0;
  int64_t block_bytes = 0;  // KV of one block
  int32_t block_tokens = 16;
  EventLog* events = nullptr;  // outlives the tier; null: nobody watches
};

class DiskTier final : public BlockTier {
 public:
  // INVALID_ARGUMENT for sizes that hold no block or a weak secret, FAILED_PRECONDITION when
  // another process has the file, UNAVAILABLE when it cannot be opened or made as large.
  static absl::StatusOr<std::unique_ptr<DiskTier>> Open(DiskTierOptions options);
  ~DiskTier() override;
  DiskTier(const DiskTier&) = delete;
  DiskTier& operator=(const DiskTier&) = delete;

  bool Contains(const BlockKey& key) const override;
  bool Put(const BlockContent& block, std::span<const uint8_t> kv) override;
  bool Get(const BlockContent& block, std::span<uint8_t> kv) override;
  TierCounts counts() const override;

 private:
  struct Slot {
    BlockKey key;
    bool stored = false;
    int32_t users = 0;                  // reads and writes in progress
    std::list<int64_t>::iterator rank;  // in order_
  };
  struct KeyHash {
    size_t operator()(const BlockKey& key) const { return static_cast<size_t>(Cut(key).high); }
  };

  DiskTier(DiskTierOptions options, Sealer sealer, int file);
  // Finds what an earlier process left; an empty file where that has another shape.
  absl::Status Load();
  void LoadHeaders(bool any);
  // The sequence number of the write, if there is one.
  std::optional<uint64_t> LoadHeader(int64_t slot);
  std::string Shape() const;
  // Where a seal belongs, so that one that was moved does not open.
  static std::string ContextOf(int64_t slot);
  static std::string BodyContext(std::span<const uint8_t> sealed_header);
  int64_t BodyBytes() const;
  int64_t SlotBytes() const;
  int64_t OffsetOf(int64_t slot) const;
  // A slot to write to, marked as in use; -1 when all are.
  int64_t TakeSlot();
  // A slot holds a block from now on, or no longer.
  void Remember(int64_t slot, const BlockKey& key);
  void Forget(int64_t slot);
  std::vector<uint8_t> SealBlock(int64_t slot, uint64_t sequence, const BlockContent& block,
                                 std::span<const uint8_t> kv) const;
  // Whether the bytes of a slot are this block's; if so, copies its KV.
  bool OpenBlock(int64_t slot, std::span<const uint8_t> bytes, const BlockContent& block,
                 std::span<uint8_t> kv) const;

  const DiskTierOptions options_;
  const Sealer sealer_;
  const int file_;
  mutable std::mutex mutex_;
  std::vector<Slot> slots_;
  std::list<int64_t> order_;  // all slots, the next to be written first
  std::unordered_map<BlockKey, int64_t, KeyHash> by_key_;
  uint64_t sequence_ = 0;
  TierCounts counts_;
};

}  // namespace trivium::kv
