#include "services/router/scheduler/admission_queue.h"

#include <algorithm>
#include <utility>

namespace trivium::router {

double HitRate(const RequestShape& shape) {
  int32_t most = 0;
  for (const Held& held : shape.held) most = std::max(most, held.disk_tokens);
  return static_cast<double>(most) / std::max(1, shape.prompt_tokens);
}

void AdmissionQueue::Add(Entry entry, TimePoint now) {
  const uint64_t ticket = entry.ticket;
  order_.Add({.ticket = ticket,
              .share = entry.share,
              .priority = entry.priority,
              .hit_rate = HitRate(entry.shape),
              .arrived = entry.waiting_since,
              .comes_back = entry.comes_back});
  entries_.emplace(ticket, Waiting{std::move(entry), now, placements_});
}

std::optional<AdmissionQueue::Expired> AdmissionQueue::EnforceBound() {
  if (size() <= options_.requests_max) return std::nullopt;
  const std::optional<uint64_t> ticket = order_.LastOfLargest();
  if (!ticket.has_value()) return std::nullopt;
  Remove(*ticket);
  return Expired{*ticket, ResourceExhausted("{} requests wait for room already, the queue's limit",
                                            options_.requests_max)};
}

bool AdmissionQueue::Remove(uint64_t ticket) {
  return order_.Remove(ticket) && entries_.erase(ticket) > 0;
}

scheduling::FairQueue::Outcome AdmissionQueue::TryToPlace(uint64_t ticket,
                                                          const ClusterSnapshot& cluster,
                                                          TimePoint now, const Actions& actions) {
  using Verdict = scheduling::FairQueue::Verdict;
  const auto waiting = entries_.find(ticket);
  RequestShape& shape = waiting->second.entry.shape;
  if (waiting->second.placements != placements_ || now - waiting->second.looked_up >= kHeldFor) {
    shape.held = actions.look_up(ticket);
    waiting->second.placements = placements_;
    waiting->second.looked_up = now;
  }
  Decision decision;
  const absl::StatusOr<Placement> placement =
      Choose(cluster, shape, actions.explains ? &decision : nullptr);
  if (placement.ok()) {
    ++placements_;
    const RequestShape placed = std::move(shape);
    entries_.erase(waiting);
    decision.placement = *placement;
    actions.place(ticket, placed, std::move(decision));
    const WorkerIndex computes =
        placement->prefill == kNoWorker ? placement->decode : placement->prefill;
    return {Verdict::kTaken, TokensToCompute(placed, computes)};
  }
  switch (placement.status().code()) {
    case absl::StatusCode::kInvalidArgument:
      entries_.erase(waiting);
      actions.refuse(ticket, placement.status());
      return {Verdict::kTaken, 0};
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kFailedPrecondition:
      return {Verdict::kPassedOver};
    default:
      return {Verdict::kNoRoom};
  }
}

void AdmissionQueue::Pump(const ClusterSnapshot& cluster, TimePoint now, const Actions& actions) {
  order_.Serve(now, [&](uint64_t ticket) { return TryToPlace(ticket, cluster, now, actions); });
}

bool AdmissionQueue::IsLate(const Entry& entry, TimePoint now,
                            const ClusterSnapshot& cluster) const {
  if (now - entry.waiting_since < options_.timeout) return false;
  return !entry.shape.has_begun || LacksWorker(entry.shape, cluster);
}

bool AdmissionQueue::LacksWorker(const RequestShape& shape, const ClusterSnapshot& cluster) {
  return Choose(cluster, shape).status().code() == absl::StatusCode::kFailedPrecondition;
}

std::vector<AdmissionQueue::Expired> AdmissionQueue::Expire(TimePoint now,
                                                            const ClusterSnapshot& cluster) {
  const absl::Status stages = CheckStages(cluster);
  if (stages.ok() || !is_stage_missing_) stage_missing_since_ = now;
  is_stage_missing_ = !stages.ok();
  const bool give_up =
      is_stage_missing_ && now - stage_missing_since_ >= options_.stage_missing_timeout;
  const absl::Status pictures = CheckPictureStages(cluster);
  if (pictures.ok() || !lacks_pictures_) pictures_missing_since_ = now;
  lacks_pictures_ = !pictures.ok();
  const bool gives_up_pictures =
      lacks_pictures_ && now - pictures_missing_since_ >= options_.stage_missing_timeout;
  std::vector<Expired> expired;
  for (auto it = entries_.begin(); it != entries_.end();) {
    const Entry& entry = it->second.entry;
    const bool lacks_pictures =
        gives_up_pictures && entry.shape.picture_blocks > 0 && LacksWorker(entry.shape, cluster);
    if (!give_up && !lacks_pictures && !IsLate(entry, now, cluster)) {
      ++it;
      continue;
    }
    expired.push_back(
        {it->first,
         give_up ? stages
         : lacks_pictures
             ? pictures
             : ResourceExhausted("no room on the workers within {:.1f} s",
                                 std::chrono::duration<double>(options_.timeout).count())});
    order_.Remove(it->first);
    it = entries_.erase(it);
  }
  return expired;
}

}  // namespace trivium::router
