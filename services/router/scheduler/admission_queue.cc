#include "services/router/scheduler/admission_queue.h"

#include <utility>

namespace trivium::router {

void AdmissionQueue::Add(Entry entry) {
  const uint64_t ticket = entry.ticket;
  const bool is_new = entries_.emplace(ticket, std::move(entry)).second;
  TRIVIUM_CHECK(is_new, "request {} waits twice", ticket);
}

absl::Status AdmissionQueue::EnforceBound(uint64_t ticket) {
  if (size() <= options_.requests_max || !Remove(ticket)) return absl::OkStatus();
  return ResourceExhausted("{} requests wait for room already, the queue's limit",
                           options_.requests_max);
}

bool AdmissionQueue::Remove(uint64_t ticket) { return entries_.erase(ticket) > 0; }

const AdmissionQueue::Entry* AdmissionQueue::Front() const {
  return entries_.empty() ? nullptr : &entries_.begin()->second;
}

const AdmissionQueue::Entry* AdmissionQueue::After(uint64_t ticket) const {
  const auto it = entries_.upper_bound(ticket);
  return it == entries_.end() ? nullptr : &it->second;
}

bool AdmissionQueue::IsLate(const Entry& entry, TimePoint now,
                            const ClusterSnapshot& cluster) const {
  if (now - entry.waiting_since < options_.timeout) return false;
  return !entry.shape.has_begun ||
         Choose(cluster, entry.shape).status().code() == absl::StatusCode::kFailedPrecondition;
}

std::vector<AdmissionQueue::Expired> AdmissionQueue::Expire(TimePoint now,
                                                            const ClusterSnapshot& cluster) {
  const absl::Status stages = CheckStages(cluster);
  if (stages.ok() || !is_stage_missing_) stage_missing_since_ = now;
  is_stage_missing_ = !stages.ok();
  const bool give_up =
      is_stage_missing_ && now - stage_missing_since_ >= options_.stage_missing_timeout;
  std::vector<Expired> expired;
  for (auto it = entries_.begin(); it != entries_.end();) {
    if (!give_up && !IsLate(it->second, now, cluster)) {
      ++it;
      continue;
    }
    expired.push_back(
        {it->first,
         give_up ? stages
                 : ResourceExhausted("no room on the workers within {:.1f} s",
                                     std::chrono::duration<double>(options_.timeout).count())});
    it = entries_.erase(it);
  }
  return expired;
}

}  // namespace trivium::router
