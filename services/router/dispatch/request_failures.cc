// What a RequestRun does when a stage has failed one of its legs.
#include <algorithm>

#include "common/kv/answer_room.h"
#include "common/telemetry/log.h"
#include "services/router/dispatch/request_run.h"
#include "services/router/dispatch/router_metrics.h"

namespace trivium::router {
namespace {

// A worker's clock may end a call a little before ours would.
constexpr Duration kDeadlineTolerance = std::chrono::milliseconds(50);

}  // namespace

bool RequestRun::IsPastDeadline(const absl::Status& status) const {
  return status.code() == absl::StatusCode::kDeadlineExceeded && request_.deadline.has_value() &&
         Now() + kDeadlineTolerance >= *request_.deadline;
}

FailureAction RequestRun::ActionOn(const Leg& leg, Role stage, const absl::Status& status) const {
  const FailureAction action = ActionFor(status);
  const bool may_preempt = stage == Role::kDecode && leg.preemptions < kv::kPreemptionsMax;
  return action == FailureAction::kMakeWay && !may_preempt ? FailureAction::kRetry : action;
}

void RequestRun::FailStage(Leg& leg, Role stage, const absl::Status& status, bool is_lost) {
  const PlacedWorker& worker = leg.At(stage);
  const FailureAction action = ActionOn(leg, stage, status);
  const std::string why =
      fmt::format("{} worker {}: {}", RoleName(stage), worker.id, Message(status));
  if (IsPastDeadline(status)) return Fail(absl::DeadlineExceededError(why));
  if (action == FailureAction::kGiveUp) return Fail(absl::Status(status.code(), ToAbsl(why)));
  const RetryReason reason =
      is_lost                                 ? RetryReason::kLost
      : action == FailureAction::kWaitForRoom ? RetryReason::kNoRoom
      : action == FailureAction::kMakeWay     ? RetryReason::kPreempted
      : action == FailureAction::kElsewhere || action == FailureAction::kRefuse
          ? RetryReason::kRefused
          : RetryReason::kFailed;
  context_.metrics->Retried(stage, reason);
  if (!is_lost) context_.host->WorkerFailed(worker, action, Message(status));
  if (action != FailureAction::kWaitForRoom) leg.times.WaitAnew(Now());
  if (action == FailureAction::kMakeWay) {
    ++preemptions_;
    ++leg.preemptions;
  }
  if (action != FailureAction::kWaitForRoom && action != FailureAction::kMakeWay) {
    leg.Blame(stage);
    telemetry::Log(telemetry::Level::kWarning, "attempt_failed",
                   {{"request_id", leg.id},
                    {"attempt", leg.attempt.number},
                    {"why", why},
                    {"tokens_sent", account_.tokens()}});
    ++failures_;
    if (++leg.failures >= context_.attempts_max) {
      return Fail(Unavailable("{} attempts failed; the last: {}", leg.failures, why));
    }
  }
  // One that was preempted finds nothing of its own where it was.
  TryAgain(leg, action == FailureAction::kMakeWay ? kNoWorker : leg.attempt.at.decode.worker);
}

void RequestRun::TryAgain(Leg& leg, WorkerIndex prefers) {
  leg.CancelStreams();
  DropEncodes(leg);
  leg.decode_before = prefers;
  const auto all = ChoicesOf(leg);
  const bool has_tokens =
      std::any_of(all.begin(), all.end(), [](const auto& one) { return one.tokens().size() > 0; });
  if (leg.choices > 1 && has_tokens) return GoOnAlone(leg);
  leg.attempt = {};
  leg.phase = Phase::kWaiting;
  context_.host->Wait(leg.ticket, ShapeOf(leg), leg.times.waiting_since());
}

void RequestRun::GoOnAlone(Leg& leg) {
  const size_t first = legs_.size();
  for (int32_t i = 0; i < leg.choices; ++i) {
    if (!ChoicesOf(leg)[static_cast<size_t>(i)].is_over()) legs_.emplace_back(leg, i);
  }
  for (size_t i = first; i < legs_.size(); ++i) {
    context_.host->WaitApart(legs_[i].ticket, shared_from_this(), ShapeOf(legs_[i]),
                             legs_[i].times.waiting_since());
  }
  context_.host->Answered(leg.ticket);
  Close(leg);
}

}  // namespace trivium::router
