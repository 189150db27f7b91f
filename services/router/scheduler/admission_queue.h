// The router's bounded queue: requests that wait until the scheduler finds room for them.
//
// Order is that of arrival, also for a request that comes back after a refusal or a failed attempt:
// it takes its old place, in front of all that arrived later.
// Thread-safety: none; the dispatcher's lock covers it. No clock inside: times are passed in.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "common/base/clock.h"
#include "common/base/status.h"
#include "services/router/scheduler/placement.h"

namespace trivium::router {

class AdmissionQueue {
 public:
  struct Options {
    int32_t requests_max = 1024;
    Duration timeout = std::chrono::seconds(60);
    Duration stage_missing_timeout = std::chrono::seconds(3);
  };
  struct Entry {
    uint64_t ticket = 0;  // drawn by the caller in order of arrival
    RequestShape shape;
    TimePoint waiting_since;
  };
  struct Expired {
    uint64_t ticket = 0;
    absl::Status status;
  };

  explicit AdmissionQueue(Options options) : options_(options) {}

  // Always taken: EnforceBound comes after the attempt to place it, so that a queue of length 0
  // still serves what finds room at once.
  void Add(Entry entry);
  // RESOURCE_EXHAUSTED, and `ticket` is taken out again, when it waits and more than `requests_max`
  // do. Not asked of requests that come back: there are no more of them than the workers admit.
  absl::Status EnforceBound(uint64_t ticket);
  bool Remove(uint64_t ticket);

  // The first that waits, and the first that came after `ticket`; null when there is none. Valid
  // until the next change.
  const Entry* Front() const;
  const Entry* After(uint64_t ticket) const;
  int32_t size() const { return static_cast<int32_t>(entries_.size()); }

  // Takes out and returns those that waited longer than the timeout (RESOURCE_EXHAUSTED) and, once
  // a stage has been missing for its timeout, all (UNAVAILABLE, naming it). A request that has
  // begun waits on for room that is there and taken: those who have it end, and it stands before
  // all that came later. What bounds its wait is its deadline and its client.
  std::vector<Expired> Expire(TimePoint now, const ClusterSnapshot& cluster);

 private:
  bool IsLate(const Entry& entry, TimePoint now, const ClusterSnapshot& cluster) const;

  const Options options_;
  std::map<uint64_t, Entry> entries_;
  bool is_stage_missing_ = false;
  TimePoint stage_missing_since_;
};

}  // namespace trivium::router
