// The router's bounded queue: requests that wait until the scheduler finds room for them.
//
// Order is that of scheduling::FairQueue: tenants by what they were given for their weights, inside
// a tenant by priority, then by how much of the prompt workers hold, with ageing. A request that
// comes back after a refusal or a failed attempt stands in front of all that were never placed.
// Thread-safety: none; the dispatcher's lock covers it. No clock inside: times are passed in.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "common/base/clock.h"
#include "common/base/status.h"
#include "common/scheduling/fair_queue.h"
#include "services/router/scheduler/decision.h"
#include "services/router/scheduler/placement.h"

namespace trivium::router {

class AdmissionQueue {
 public:
  struct Options {
    int32_t requests_max = 1024;
    Duration timeout = std::chrono::seconds(60);
    Duration stage_missing_timeout = std::chrono::seconds(3);
    scheduling::FairQueue::Options order{};
  };
  struct Entry {
    uint64_t ticket = 0;  // drawn by the caller in order of arrival
    RequestShape shape;   // with what workers hold of it now
    TimePoint waiting_since;
    scheduling::TenantShare share{};
    int32_t priority = 0;
    bool comes_back = false;  // it was placed before
  };
  struct Expired {
    uint64_t ticket = 0;
    absl::Status status;
  };
  // What is done with those that wait. Must not call the queue.
  struct Actions {
    std::function<std::vector<Held>(uint64_t ticket)> look_up;
    // It has left the queue.
    std::function<void(uint64_t ticket, const RequestShape&, Decision)> place;
    std::function<void(uint64_t ticket, const absl::Status&)> refuse;
    bool explains = true;  // else the decision says where alone
  };

  explicit AdmissionQueue(Options options) : options_(options), order_(options.order) {}

  // Always taken: EnforceBound comes after the attempt to place it, so that a queue of length 0
  // still serves what finds room at once.
  void Add(Entry entry, TimePoint now);
  // Where more than `requests_max` wait, takes out the last one, in order, of the tenant that has
  // most of them for its weight, with RESOURCE_EXHAUSTED. To be asked after each request that is
  // new; there are no more of those that come back than the workers admit.
  std::optional<Expired> EnforceBound();
  bool Remove(uint64_t ticket);
  int32_t size() const { return static_cast<int32_t>(entries_.size()); }

  // Places all that there is room for, and refuses what no worker could ever hold. Nobody but other
  // tenants' requests, within FairQueue's bounds, overtakes one that waits for room, so that a
  // large request is not starved by small ones.
  void Pump(const ClusterSnapshot& cluster, TimePoint now, const Actions& actions);

  // Takes out and returns those that waited longer than the timeout (RESOURCE_EXHAUSTED) and, once
  // a stage has been missing for its timeout, all (UNAVAILABLE, naming it). A request that has
  // begun waits on for room that is there and taken: those who have it end, and it stands before
  // all that were never placed. What bounds its wait is its deadline and its client.
  std::vector<Expired> Expire(TimePoint now, const ClusterSnapshot& cluster);

  // What was looked up counts for so long, unless something was placed since.
  static constexpr Duration kHeldFor = std::chrono::milliseconds(20);

 private:
  struct Waiting {
    Entry entry;
    TimePoint looked_up;
    uint64_t placements = 0;  // that had been made by then
  };
  bool IsLate(const Entry& entry, TimePoint now, const ClusterSnapshot& cluster) const;
  // No worker that is there now could ever take it.
  static bool LacksWorker(const RequestShape& shape, const ClusterSnapshot& cluster);
  scheduling::FairQueue::Outcome TryToPlace(uint64_t ticket, const ClusterSnapshot& cluster,
                                            TimePoint now, const Actions& actions);

  const Options options_;
  std::map<uint64_t, Waiting> entries_;
  scheduling::FairQueue order_;
  uint64_t placements_ = 0;
  bool is_stage_missing_ = false;
  bool lacks_pictures_ = false;  // a stage that requests with pictures need
  TimePoint pictures_missing_since_{};
  TimePoint stage_missing_since_;
};

// Of the prompt's tokens, the share that some worker holds: 0 … 1.
double HitRate(const RequestShape& shape);

}  // namespace trivium::router
