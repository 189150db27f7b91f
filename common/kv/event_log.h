// What a pool and the tiers below it hold to be found, told to those who watch: numbered events in
// the order in which they happened, and a snapshot for a watcher that starts or has fallen behind.
// Keys only, never tokens.
//
// Each watcher keeps the number of the next event that it wants and reads when it likes; the log
// knows nothing of watchers, so any number may read. It remembers the last kEventsMax events;
// whoever asks for an older one gets a snapshot. In the pool a parent is stored before its children
// and removed after them, in events as in snapshots; tiers follow no order.
//
// Bounds: 52 bytes a block of the pool or a tier, and 32 an event. A snapshot is one pass over
// memory, during which the pool that wants to write waits; so is the clean-up that every so many
// removals pay for (in a pool of 1 M blocks: 50 and 25 ms on the busy machine where it was tried).
//
// Thread-safety: all methods, any thread.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

#include "common/base/ids.h"
#include "common/kv/block_key.h"

namespace trivium::kv {

// Where a block lies; numbered as in the stage protocol.
enum class Tier : uint8_t { kHot = 0, kMemory = 1, kDisk = 2 };
inline constexpr size_t kTiers = 3;

struct KvChange {
  bool stored = true;  // or removed
  CutKey key;
  Tier tier = Tier::kHot;
  friend bool operator==(const KvChange&, const KvChange&) = default;
};

class EventLog {
 public:
  static constexpr size_t kEventsMax = 65536;

  explicit EventLog(int32_t blocks);

  // For the pool, and for tiers, whose blocks are their own slots. A block is stored once until it
  // is removed.
  void Stored(BlockId block, const CutKey& key, Tier tier = Tier::kHot);
  void Removed(BlockId block, Tier tier = Tier::kHot);

  struct Reading {
    bool is_snapshot = false;  // `changes` are all that is stored; forget what was known before
    std::vector<KvChange> changes;
    uint64_t next = 1;  // what to ask for next time
  };
  // The events from number `next` (from 1) on, at most `most`; a snapshot, of any size, when that
  // is 0, no longer remembered, or was never reached (a number of another log).
  Reading Read(uint64_t next, size_t most = 4096) const;

 private:
  struct Slot {
    CutKey key;
    BlockId block{-1};  // < 0: removed since
    Tier tier = Tier::kHot;
  };
  uint32_t& SlotOf(BlockId block, Tier tier);
  void Append(const KvChange& change);
  void Compact();

  mutable std::mutex mutex_;
  uint64_t next_ = 1;
  std::deque<KvChange> recent_;  // those before next_
  std::vector<Slot> slots_;      // in order of storing; at most twice as many as are stored, or 64
  std::array<std::vector<uint32_t>, kTiers> slot_of_;  // by tier and block
  size_t stored_ = 0;
};

}  // namespace trivium::kv
