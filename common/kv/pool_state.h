// What a BlockPool and its reservations share: the books of every block, behind one lock. Internal
// to block_pool; nobody else includes this.
//
// Thread-safety: whoever calls a method holds `mutex`, but for Settle, which takes it.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/status.h"
#include "common/kv/block_index.h"
#include "common/kv/block_pool.h"
#include "common/kv/event_log.h"
#include "common/kv/eviction.h"

namespace trivium::kv {

struct BlockRecord {
  uint32_t generation = 0;
  int32_t owners = 0;   // reservations
  int32_t holders = 0;  // reservations, and those that have gone but whose leases have not
};

// A leased block that is to be scrubbed.
struct Leaving {
  BlockId block;
  std::optional<BlockKey> key = {};  // if it was published, and is to be saved
  std::vector<int32_t> tokens = {};
};

// What is asked of the pool.
struct Want {
  int64_t count = 0;
  int32_t spare = 0;  // more that must be left then
  std::optional<DomainTag> asker = {};
  bool may_take_kept = false;
  size_t owned = 0;  // used blocks that the asker has already
};

// Blocks on their way to an owner.
struct Taken {
  std::vector<BlockId> blocks;
  std::vector<Leaving> evicted;  // of these; leased, to be settled outside the lock
};

struct PoolState {
  PoolState(int32_t blocks, BlockScrubber scrub, const Clock& time, BlockSaver save);

  BlockRecord& Record(BlockId block) { return records[static_cast<size_t>(block.value)]; }
  int32_t free() const { return static_cast<int32_t>(empty.size()) + eviction.cached(); }

  // The leading blocks of the chain that are published.
  std::vector<BlockId> Find(const BlockChain& chain, int32_t most) const;
  // A reservation comes to own a published block, or goes without having used it.
  void Share(BlockId block);
  void Unshare(BlockId block);
  // A reservation comes to own a block that was just taken.
  void Hold(BlockId block);
  // A reservation goes: as owner, and when its leases have gone too, as holder. True: nobody is
  // left and nobody can find the block, so it is to be settled.
  void DropOwner(BlockId block);
  bool DropHolder(BlockId block);

  // What it evicted is to be settled whether it succeeds or not.
  absl::Status Take(const Want& want, Taken& taken);
  // False when it is not to be. `evicted` is to be settled.
  bool Publish(ReservationState& reservation, BlockId block, const BlockChain& chain, int32_t index,
               std::vector<Leaving>& evicted);
  // Saves and scrubs leased blocks, which end as used ones, or as empty ones.
  void Settle(const std::vector<Leaving>& blocks, bool as_used);

  const int32_t total;
  const BlockScrubber scrubber;
  const BlockSaver saver;
  const Clock& clock;
  mutable std::mutex mutex;
  std::vector<BlockId>
      empty;  // the last one is given out first: its bytes are the likeliest in cache
  std::vector<BlockRecord> records;
  int32_t used = 0;
  int32_t leased = 0;
  BlockIndex index;
  Eviction eviction;
  EventLog events;

 private:
  Leaving Evict(BlockId block);
  // Cached blocks that floors and pins keep from the asker.
  int32_t KeptFrom(const Want& want) const {
    return eviction.cached() - eviction.reachable(want.asker);
  }
  // Nothing that others use or lease would help.
  bool IsHopeless(const Want& want, const Taken& taken) const;
  absl::Status Shortage(const Want& want, const Taken& taken) const;
};

// Shared by a reservation and its leases. Whoever is the last to hold a block returns it.
struct ReservationState {
  ReservationState(std::shared_ptr<PoolState> owner, std::vector<BlockId> held,
                   std::optional<DomainTag> domain, int32_t hits);
  ~ReservationState();
  ReservationState(const ReservationState&) = delete;
  ReservationState& operator=(const ReservationState&) = delete;

  const std::shared_ptr<PoolState> pool;
  // Leases read this only after the reservation has let go of it.
  std::vector<BlockId> blocks;  // its own, and published ones that stand for these
  const std::optional<DomainTag> asker;
  int32_t published;  // leading blocks of the chain
};

}  // namespace trivium::kv
