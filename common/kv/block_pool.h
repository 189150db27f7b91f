// Who owns which KV block. Accounting only; the bytes lie in KvStorage.
//
// A block is free, used (owned by Reservations: one, or the members of one group that share it) or
// leased (its last owner has gone, but transfers in flight may still touch it, or it is being
// scrubbed). Invariant at every moment: free + used + leased = total; a shared block counts once.
// A reservation gets all the blocks that it asks for, or none; it may grow if blocks are free then.
// Every block carries a generation, raised each time the block leaves the free list, so that a late
// message for a former owner can be told apart. The first owner of a block sees 1.
//
// The scrubber runs once, on the thread that lets a block go last, outside the pool's lock, while
// the block still counts as leased: no byte of one owner is ever there when Reserve hands the block
// to the next.
//
// Thread-safety: all methods, any thread. A Reservation belongs to one owner at a time; its
// destructor returns the blocks.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "common/base/ids.h"
#include "common/base/status.h"

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
  bool empty() const { return blocks_.empty(); }

  // Adds `blocks` free blocks of its own behind those that it has, or changes nothing:
  // RESOURCE_EXHAUSTED when fewer are free now, INVALID_ARGUMENT for blocks < 1,
  // FAILED_PRECONDITION for an empty reservation. Ends the spans given out before.
  absl::Status Extend(int32_t blocks);

  // Blocks stay out of the free list until all reservations that own them and every copy of a lease
  // are gone; those that Extend adds later too. Null for an empty reservation.
  BlockLease Lease() const;

 private:
  friend class BlockPool;
  void Release();

  std::vector<BlockId> blocks_;
  std::vector<int32_t> table_;
  std::shared_ptr<ReservationState> state_;
};

// Sequences that begin with the same tokens: each member's blocks are the `shared` ones, which all
// of them may read and none may write once there are two, and then `own` ones.
struct GroupNeed {
  int32_t shared = 0, own = 0, members = 1;
  int64_t Blocks() const { return shared + int64_t{own} * members; }
};

class BlockPool {
 public:
  // Without a scrubber, blocks keep their bytes: only for pools that serve a single owner (tests,
  // tools).
  explicit BlockPool(int32_t total_blocks, BlockScrubber scrubber = nullptr);
  ~BlockPool();  // every reservation and lease must be gone
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // RESOURCE_EXHAUSTED when fewer are free now; INVALID_ARGUMENT when the pool could never hold
  // them, and for blocks < 1.
  absl::StatusOr<Reservation> Reserve(int32_t blocks);
  // The same for all members at once: all get their blocks, or none does. A member that goes gives
  // its own blocks back; the last one, the shared ones too. INVALID_ARGUMENT also for shared < 0,
  // own < 1 and members < 1.
  absl::StatusOr<std::vector<Reservation>> ReserveGroup(const GroupNeed& need);

  struct Counts {
    int32_t total = 0, free = 0, used = 0, leased = 0;
  };
  Counts counts() const;
  // 0 for a block that never left the free list.
  uint32_t generation(BlockId block) const;

 private:
  std::shared_ptr<PoolState> state_;
};

}  // namespace trivium::kv
