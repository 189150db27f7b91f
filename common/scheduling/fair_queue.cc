#include "common/scheduling/fair_queue.h"

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "common/base/status.h"

namespace trivium::scheduling {
namespace {

// A double still tells a thousandth of a token apart there.
constexpr double kCounterMax = 1e12;
constexpr int kPatienceDoublingsMax = 10;

}  // namespace

FairQueue::Rank FairQueue::RankOf(const Entry& entry) const {
  if (entry.comes_back) return {.is_new = false, .ticket = entry.ticket};
  // The order by h + (now - arrived) / age is, at any time, that by arrived - h * age.
  constexpr double kNoAgingSteps = 1LL << 52;
  const bool ages = options_.age != kNoAging;
  const double worth = ages ? static_cast<double>(options_.age.count()) : kNoAgingSteps;
  const int64_t arrived = ages ? entry.arrived.time_since_epoch().count() : 0;
  return {.is_new = true,
          .below_priority = -entry.priority,
          .due = arrived - std::llround(std::clamp(entry.hit_rate, 0.0, 1.0) * worth),
          .ticket = entry.ticket};
}

void FairQueue::Add(const Entry& entry) {
  const uint64_t id = entry.share.tenant;
  const Rank rank = RankOf(entry);
  const bool is_new = entries_.emplace(entry.ticket, std::pair(id, rank)).second;
  TRIVIUM_CHECK(is_new, "request {} waits twice", entry.ticket);
  TRIVIUM_CHECK(entry.share.weight > 0, "a tenant of weight {}", entry.share.weight);
  Tenant& tenant = tenants_[id];
  tenant.weight = entry.share.weight;
  tenant.waiting.insert(rank);
  if (entry.comes_back) back_.insert(entry.ticket);
  if (tenant.waiting.size() > 1) return;
  idle_.erase(PlaceOf(id, tenant));
  tenant.counter = std::max(tenant.counter, served_);
  tenant.turn = ++next_turn_;
  order_.insert(PlaceOf(id, tenant));
}

bool FairQueue::Remove(uint64_t ticket) {
  const auto entry = entries_.find(ticket);
  if (entry == entries_.end()) return false;
  const auto [id, rank] = entry->second;
  entries_.erase(entry);
  back_.erase(ticket);
  if (head_.has_value() && head_->ticket == ticket) head_.reset();
  Tenant& tenant = tenants_.at(id);
  tenant.waiting.erase(rank);
  if (!tenant.waiting.empty()) return true;
  order_.erase(PlaceOf(id, tenant));
  idle_.insert(PlaceOf(id, tenant));
  ForgetIdle();
  return true;
}

void FairQueue::ForgetIdle() {
  if (entries_.empty()) {
    idle_.clear();
    tenants_.clear();
    served_ = 0;
    return;
  }
  while (!idle_.empty() && (idle_.begin()->counter <= served_ || idle_.size() > kIdleTenantsMax)) {
    tenants_.erase(idle_.begin()->tenant);
    idle_.erase(idle_.begin());
  }
}

void FairQueue::SetCounter(uint64_t id, Tenant& tenant, double counter) {
  order_.erase(PlaceOf(id, tenant));
  tenant.counter = counter;
  tenant.turn = ++next_turn_;
  order_.insert(PlaceOf(id, tenant));
}

void FairQueue::MoveBack() {
  std::set<Place> order, idle;
  for (auto& [id, tenant] : tenants_) {
    tenant.counter = std::max(0.0, tenant.counter - served_);
    (tenant.waiting.empty() ? idle : order).insert(PlaceOf(id, tenant));
  }
  order_ = std::move(order);
  idle_ = std::move(idle);
  served_ = 0;
}

FairQueue::Tenant& FairQueue::InPass(uint64_t id) {
  Tenant& tenant = tenants_.at(id);
  if (tenant.pass != pass_) {
    tenant.pass = pass_;
    tenant.is_stuck = false;
    tenant.passed_over.reset();
  }
  return tenant;
}

void FairQueue::Take(uint64_t ticket, int64_t tokens) {
  const auto [id, rank] = entries_.at(ticket);
  Tenant& tenant = tenants_.at(id);
  if (rank.is_new && tokens > 0) {
    served_ = std::max(served_, tenant.counter);
    SetCounter(id, tenant, tenant.counter + static_cast<double>(tokens) / tenant.weight);
  }
  Remove(ticket);
  ForgetIdle();
  if (served_ > kCounterMax) MoveBack();
}

FairQueue::Verdict FairQueue::Try(uint64_t ticket, const Attempt& attempt) {
  const auto [id, rank] = entries_.at(ticket);
  const Outcome outcome = attempt(ticket);
  Tenant& tenant = InPass(id);
  switch (outcome.verdict) {
    case Verdict::kTaken:
      Take(ticket, outcome.tokens);
      break;
    case Verdict::kNoRoom:
      ++refusals_;
      tenant.is_stuck = true;
      if (!head_.has_value()) head_ = Head{ticket, id, options_.patience, {}};
      break;
    case Verdict::kPassedOver:
      if (head_.has_value() && head_->ticket == ticket) head_.reset();
      tenant.passed_over = std::max(rank, tenant.passed_over.value_or(rank));
      break;
    case Verdict::kEnough:
      has_enough_ = true;
      break;
  }
  return outcome.verdict;
}

// Whether one was taken.
bool FairQueue::ServeTenant(uint64_t id, const Attempt& attempt) {
  while (true) {
    const Tenant& tenant = InPass(id);
    if (tenant.is_stuck || has_enough_) return false;
    const auto next = tenant.passed_over.has_value()
                          ? tenant.waiting.upper_bound(*tenant.passed_over)
                          : tenant.waiting.begin();
    if (next == tenant.waiting.end()) return false;
    if (Try(next->ticket, attempt) == Verdict::kTaken) return true;
  }
}

// Behind the head, and those that were tried.
bool FairQueue::MustWait(const Place& place, TimePoint now) {
  if (!head_.has_value()) return false;
  const double limit = tenants_.at(head_->tenant).counter + options_.lead_tokens;
  if (refusals_ < kRefusalsMax && place.counter <= limit) return false;
  if (!head_->waited_for_since.has_value()) head_->waited_for_since = now;
  return true;
}

// The tenants that found no room in the pass before go behind all others.
void FairQueue::LosePatience(TimePoint now) {
  if (!head_.has_value() || !head_->waited_for_since.has_value()) return;
  if (now - *head_->waited_for_since < head_->patience) return;
  std::vector<uint64_t> stuck;
  double highest = 0;
  for (const Place& place : order_) {
    const Tenant& tenant = tenants_.at(place.tenant);
    const bool is_stuck = tenant.pass == pass_ && tenant.is_stuck;
    if (is_stuck) stuck.push_back(place.tenant);
    if (!is_stuck) highest = place.counter;
  }
  for (const uint64_t id : stuck) {
    Tenant& tenant = tenants_.at(id);
    SetCounter(id, tenant, std::max(tenant.counter, highest + options_.lead_tokens));
  }
  if (head_->patience < options_.patience * (1 << kPatienceDoublingsMax)) head_->patience *= 2;
  head_->waited_for_since.reset();
}

void FairQueue::Serve(TimePoint now, const Attempt& attempt) {
  LosePatience(now);
  ++pass_;
  refusals_ = 0;
  has_enough_ = false;
  for (auto next = back_.begin();
       next != back_.end() && refusals_ < kRefusalsMax && !has_enough_;) {
    const uint64_t ticket = *next;
    if (!InPass(entries_.at(ticket).first).is_stuck) Try(ticket, attempt);
    next = back_.upper_bound(ticket);
  }
  if (head_.has_value()) {
    const Tenant& tenant = InPass(head_->tenant);
    if (!tenant.is_stuck && !has_enough_) Try(head_->ticket, attempt);
  }
  for (auto next = order_.begin(); next != order_.end() && !has_enough_;) {
    const Place place = *next;
    if (InPass(place.tenant).is_stuck) {
      ++next;
      continue;
    }
    if (MustWait(place, now)) return;
    next =
        ServeTenant(place.tenant, attempt) ? order_.lower_bound(place) : order_.upper_bound(place);
  }
}

std::optional<uint64_t> FairQueue::LastOfLargest() const {
  std::optional<std::tuple<double, uint64_t>> last;  // entries for its weight, ticket
  for (const Place& place : order_) {
    const Tenant& tenant = tenants_.at(place.tenant);
    const auto first_new =
        tenant.waiting.lower_bound({.is_new = true, .below_priority = INT32_MIN, .due = INT64_MIN});
    if (first_new == tenant.waiting.end()) continue;
    const auto count = static_cast<double>(std::distance(first_new, tenant.waiting.end()));
    last = std::max(
        last, std::optional(std::tuple(count / tenant.weight, tenant.waiting.rbegin()->ticket)));
  }
  if (!last.has_value()) return std::nullopt;
  return std::get<1>(*last);
}

}  // namespace trivium::scheduling
