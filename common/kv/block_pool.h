// Who owns which KV block, and which blocks hold KV that another sequence may use. Accounting only;
// the bytes lie in KvStorage.
//
// A block is free, used (owned by Reservations: one, or several that share it) or leased (its last
// owner has gone, but transfers in flight may still touch it, or it is being scrubbed). Invariant
// at every moment: free + used + leased = total; a shared block counts once. A free block is empty,
// or cached: full of KV that somebody published, kept until its room is needed. A reservation gets
// all the blocks that it asks for, or none; it may grow if blocks are free then.
//
// Published blocks are found by their keys (BlockChain), compared with their tokens, and shared by
// reference. Nobody may write them. Who owns a published block owns all before it in its chain, so
// that no cached block has a child in use; of cached ones, children go before their parents. Among
// the rest the order is by age and cost to recompute (eviction.h). A domain never holds more
// published blocks than its quota, others never make it hold fewer than its floor, and a pinned
// block is not evicted while its pin lasts; but for a sequence that has begun, and could never get
// a block otherwise.
//
// Every block carries a generation, raised each time an empty block is given out, so that a late
// message for a former owner can be told apart. The first owner of a block sees 1.
//
// The scrubber runs once, on the thread that lets a block go last or that evicts it, outside the
// pool's lock, while the block counts as leased: no byte of one owner is ever there when Reserve
// hands the block to the next, but those of published blocks to whoever has their keys.
//
// Bounds: about 400 bytes a block. Reserve and Publish take O(log blocks) for each block that they
// share, publish or evict, whatever else the pool holds.
//
// Thread-safety: all methods, any thread. A Reservation belongs to one owner at a time; its
// destructor returns the blocks.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/status.h"
#include "common/kv/block_key.h"
#include "common/kv/event_log.h"

namespace trivium::kv {

class BlockPool;
struct PoolState;
struct ReservationState;

// Keeps blocks out of the free list while a transfer may read or write them, after their owner has
// gone. Shared by every message in flight; the last copy to go ends the lease.
using BlockLease = std::shared_ptr<const void>;

// Overwrites the bytes of a block that nobody owns any more. Called from any thread, for different
// blocks at the same time; must not call back into the pool.
using BlockScrubber = std::function<void(BlockId)>;

// Takes the KV of a published block that is evicted somewhere else, before it is scrubbed. Called
// where a scrubber is, under the same rules.
using BlockSaver = std::function<void(BlockId, const BlockContent&)>;

// The blocks of one sequence, in order. Move-only.
class Reservation {
 public:
  Reservation() = default;
  Reservation(Reservation&&) noexcept;
  Reservation& operator=(Reservation&&) noexcept;
  ~Reservation();

  std::span<const BlockId> blocks() const { return blocks_; }
  // The same as plain indices, as kernels want them.
  std::span<const int32_t> block_table() const { return table_; }
  // How many of the leading blocks held the KV of the prompt already when they were reserved. Never
  // to be written.
  int32_t cached_blocks() const { return cached_blocks_; }
  bool empty() const { return blocks_.empty(); }

  // Adds `blocks` free blocks of its own behind those that it has, or none: RESOURCE_EXHAUSTED as
  // in BlockPool::Reserve, FAILED_PRECONDITION for an empty reservation, INVALID_ARGUMENT for
  // blocks < 1. Who grows has begun: may_take_kept. Ends the spans given out before.
  absl::Status Extend(int32_t blocks);

  // Blocks stay out of the free list until all reservations that own them and every copy of a lease
  // are gone; those that Extend adds later too. Null for an empty reservation.
  BlockLease Lease() const;

 private:
  friend class BlockPool;
  void Release();

  std::vector<BlockId> blocks_;
  std::vector<int32_t> table_;
  int32_t cached_blocks_ = 0;
  std::shared_ptr<ReservationState> state_;
};

// Sequences that begin with the same tokens: each member's blocks are the `shared` ones, which all
// of them may read and none may write once there are two, and then `own` ones.
struct GroupNeed {
  int32_t shared = 0, own = 0, members = 1;
  int32_t spare = 0;  // blocks that can still be had afterwards, or nothing is given
  int64_t Blocks() const { return shared + int64_t{own} * members; }
};

// What a reservation may find in the pool instead of empty blocks, and what it may evict.
struct PrefixUse {
  const BlockChain* chain = nullptr;  // of the prompt; read during the call only. Null: nothing
  int32_t blocks_max = 0;  // leading blocks of it; ⌊(n − 1) / block_tokens⌋ for n tokens leaves a
                           // row to compute logits from
  // Floors and pins give way where it could not be had even if nothing was used: for a sequence
  // whose caller has some of it already, and which must not end for want of room.
  bool may_take_kept = false;
};

class BlockPool {
 public:
  // Without a scrubber, blocks keep their bytes: only for pools that serve a single owner (tests,
  // tools). The clock (which must outlive the pool) ends pins. Without a saver, what is evicted
  // is lost.
  explicit BlockPool(int32_t total_blocks, BlockScrubber scrubber = nullptr,
                     const Clock& clock = Clock::Real(), BlockSaver saver = nullptr);
  ~BlockPool();  // every reservation and lease must be gone
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // The leading blocks that `prefix` finds are shared, the rest comes from the empty ones, and
  // where these are too few, from cached ones. The domain at the end of the chain is the one that
  // asks: its own floor does not keep its blocks from it. RESOURCE_EXHAUSTED when fewer can be had
  // now; FAILED_PRECONDITION when they could not be had even if nothing was used, because of other
  // domains' floors and pins; INVALID_ARGUMENT when the pool could never hold them, and for blocks
  // < 1. One that fails may have evicted cached blocks, where those left follow kept ones.
  absl::StatusOr<Reservation> Reserve(int32_t blocks, const PrefixUse& prefix = {});
  // The same for all members at once: all get their blocks, or none does. A member that goes gives
  // its own blocks back; the last one, the shared ones too. Where there are several members, only
  // `shared` blocks are looked for. INVALID_ARGUMENT also for shared < 0, own < 1, members < 1 and
  // spare < 0.
  absl::StatusOr<std::vector<Reservation>> ReserveGroup(const GroupNeed& need,
                                                        const PrefixUse& prefix = {});

  // How many blocks Reserve would find now.
  int32_t CountFound(const PrefixUse& prefix) const;
  // The leading blocks that `prefix` finds, and no others: to be read, never to be written. Empty
  // where it finds none.
  Reservation ReserveFound(const PrefixUse& prefix);

  // Says that the first `complete` blocks of `chain` lie, complete in all layers, in the leading
  // blocks of `reservation`: they may be found from now on, for others to read and for nobody to
  // write. Cheap to repeat as a sequence grows, what was published before being skipped. `chain`:
  // the one it was reserved with, or an equal one that has grown.
  // Where the pool has a block with this key already, that one stays the block to be found, and the
  // reservation holds it beside its own for as long as it lives (one more used block).
  // A domain at its quota loses the oldest of its own blocks for a new one; where it has none to
  // lose, neither this block nor any behind it is published. Returns how many leading blocks of the
  // chain are published. 0 for an empty reservation.
  int32_t Publish(Reservation& reservation, const BlockChain& chain, int32_t complete);

  struct Counts {
    int32_t total = 0, free = 0, used = 0, leased = 0;
    int32_t cached = 0;  // of the free ones
    int32_t kept = 0;    // of the cached ones, those that floors and pins keep from a domain that
                         // has none: free - kept can be had, or nearly as many
  };
  Counts counts() const;
  // 0 for a block that was never given out.
  uint32_t generation(BlockId block) const;
  // What was published and evicted, and the keys of all that can be found. Tiers that lie below the
  // pool tell theirs there too.
  EventLog& events() const;

 private:
  std::shared_ptr<PoolState> state_;
};

}  // namespace trivium::kv
