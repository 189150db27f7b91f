#include "common/kv/block_pool.h"

#include <mutex>
#include <utility>

namespace trivium::kv {

struct BlockRecord {
  uint32_t generation = 0;
  int32_t owners = 0;   // reservations
  int32_t holders = 0;  // reservations, and those that have gone but whose leases have not
};

struct PoolState {
  explicit PoolState(int32_t blocks, BlockScrubber scrub)
      : total(blocks), scrubber(std::move(scrub)), records(static_cast<size_t>(blocks)) {
    free.reserve(records.size());
    for (int32_t i = blocks - 1; i >= 0; --i) free.push_back(BlockId{i});
  }

  BlockRecord& Record(BlockId block) { return records[static_cast<size_t>(block.value)]; }
  BlockId TakeFree() {
    const BlockId block = free.back();
    free.pop_back();
    ++Record(block).generation;
    ++used;
    return block;
  }
  void Hold(BlockId block) {
    ++Record(block).owners;
    ++Record(block).holders;
  }
  absl::Status CheckFree(int64_t count) const {
    if (count <= static_cast<int64_t>(free.size())) return absl::OkStatus();
    return ResourceExhausted("{} KV blocks are needed, {} of {} are free", count, free.size(),
                             total);
  }

  const int32_t total;
  const BlockScrubber scrubber;
  mutable std::mutex mutex;
  std::vector<BlockId>
      free;  // the last one is handed out first: its bytes are the likeliest in cache
  std::vector<BlockRecord> records;
  int32_t used = 0;
  int32_t leased = 0;
};

// Shared by a reservation and its leases. Whoever is the last to hold a block returns it.
struct ReservationState {
  std::shared_ptr<PoolState> pool;
  std::vector<BlockId> blocks;

  ReservationState(std::shared_ptr<PoolState> owner, std::vector<BlockId> ids)
      : pool(std::move(owner)), blocks(std::move(ids)) {}
  ReservationState(const ReservationState&) = delete;
  ReservationState& operator=(const ReservationState&) = delete;

  ~ReservationState() {
    KeepLastHeld();
    if (pool->scrubber) {
      for (BlockId block : blocks) pool->scrubber(block);
    }
    std::lock_guard lock(pool->mutex);
    pool->leased -= static_cast<int32_t>(blocks.size());
    // Reversed, so that the next owner gets the lowest index of this group first.
    pool->free.insert(pool->free.end(), blocks.rbegin(), blocks.rend());
  }

  // Leaves the blocks that nobody else holds.
  void KeepLastHeld() {
    std::lock_guard lock(pool->mutex);
    std::erase_if(blocks, [this](BlockId block) { return --pool->Record(block).holders > 0; });
  }
};

Reservation::Reservation(Reservation&& other) noexcept
    : blocks_(std::exchange(other.blocks_, {})),
      table_(std::exchange(other.table_, {})),
      state_(std::move(other.state_)) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  if (this != &other) {
    Release();
    blocks_ = std::exchange(other.blocks_, {});
    table_ = std::exchange(other.table_, {});
    state_ = std::move(other.state_);
  }
  return *this;
}

Reservation::~Reservation() { Release(); }

BlockLease Reservation::Lease() const { return state_; }

absl::Status Reservation::Extend(int32_t blocks) {
  if (blocks < 1) return InvalidArgument("an extension by {} KV blocks", blocks);
  if (state_ == nullptr) return FailedPrecondition("an empty reservation cannot grow");
  PoolState& pool = *state_->pool;
  std::lock_guard lock(pool.mutex);
  RETURN_IF_ERROR(pool.CheckFree(blocks));
  for (int32_t i = 0; i < blocks; ++i) {
    const BlockId block = pool.TakeFree();
    pool.Hold(block);
    blocks_.push_back(block);
    table_.push_back(block.value);
    // Leases read this list only after this reservation has let go of it.
    state_->blocks.push_back(block);
  }
  return absl::OkStatus();
}

void Reservation::Release() {
  if (state_ == nullptr) return;
  {
    PoolState& pool = *state_->pool;
    std::lock_guard lock(pool.mutex);
    for (BlockId block : blocks_) {
      if (--pool.Record(block).owners > 0) continue;
      --pool.used;
      ++pool.leased;
    }
  }
  blocks_.clear();
  table_.clear();
  state_.reset();
}

BlockPool::BlockPool(int32_t total_blocks, BlockScrubber scrubber) {
  TRIVIUM_CHECK(total_blocks >= 0, "a pool of {} blocks", total_blocks);
  state_ = std::make_shared<PoolState>(total_blocks, std::move(scrubber));
}

BlockPool::~BlockPool() {
  const Counts now = counts();
  TRIVIUM_CHECK(now.free == now.total, "a pool ends with {} blocks used and {} leased", now.used,
                now.leased);
}

absl::StatusOr<Reservation> BlockPool::Reserve(int32_t blocks) {
  ASSIGN_OR_RETURN(std::vector<Reservation> one,
                   ReserveGroup({.shared = 0, .own = blocks, .members = 1}));
  return std::move(one.front());
}

absl::StatusOr<std::vector<Reservation>> BlockPool::ReserveGroup(const GroupNeed& need) {
  if (need.shared < 0 || need.own < 1 || need.members < 1) {
    return InvalidArgument("a reservation of {} shared and {} own KV blocks for each of {}",
                           need.shared, need.own, need.members);
  }
  if (need.Blocks() > state_->total) {
    return InvalidArgument("{} KV blocks are needed, the pool has {}", need.Blocks(),
                           state_->total);
  }
  std::vector<Reservation> group(static_cast<size_t>(need.members));
  {
    std::lock_guard lock(state_->mutex);
    RETURN_IF_ERROR(state_->CheckFree(need.Blocks()));
    std::vector<BlockId> shared;
    for (int32_t i = 0; i < need.shared; ++i) shared.push_back(state_->TakeFree());
    for (Reservation& member : group) {
      member.blocks_ = shared;
      for (int32_t i = 0; i < need.own; ++i) member.blocks_.push_back(state_->TakeFree());
      for (BlockId block : member.blocks_) {
        state_->Hold(block);
        member.table_.push_back(block.value);
      }
    }
  }
  for (Reservation& member : group) {
    member.state_ = std::make_shared<ReservationState>(state_, member.blocks_);
  }
  return group;
}

BlockPool::Counts BlockPool::counts() const {
  std::lock_guard lock(state_->mutex);
  return {state_->total, static_cast<int32_t>(state_->free.size()), state_->used, state_->leased};
}

uint32_t BlockPool::generation(BlockId block) const {
  TRIVIUM_CHECK(block.value >= 0 && block.value < state_->total, "block {} of {}", block.value,
                state_->total);
  std::lock_guard lock(state_->mutex);
  return state_->Record(block).generation;
}

}  // namespace trivium::kv
