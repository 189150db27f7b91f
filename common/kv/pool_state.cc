#include "common/kv/pool_state.h"

#include <algorithm>
#include <utility>

namespace trivium::kv {

PoolState::PoolState(int32_t blocks, BlockScrubber scrub, const Clock& time, BlockSaver save)
    : total(blocks),
      scrubber(std::move(scrub)),
      saver(std::move(save)),
      clock(time),
      records(static_cast<size_t>(blocks)),
      index(blocks),
      eviction(blocks),
      events(blocks) {
  empty.reserve(records.size());
  for (int32_t i = blocks - 1; i >= 0; --i) empty.push_back(BlockId{i});
}

std::vector<BlockId> PoolState::Find(const BlockChain& chain, int32_t most) const {
  std::vector<BlockId> found;
  for (int32_t i = 0; i < std::min(most, chain.size()); ++i) {
    const KeyedBlock wanted = chain.block(i);
    const std::optional<BlockId> block = index.Find(wanted.key);
    if (!block || !index.Holds(*block, wanted)) break;
    found.push_back(*block);
  }
  return found;
}

void PoolState::Hold(BlockId block) {
  ++Record(block).owners;
  ++Record(block).holders;
}

void PoolState::Share(BlockId block) {
  const BlockRecord& record = Record(block);
  if (record.owners == 0) {
    if (record.holders == 0) {
      eviction.Use(block);
    } else {
      --leased;
    }
    ++used;
  }
  Hold(block);
}

void PoolState::Unshare(BlockId block) {
  DropOwner(block);
  BlockRecord& record = Record(block);
  if (--record.holders > 0) return;
  --leased;
  eviction.PutBack(block);
}

void PoolState::DropOwner(BlockId block) {
  if (--Record(block).owners > 0) return;
  --used;
  ++leased;
}

bool PoolState::DropHolder(BlockId block) {
  if (--Record(block).holders > 0) return false;
  if (!index.Contains(block)) return true;
  --leased;
  eviction.Cache(block, clock.Now());
  return false;
}

absl::Status PoolState::Take(const Want& want, Taken& taken) {
  eviction.EndPins(clock.Now());
  bool takes_kept = want.may_take_kept && IsHopeless(want, taken);
  const int32_t kept = takes_kept ? 0 : KeptFrom(want);
  if (want.count + want.spare > free() - kept) return Shortage(want, taken);
  while (static_cast<int64_t>(empty.size() + taken.evicted.size()) < want.count) {
    std::optional<BlockId> victim = eviction.Next(want.asker);
    takes_kept |= !victim && want.may_take_kept && IsHopeless(want, taken);
    if (!victim && takes_kept) victim = eviction.NextKept();
    if (!victim) return Shortage(want, taken);
    taken.evicted.push_back(Evict(*victim));
  }
  const auto from_empty = static_cast<size_t>(want.count) - taken.evicted.size();
  taken.blocks.assign(empty.rbegin(), empty.rbegin() + static_cast<std::ptrdiff_t>(from_empty));
  empty.resize(empty.size() - from_empty);
  used += static_cast<int32_t>(from_empty);
  for (const Leaving& evicted : taken.evicted) taken.blocks.push_back(evicted.block);
  for (BlockId block : taken.blocks) ++Record(block).generation;
  return absl::OkStatus();
}

bool PoolState::IsHopeless(const Want& want, const Taken& taken) const {
  const int32_t kept = KeptFrom(want);
  if (kept == 0) return false;
  if (want.count + static_cast<int64_t>(want.owned) > total - kept) return true;
  // Nobody has anything to give back, and still blocks that count as reachable are none.
  return static_cast<size_t>(used) <= want.owned &&
         static_cast<size_t>(leased) <= taken.evicted.size();
}

absl::Status PoolState::Shortage(const Want& want, const Taken& taken) const {
  const int32_t kept = KeptFrom(want);
  const std::string why =
      fmt::format("{} KV blocks are needed, {} of {} are free{}{}", want.count, free(), total,
                  want.spare > 0 ? fmt::format(", {} of them spare", want.spare) : "",
                  kept > 0 ? fmt::format(", {} of them kept by floors and pins", kept) : "");
  const bool may_wait = want.may_take_kept || !IsHopeless(want, taken);
  return may_wait ? ResourceExhausted("{}", why) : FailedPrecondition("{}", why);
}

Leaving PoolState::Evict(BlockId block) {
  Leaving leaving{.block = block};
  if (saver) {
    const BlockContent content = index.ContentOf(block);
    leaving.key = content.key;
    leaving.tokens.assign(content.tokens.begin(), content.tokens.end());
  }
  eviction.Drop(block);
  if (const std::optional<BlockId> parent = index.Remove(block)) eviction.SetLeaf(*parent, true);
  events.Removed(block);
  ++leased;
  return leaving;
}

bool PoolState::Publish(ReservationState& reservation, BlockId block, const BlockChain& chain,
                        int32_t at, std::vector<Leaving>& evicted) {
  const KeyedBlock content = chain.block(at);
  if (const std::optional<BlockId> older = index.Find(content.key)) {
    if (!index.Holds(*older, content)) return false;
    if (*older == block) return true;
    Share(*older);
    reservation.blocks.push_back(*older);
    return true;
  }
  std::optional<BlockId> parent;
  if (at > 0) {
    parent = index.Find(content.parent);
    if (!parent) return false;
  }
  const auto position = static_cast<int64_t>(content.tokens.size()) * at;
  while (!eviction.Publish(block, content.domain, chain.domain(at), position)) {
    const std::optional<BlockId> oldest = eviction.NextOf(content.domain);
    if (!oldest) return false;
    evicted.push_back(Evict(*oldest));
  }
  index.Add(block, content, parent);
  if (parent) eviction.SetLeaf(*parent, false);
  events.Stored(block, Cut(content.key));
  return true;
}

void PoolState::Settle(const std::vector<Leaving>& blocks, bool as_used) {
  if (blocks.empty()) return;
  for (const Leaving& leaving : blocks) {
    if (leaving.key) saver(leaving.block, {*leaving.key, leaving.tokens});
    if (scrubber) scrubber(leaving.block);
  }
  std::lock_guard lock(mutex);
  leased -= static_cast<int32_t>(blocks.size());
  if (as_used) {
    used += static_cast<int32_t>(blocks.size());
  } else {
    // Reversed, so that the next owner gets the lowest index of this group first.
    for (auto it = blocks.rbegin(); it != blocks.rend(); ++it) empty.push_back(it->block);
  }
}

ReservationState::ReservationState(std::shared_ptr<PoolState> owner, std::vector<BlockId> held,
                                   std::optional<DomainTag> domain, int32_t hits)
    : pool(std::move(owner)), blocks(std::move(held)), asker(domain), published(hits) {}

ReservationState::~ReservationState() {
  std::vector<Leaving> leaving;
  {
    std::lock_guard lock(pool->mutex);
    for (BlockId block : blocks) {
      if (pool->DropHolder(block)) leaving.push_back({.block = block});
    }
  }
  pool->Settle(leaving, false);
}

}  // namespace trivium::kv
