#include "common/kv/block_pool.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "common/kv/pool_state.h"

namespace trivium::kv {

Reservation::Reservation(Reservation&& other) noexcept
    : blocks_(std::exchange(other.blocks_, {})),
      table_(std::exchange(other.table_, {})),
      cached_blocks_(std::exchange(other.cached_blocks_, 0)),
      state_(std::move(other.state_)) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  if (this != &other) {
    Release();
    blocks_ = std::exchange(other.blocks_, {});
    table_ = std::exchange(other.table_, {});
    cached_blocks_ = std::exchange(other.cached_blocks_, 0);
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
  Taken taken;
  absl::Status status;
  {
    std::lock_guard lock(pool.mutex);
    status = pool.Take({.count = blocks,
                        .asker = state_->asker,
                        .may_take_kept = true,
                        .owned = state_->blocks.size()},
                       taken);
    for (BlockId block : taken.blocks) {
      pool.Hold(block);
      blocks_.push_back(block);
      table_.push_back(block.value);
      state_->blocks.push_back(block);
    }
  }
  pool.Settle(taken.evicted, status.ok());
  return status;
}

void Reservation::Release() {
  if (state_ == nullptr) return;
  {
    PoolState& pool = *state_->pool;
    std::lock_guard lock(pool.mutex);
    for (BlockId block : state_->blocks) pool.DropOwner(block);
  }
  blocks_.clear();
  table_.clear();
  cached_blocks_ = 0;
  state_.reset();
}

BlockPool::BlockPool(int32_t total_blocks, BlockScrubber scrubber, const Clock& clock,
                     BlockSaver saver) {
  TRIVIUM_CHECK(total_blocks >= 0, "a pool of {} blocks", total_blocks);
  state_ = std::make_shared<PoolState>(total_blocks, std::move(scrubber), clock, std::move(saver));
}

BlockPool::~BlockPool() {
  const Counts now = counts();
  TRIVIUM_CHECK(now.free == now.total, "a pool ends with {} blocks used and {} leased", now.used,
                now.leased);
}

absl::StatusOr<Reservation> BlockPool::Reserve(int32_t blocks, const PrefixUse& prefix) {
  ASSIGN_OR_RETURN(std::vector<Reservation> one,
                   ReserveGroup({.shared = 0, .own = blocks, .members = 1}, prefix));
  return std::move(one.front());
}

int32_t BlockPool::CountFound(const PrefixUse& prefix) const {
  if (prefix.chain == nullptr || !prefix.chain->owner().has_value()) return 0;
  std::lock_guard lock(state_->mutex);
  return static_cast<int32_t>(state_->Find(*prefix.chain, prefix.blocks_max).size());
}

absl::StatusOr<std::vector<Reservation>> BlockPool::ReserveGroup(const GroupNeed& need,
                                                                 const PrefixUse& prefix) {
  if (need.shared < 0 || need.own < 1 || need.members < 1 || need.spare < 0) {
    return InvalidArgument(
        "a reservation of {} shared and {} own KV blocks for each of {}, {} spare", need.shared,
        need.own, need.members, need.spare);
  }
  if (need.Blocks() > state_->total) {
    return InvalidArgument("{} KV blocks are needed, the pool has {}", need.Blocks(),
                           state_->total);
  }
  const std::optional<DomainTag> asker =
      prefix.chain == nullptr ? std::nullopt : prefix.chain->owner();
  const int32_t hits_max = need.members == 1 ? need.shared + need.own : need.shared;
  std::vector<BlockId> sequence;  // what is found, and then what is taken
  size_t hits = 0;
  Taken taken;
  absl::Status status;
  {
    std::lock_guard lock(state_->mutex);
    if (asker) sequence = state_->Find(*prefix.chain, std::min(prefix.blocks_max, hits_max));
    hits = sequence.size();
    for (BlockId block : sequence) state_->Share(block);
    status = state_->Take({.count = need.Blocks() - static_cast<int64_t>(hits),
                           .spare = need.spare,
                           .asker = asker,
                           .may_take_kept = prefix.may_take_kept,
                           .owned = hits},
                          taken);
    if (!status.ok()) {
      for (BlockId block : sequence) state_->Unshare(block);
    }
    for (BlockId block : taken.blocks) state_->Hold(block);
    // What several members share is held once by now.
    for (int32_t i = 0; status.ok() && i < need.shared; ++i) {
      const auto at = static_cast<size_t>(i);
      const BlockId block = at < hits ? sequence[at] : taken.blocks[at - hits];
      for (int32_t member = 1; member < need.members; ++member) state_->Hold(block);
    }
  }
  state_->Settle(taken.evicted, status.ok());
  RETURN_IF_ERROR(status);
  sequence.insert(sequence.end(), taken.blocks.begin(), taken.blocks.end());
  std::vector<Reservation> group(static_cast<size_t>(need.members));
  auto own = sequence.begin() + need.shared;
  for (Reservation& member : group) {
    member.blocks_.assign(sequence.begin(), sequence.begin() + need.shared);
    member.blocks_.insert(member.blocks_.end(), own, own + need.own);
    own += need.own;
    for (BlockId block : member.blocks_) member.table_.push_back(block.value);
    member.cached_blocks_ = static_cast<int32_t>(hits);
    member.state_ = std::make_shared<ReservationState>(state_, member.blocks_, asker,
                                                       static_cast<int32_t>(hits));
  }
  return group;
}

Reservation BlockPool::ReserveFound(const PrefixUse& prefix) {
  Reservation found;
  const std::optional<DomainTag> asker = prefix.chain->owner();
  if (!asker) return found;
  {
    std::lock_guard lock(state_->mutex);
    found.blocks_ = state_->Find(*prefix.chain, prefix.blocks_max);
    for (BlockId block : found.blocks_) state_->Share(block);
  }
  if (found.blocks_.empty()) return found;
  for (BlockId block : found.blocks_) found.table_.push_back(block.value);
  found.cached_blocks_ = static_cast<int32_t>(found.blocks_.size());
  found.state_ =
      std::make_shared<ReservationState>(state_, found.blocks_, asker, found.cached_blocks_);
  return found;
}

int32_t BlockPool::Publish(Reservation& reservation, const BlockChain& chain, int32_t complete) {
  if (reservation.state_ == nullptr) return 0;
  ReservationState& state = *reservation.state_;
  const int32_t most =
      std::min({complete, chain.size(), static_cast<int32_t>(reservation.blocks_.size())});
  if (state.published >= most) return state.published;
  std::vector<Leaving> evicted;
  {
    std::lock_guard lock(state_->mutex);
    for (int32_t& i = state.published; i < most; ++i) {
      const BlockId block = reservation.blocks_[static_cast<size_t>(i)];
      if (!state_->Publish(state, block, chain, i, evicted)) break;
    }
  }
  state_->Settle(evicted, false);
  return state.published;
}

BlockPool::Counts BlockPool::counts() const {
  std::lock_guard lock(state_->mutex);
  Eviction& eviction = state_->eviction;
  eviction.EndPins(state_->clock.Now());
  return {.total = state_->total,
          .free = state_->free(),
          .used = state_->used,
          .leased = state_->leased,
          .cached = eviction.cached(),
          .kept = eviction.cached() - eviction.reachable(std::nullopt)};
}

uint32_t BlockPool::generation(BlockId block) const {
  TRIVIUM_CHECK(block.value >= 0 && block.value < state_->total, "block {} of {}", block.value,
                state_->total);
  std::lock_guard lock(state_->mutex);
  return state_->Record(block).generation;
}

EventLog& BlockPool::events() const { return state_->events; }

}  // namespace trivium::kv
