#include "common/kv/eviction.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace trivium::kv {

Eviction::Eviction(int32_t blocks) : blocks_(static_cast<size_t>(blocks)) {}

bool Eviction::Publish(BlockId id, DomainTag tag, const Domain& domain, int64_t position) {
  std::unique_ptr<Account>& slot = accounts_[tag];
  if (slot == nullptr) slot = std::make_unique<Account>();
  Account& account = *slot;
  // In float, as the shares are: a fifth of 20 is 4, not a little more.
  const auto total = static_cast<float>(blocks_.size());
  account.tag = tag;
  account.quota = static_cast<int32_t>(std::ceil(total * std::clamp(domain.quota, 0.0f, 1.0f)));
  account.floor = static_cast<int32_t>(total * std::clamp(domain.floor, 0.0f, 1.0f));
  account.pin = std::chrono::seconds(domain.pin_s);
  const bool has_room = account.held < account.quota;
  if (has_room) {
    ++account.held;
    At(id) = {.account = &account, .position = position};
  }
  Refresh(account);
  return has_room;
}

void Eviction::Drop(BlockId id) {
  Block& block = At(id);
  Account& account = *block.account;
  Use(id);
  block.account = nullptr;
  --account.held;
  Refresh(account);
}

void Eviction::SetLeaf(BlockId id, bool is_leaf) {
  At(id).leaf = is_leaf;
  Place(id);
  Refresh(*At(id).account);
}

void Eviction::Cache(BlockId id, TimePoint now) {
  EndPins(now);
  Block& block = At(id);
  ++clock_;
  block.value = clock_ + blocks_.size() * static_cast<uint64_t>(block.position) / kDoubleCostTokens;
  block.pinned_until = now + block.account->pin;
  block.pinned = block.pinned_until > now && pins_.size() < blocks_.size() / 2;
  Enter(id);
}

void Eviction::Use(BlockId id) {
  Block& block = At(id);
  block.cached = false;
  --cached_;
  if (block.pinned) {
    pins_.erase({block.pinned_until, id.value});
  } else {
    --block.account->cached;
  }
  Place(id);
  Refresh(*block.account);
}

void Eviction::PutBack(BlockId id) { Enter(id); }

void Eviction::Enter(BlockId id) {
  Block& block = At(id);
  block.cached = true;
  ++cached_;
  if (block.pinned) {
    pins_.emplace(block.pinned_until, id.value);
  } else {
    ++block.account->cached;
  }
  Place(id);
  Refresh(*block.account);
}

void Eviction::EndPins(TimePoint now) {
  while (!pins_.empty() && pins_.begin()->first <= now) {
    const BlockId id{pins_.begin()->second};
    pins_.erase(pins_.begin());
    Block& block = At(id);
    block.pinned = false;
    ++block.account->cached;
    Place(id);
    Refresh(*block.account);
  }
}

void Eviction::Place(BlockId id) {
  const Block& block = At(id);
  const Rank rank{block.value, id.value};
  if (block.cached && block.leaf && !block.pinned) {
    block.account->candidates.insert(rank);
  } else {
    block.account->candidates.erase(rank);
  }
}

void Eviction::Refresh(Account& account) {
  const int32_t above = std::max(account.held - account.floor, 0);
  const int32_t reachable = std::min(account.cached, above);
  reachable_ += reachable - account.reachable;
  account.reachable = reachable;
  std::optional<Rank> first;
  if (above > 0 && !account.candidates.empty()) first = *account.candidates.begin();
  if (first != account.first) {
    if (account.first) heads_.erase(*account.first);
    if (first) heads_.insert(*first);
    account.first = first;
  }
  if (account.held == 0) accounts_.erase(DomainTag(account.tag));
}

std::optional<BlockId> Eviction::Next(std::optional<DomainTag> asker) const {
  std::optional<Rank> next;
  if (!heads_.empty()) next = *heads_.begin();
  const auto own = asker ? accounts_.find(*asker) : accounts_.end();
  if (own != accounts_.end() && !own->second->candidates.empty()) {
    const Rank& first = *own->second->candidates.begin();
    if (!next || first < *next) next = first;
  }
  if (!next) return std::nullopt;
  return BlockId{next->block};
}

std::optional<BlockId> Eviction::NextOf(DomainTag tag) const {
  const auto own = accounts_.find(tag);
  if (own == accounts_.end() || own->second->candidates.empty()) return std::nullopt;
  return BlockId{own->second->candidates.begin()->block};
}

std::optional<BlockId> Eviction::NextKept() {
  std::optional<Rank> next;
  for (int round = 0; round < 2 && !next; ++round) {
    if (round > 0) EndPins(TimePoint::max());
    for (const auto& [tag, account] : accounts_) {
      if (account->candidates.empty()) continue;
      const Rank& first = *account->candidates.begin();
      if (!next || first < *next) next = first;
    }
  }
  if (!next) return std::nullopt;
  return BlockId{next->block};
}

int32_t Eviction::reachable(std::optional<DomainTag> asker) const {
  const auto own = asker ? accounts_.find(*asker) : accounts_.end();
  if (own == accounts_.end()) return reachable_;
  return reachable_ - own->second->reachable + own->second->cached;
}

}  // namespace trivium::kv
