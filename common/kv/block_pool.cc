#include "common/kv/block_pool.h"

#include <mutex>
#include <utility>

namespace trivium::kv {

struct PoolState {
  explicit PoolState(int32_t blocks, BlockScrubber scrub)
      : total(blocks), scrubber(std::move(scrub)), generations(static_cast<size_t>(blocks), 0) {
    free.reserve(generations.size());
    for (int32_t i = blocks - 1; i >= 0; --i) free.push_back(BlockId{i});
  }

  const int32_t total;
  const BlockScrubber scrubber;
  mutable std::mutex mutex;
  std::vector<BlockId>
      free;  // the last one is handed out first: its bytes are the likeliest in cache
  std::vector<uint32_t> generations;
  int32_t used = 0;
  int32_t leased = 0;
};

// Shared by a reservation and its leases; whoever goes last returns the blocks.
struct ReservationState {
  std::shared_ptr<PoolState> pool;
  std::vector<BlockId> blocks;

  ReservationState(std::shared_ptr<PoolState> owner, std::vector<BlockId> ids)
      : pool(std::move(owner)), blocks(std::move(ids)) {}
  ReservationState(const ReservationState&) = delete;
  ReservationState& operator=(const ReservationState&) = delete;

  ~ReservationState() {
    if (pool->scrubber) {
      for (BlockId block : blocks) pool->scrubber(block);
    }
    std::lock_guard lock(pool->mutex);
    pool->leased -= static_cast<int32_t>(blocks.size());
    // Reversed, so that the next owner gets the lowest index of this group first.
    pool->free.insert(pool->free.end(), blocks.rbegin(), blocks.rend());
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

void Reservation::Release() {
  if (state_ == nullptr) return;
  {
    PoolState& pool = *state_->pool;
    std::lock_guard lock(pool.mutex);
    const auto count = static_cast<int32_t>(blocks_.size());
    pool.used -= count;
    pool.leased += count;
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
  if (blocks < 1) return InvalidArgument("a reservation of {} KV blocks", blocks);
  if (blocks > state_->total) {
    return InvalidArgument("{} KV blocks are needed, the pool has {}", blocks, state_->total);
  }
  const auto count = static_cast<size_t>(blocks);
  Reservation reservation;
  reservation.blocks_.reserve(count);
  reservation.table_.reserve(count);
  {
    std::lock_guard lock(state_->mutex);
    std::vector<BlockId>& free = state_->free;
    if (free.size() < count) {
      return ResourceExhausted("{} KV blocks are needed, {} of {} are free", blocks, free.size(),
                               state_->total);
    }
    for (size_t i = 0; i < count; ++i) {
      const BlockId block = free.back();
      free.pop_back();
      ++state_->generations[static_cast<size_t>(block.value)];
      reservation.blocks_.push_back(block);
      reservation.table_.push_back(block.value);
    }
    state_->used += blocks;
  }
  reservation.state_ = std::make_shared<ReservationState>(state_, reservation.blocks_);
  return reservation;
}

BlockPool::Counts BlockPool::counts() const {
  std::lock_guard lock(state_->mutex);
  return {state_->total, static_cast<int32_t>(state_->free.size()), state_->used, state_->leased};
}

uint32_t BlockPool::generation(BlockId block) const {
  TRIVIUM_CHECK(block.value >= 0 && block.value < state_->total, "block {} of {}", block.value,
                state_->total);
  std::lock_guard lock(state_->mutex);
  return state_->generations[static_cast<size_t>(block.value)];
}

}  // namespace trivium::kv
