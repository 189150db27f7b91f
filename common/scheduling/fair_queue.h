// The order in which requests that wait get room, where tenants compete for it.
//
// Between tenants: weighted fair queueing by virtual token counters (start-time fair queueing). A
// tenant's counter grows by tokens / weight with each request taken, and the lowest goes first;
// `tokens` are those that had to be computed, so that what a tenant is owed does not depend on what
// its requests or anybody else's found in a cache. Whoever comes back from idling starts at the
// level of those served, without credit for the time away.
//
// Inside a tenant: the higher priority first, then KVShare's h + wait / age, h being the hit rate
// (cached tokens / prompt tokens). Of two with equal priority nobody is overtaken by one that
// arrived `age` or more later.
//
// Who comes back after it was taken before stands in front of all that were not, in order of
// arrival, and is charged nothing: it was first once, and has been charged.
//
// Who finds no room becomes the head: it is tried first from then on, nobody of its own tenant
// overtakes it, and others only as long as their counters are less than `lead_tokens` beyond its
// tenant's. After that all wait for it, but no longer than `patience`, twice that the next time,
// and so on: then its tenant's counter is raised to `lead_tokens` beyond theirs, and they may go
// on. So room that comes free is kept for it longer and longer, and one that can never have any
// holds up nobody for ever.
//
// Bounds: the counters of tenants without entries are kept as long as they are beyond those
// served, at most kIdleTenantsMax of them. Counters are moved back together before they lose
// precision. Entries are the caller's to bound (LastOfLargest). One pass tries at most kRefusalsMax
// that find no room.
// Thread-safety: none. No clock inside: times are passed in. Deterministic.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>

#include "common/base/clock.h"

namespace trivium::scheduling {

// Who competes, and for how much.
struct TenantShare {
  uint64_t tenant = 0;  // any number that is the tenant's own
  double weight = 1;    // > 0
};

class FairQueue {
 public:
  struct Options {
    // What it is worth to have all of the prompt cached, as a wait; twice the time to first token
    // that one hopes for. kNoAging: the hit rate alone decides.
    Duration age = std::chrono::seconds(2);
    double lead_tokens = 4096;  // of weight 1
    Duration patience = std::chrono::seconds(1);
  };
  static constexpr Duration kNoAging = Duration::max();

  struct Entry {
    uint64_t ticket = 0;  // unique, rising with arrival
    TenantShare share{};
    int32_t priority = 0;
    double hit_rate = 0;  // 0 … 1
    TimePoint arrived{};
    bool comes_back = false;
  };

  enum class Verdict : uint8_t {
    kTaken,       // it leaves the queue
    kNoRoom,      // it waits for room, as its tenant's others do behind it
    kPassedOver,  // it waits for something else; nobody behind it needs to
    kEnough,      // no more are wanted: the pass ends
  };
  struct Outcome {
    Verdict verdict = Verdict::kNoRoom;
    int64_t tokens = 0;  // that its tenant is charged; for kTaken
  };
  // Must not call the queue.
  using Attempt = std::function<Outcome(uint64_t ticket)>;

  explicit FairQueue(const Options& options) : options_(options) {}
  FairQueue() : FairQueue(Options()) {}

  void Add(const Entry& entry);  // the ticket does not wait already
  bool Remove(uint64_t ticket);  // false: it does not wait

  // Tries those that wait, in order.
  void Serve(TimePoint now, const Attempt& attempt);

  // Of the tenant that has most entries for its weight, the one that would be served last; those
  // that come back neither count nor are named. Whoever has to go when there are too many.
  std::optional<uint64_t> LastOfLargest() const;

  size_t size() const { return entries_.size(); }
  size_t tenants() const { return tenants_.size(); }  // those remembered included

  static constexpr size_t kIdleTenantsMax = 4096;
  static constexpr int kRefusalsMax = 4;

 private:
  // Inside a tenant; the least first.
  struct Rank {
    bool is_new = true;
    int32_t below_priority = 0;
    int64_t due = 0;
    uint64_t ticket = 0;
    auto operator<=>(const Rank&) const = default;
  };
  struct Tenant {
    double weight = 1;
    double counter = 0;  // virtual tokens
    uint64_t turn = 0;   // of equal counters, which was there first
    std::set<Rank> waiting;
    // Of the pass with this number, void in others.
    uint64_t pass = 0;
    bool is_stuck = false;            // one of its entries found no room
    std::optional<Rank> passed_over;  // the last of these
  };
  using Tenants = std::unordered_map<uint64_t, Tenant>;
  struct Place {
    double counter = 0;
    uint64_t turn = 0, tenant = 0;
    auto operator<=>(const Place&) const = default;
  };
  struct Head {
    uint64_t ticket = 0, tenant = 0;
    Duration patience{};
    std::optional<TimePoint> waited_for_since;  // by others
  };

  Rank RankOf(const Entry& entry) const;
  static Place PlaceOf(uint64_t id, const Tenant& tenant) {
    return {tenant.counter, tenant.turn, id};
  }
  Tenant& InPass(uint64_t tenant);
  Verdict Try(uint64_t ticket, const Attempt& attempt);
  void Take(uint64_t ticket, int64_t tokens);
  bool ServeTenant(uint64_t tenant, const Attempt& attempt);
  bool MustWait(const Place& place, TimePoint now);
  void LosePatience(TimePoint now);
  void SetCounter(uint64_t id, Tenant& tenant, double counter);
  void ForgetIdle();
  void MoveBack();

  const Options options_;
  std::unordered_map<uint64_t, std::pair<uint64_t, Rank>> entries_;  // tenant and place by ticket
  Tenants tenants_;
  std::set<Place> order_;  // tenants with entries
  std::set<Place> idle_;   // and those remembered
  std::set<uint64_t> back_;
  std::optional<Head> head_;
  double served_ = 0;  // the highest counter that was served: where newcomers begin
  uint64_t next_turn_ = 0, pass_ = 0;
  // Of this pass.
  int refusals_ = 0;
  bool has_enough_ = false;
};

}  // namespace trivium::scheduling
