#include "services/router/dispatch/request_run.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "common/kv/answer_room.h"
#include "common/telemetry/log.h"
#include "services/router/dispatch/random.h"
#include "services/router/dispatch/router_metrics.h"

namespace trivium::router {
namespace {

// A worker's clock may end a call a little before ours would.
constexpr Duration kDeadlineTolerance = std::chrono::milliseconds(50);

void FillOutput(const v1::StageToken& token, v1::OutputToken* out) {
  out->set_index(token.index());
  out->set_id(token.id());
  if (token.has_logprob()) out->set_logprob(token.logprob());
  for (const v1::StageTokenLogprob& top : token.top()) {
    v1::TokenLogprob* one = out->add_top();
    one->set_id(top.id());
    one->set_logprob(top.logprob());
  }
}

}  // namespace

RequestRun::RequestRun(const RunContext& context, uint64_t ticket, RunRequest request,
                       std::shared_ptr<ResponseSink> sink)
    : context_(context),
      ticket_(ticket),
      request_(std::move(request)),
      sink_(std::move(sink)),
      prompt_(request_.prompt_ids, request_.sampling.prompt_logprobs()),
      sequencer_(request_.sampling.max_tokens(), context.vocab),
      assembler_(*context.tokenizer, request_.prompt_ids.back(), request_.stop),
      account_(context.clock->Now()) {
  SetDue();
}

RequestShape RequestRun::Shape() const {
  return {.prompt_tokens = static_cast<int32_t>(request_.prompt_ids.size()) + sequencer_.size(),
          .output_tokens = request_.sampling.max_tokens() - sequencer_.size(),
          .in_full = request_.sampling.ignore_eos() && request_.sampling.stop_token_ids().empty(),
          .preemptions = preemptions_,
          .turn = ticket_,
          .decode_before = decode_before_,
          .blame = blame_};
}

// ---- Entrances: any thread ----

void RequestRun::OnPlaced(const PlacedPair& placed) {
  strand_.Post([self = shared_from_this(), placed] { self->Begin(placed); });
}

void RequestRun::OnRefused(const absl::Status& status) {
  strand_.Post([self = shared_from_this(), status] {
    if (self->phase_ == Phase::kWaiting) self->Fail(status);
  });
}

void RequestRun::OnWorkerLost(WorkerIndex worker, uint64_t epoch, const std::string& why) {
  strand_.Post(
      [self = shared_from_this(), worker, epoch, why] { self->HandleLoss(worker, epoch, why); });
}

void RequestRun::OnTimer() {
  strand_.Post([self = shared_from_this()] { self->HandleTimer(); });
}

void RequestRun::Cancel() {
  strand_.Post([self = shared_from_this()] {
    if (self->phase_ < Phase::kAnswered)
      self->Fail(absl::CancelledError("cancelled by the client"));
  });
}

// ---- An attempt ----

void RequestRun::Begin(const PlacedPair& placed) {
  if (phase_ != Phase::kWaiting) return;  // it ended while the scheduler placed it
  phase_ = Phase::kRunning;
  attempt_.number = ++attempts_begun_;
  attempt_.secret = DrawSecret();
  attempt_.at = placed;
  prompt_.BeginAttempt();
  account_.DecodeOpened(Now());
  // News of a loss that overtook the placement has found the run waiting, and will not come again.
  for (const Role stage : {Role::kDecode, Role::kPrefill}) {
    if (!context_.host->IsGone(stage == Role::kDecode ? placed.decode : placed.prefill)) continue;
    return FailStage(stage, Unavailable("it was lost before the request reached it"), true);
  }
  OpenDecode();
}

template <typename Event>
StageHandlers<Event> RequestRun::HandlersFor(Role stage,
                                             void (RequestRun::*on_event)(const Event&)) {
  const auto post = [self = shared_from_this(), number = attempt_.number](auto&& handle) {
    self->strand_.Post([self, number, handle = std::move(handle)] {
      if (self->phase_ == Phase::kClosed) return;  // the host and its context may be gone
      if (number != self->attempt_.number) {
        return self->context_.metrics->Dropped(DropReason::kLateAttempt);
      }
      handle(*self);
    });
  };
  return {.on_event =
              [post, on_event](const Event& event) {
                post([on_event, event](RequestRun& run) { (run.*on_event)(event); });
              },
          .on_end =
              [post, stage](const absl::Status& status) {
                post([stage, status](RequestRun& run) { run.OnStageEnd(stage, status); });
              }};
}

void RequestRun::OpenDecode() {
  v1::DecodeRequest request;
  request.mutable_key()->set_request_id(request_.id);
  request.mutable_key()->set_attempt(attempt_.number);
  request.mutable_key()->set_secret(attempt_.secret);
  request.set_fingerprint(context_.fingerprint);
  request.mutable_token_ids()->Assign(request_.prompt_ids.begin(), request_.prompt_ids.end());
  request.mutable_token_ids()->Add(sequencer_.ids().begin(), sequencer_.ids().end());
  request.set_output_index(sequencer_.size());
  *request.mutable_sampling() = request_.sampling;
  request.set_numerics_class(attempt_.at.prefill.numerics_class);
  request.set_priority(request_.priority);
  request.set_preemptions(preemptions_);
  attempt_.decode = context_.stages->Decode(attempt_.at.decode.worker, request, request_.deadline,
                                            HandlersFor(Role::kDecode, &RequestRun::OnDecodeEvent));
}

void RequestRun::OpenPrefill(const v1::LandingTicket& ticket) {
  v1::PrefillRequest request;
  request.mutable_key()->set_request_id(request_.id);
  request.mutable_key()->set_attempt(attempt_.number);
  request.mutable_key()->set_secret(attempt_.secret);
  request.set_fingerprint(context_.fingerprint);
  request.mutable_token_ids()->Assign(request_.prompt_ids.begin(), request_.prompt_ids.end());
  request.mutable_token_ids()->Add(sequencer_.ids().begin(), sequencer_.ids().end());
  request.set_output_index(sequencer_.size());
  *request.mutable_sampling() = request_.sampling;
  if (prompt_.is_complete()) request.mutable_sampling()->set_prompt_logprobs(-1);
  *request.mutable_ticket() = ticket;
  attempt_.prefill_ended = false;
  attempt_.prefill =
      context_.stages->Prefill(attempt_.at.prefill.worker, request, request_.deadline,
                               HandlersFor(Role::kPrefill, &RequestRun::OnPrefillEvent));
}

// ---- Events of the present attempt ----

void RequestRun::OnDecodeEvent(const v1::DecodeEvent& event) {
  if (phase_ != Phase::kRunning) return;
  if (event.has_token() && attempt_.has_ticket && !prompt_.is_complete()) {
    HoldToken(event.token());
  } else if (event.has_token() && attempt_.has_ticket) {
    attempt_.decode_has_kv = true;
    Accept(event.token(), Role::kDecode);
  } else if (event.has_ticket() && !attempt_.has_ticket) {
    attempt_.has_ticket = true;
    account_.Reserved(Now());
    context_.host->Reserved(ticket_);
    OpenPrefill(event.ticket());
  } else {
    FailStage(Role::kDecode, absl::InternalError("it broke the order of events"));
  }
}

void RequestRun::OnPrefillEvent(const v1::PrefillEvent& event) {
  if (event.has_sent()) {
    if (!std::exchange(attempt_.has_sent, true)) {
      account_.Sent(event.sent());
      context_.metrics->Transferred(account_.transfer_time());
    }
    if (phase_ == Phase::kFinishing) Complete();
  } else if (event.has_prompt_logprobs() && phase_ == Phase::kRunning) {
    OnPromptLogprobs(event.prompt_logprobs());
  } else if (event.has_first_token() && phase_ == Phase::kRunning) {
    if (!prompt_.is_complete()) {
      return FailStage(Role::kPrefill, absl::DataLossError("it left out tokens of the prompt"));
    }
    context_.host->FirstToken(ticket_);
    Accept(event.first_token(), Role::kPrefill);
  }
}

void RequestRun::OnPromptLogprobs(const v1::PromptLogprobs& message) {
  if (prompt_.is_complete()) return;  // a worker that was not asked for them
  const std::optional<int> first_new = prompt_.Offer(message);
  if (!first_new.has_value()) {
    return FailStage(Role::kPrefill, absl::InternalError("it sent other tokens of the prompt"));
  }
  v1::Delta delta;
  for (int i = *first_new; i < message.tokens_size(); ++i) {
    FillOutput(message.tokens(i), delta.add_prompt_tokens());
  }
  if (delta.prompt_tokens_size() > 0) sink_->OnDelta(delta);
  if (prompt_.is_complete()) AcceptHeld();
}

void RequestRun::HoldToken(const v1::StageToken& token) {
  if (attempt_.held.size() >= static_cast<size_t>(request_.sampling.max_tokens())) {
    return FailStage(Role::kDecode, absl::InternalError("it sent more than max_tokens"));
  }
  attempt_.held.push_back(token);
}

// Any of them may end the attempt.
void RequestRun::AcceptHeld() {
  const auto goes_on = [this, number = attempt_.number] {
    return phase_ == Phase::kRunning && attempt_.number == number;
  };
  const std::vector<v1::StageToken> held = std::exchange(attempt_.held, {});
  attempt_.decode_has_kv = !held.empty();
  for (size_t i = 0; i < held.size() && goes_on(); ++i) Accept(held[i], Role::kDecode);
  if (!held.empty() && goes_on() && attempt_.decode_ended) {
    FailStage(Role::kDecode, absl::InternalError("it ended before the last token"));
  }
}

// Its part is over once it has given its account, or its KV is in use.
bool RequestRun::NeedsPrefill() const {
  return !prompt_.is_complete() || (!attempt_.decode_has_kv && !attempt_.has_sent);
}

void RequestRun::OnStageEnd(Role stage, const absl::Status& status) {
  (stage == Role::kPrefill ? attempt_.prefill_ended : attempt_.decode_ended) = true;
  if (stage == Role::kPrefill) context_.host->PrefillEnded(ticket_);
  switch (phase_) {
    case Phase::kRunning:
      if (stage == Role::kDecode) {
        if (status.ok() && !attempt_.held.empty()) break;  // the last token may be among them
        FailStage(stage,
                  status.ok() ? absl::InternalError("it ended before the last token") : status);
      } else if (NeedsPrefill()) {
        FailStage(stage,
                  status.ok() ? absl::InternalError("it ended without its account") : status);
      }
      break;
    case Phase::kFinishing:
      if (stage == Role::kPrefill) Complete();
      break;
    case Phase::kAnswered:
      CloseIfIdle();
      break;
    case Phase::kWaiting:
    case Phase::kClosed:
      break;
  }
}

void RequestRun::HandleLoss(WorkerIndex worker, uint64_t epoch, const std::string& why) {
  const auto is_at = [&](const PlacedWorker& placed) {
    return placed.worker == worker && placed.epoch == epoch;
  };
  if (phase_ == Phase::kFinishing && is_at(attempt_.at.prefill)) Complete();
  if (phase_ != Phase::kRunning) return;
  if (is_at(attempt_.at.decode)) {
    FailStage(Role::kDecode, Unavailable("{}", why), true);
  } else if (is_at(attempt_.at.prefill) && NeedsPrefill()) {
    FailStage(Role::kPrefill, Unavailable("{}", why), true);
  }
}

void RequestRun::HandleTimer() {
  const TimePoint now = Now();
  if (phase_ < Phase::kAnswered && request_.deadline.has_value() && now >= *request_.deadline) {
    return Fail(absl::DeadlineExceededError(
        fmt::format("deadline passed {} with {} tokens sent",
                    phase_ == Phase::kWaiting ? "while waiting for room" : "on the workers",
                    sequencer_.size())));
  }
  if (now < linger_until_) return;
  if (phase_ == Phase::kFinishing) Complete();
  if (phase_ == Phase::kAnswered && now >= linger_until_) Close();
}

// ---- Tokens ----

void RequestRun::Accept(const v1::StageToken& token, Role from) {
  switch (sequencer_.Offer(token)) {
    case TokenSequencer::Verdict::kNew:
      return Emit(token);
    case TokenSequencer::Verdict::kDuplicate:
      return context_.metrics->Dropped(DropReason::kDuplicate);
    case TokenSequencer::Verdict::kMismatch:
      context_.metrics->Dropped(DropReason::kMismatch);
      if (!IsFast(attempt_.at.decode.numerics_class)) {
        return Fail(absl::InternalError(
            fmt::format("prefill worker {} and decode worker {} disagree on token {}",
                        attempt_.at.prefill.id, attempt_.at.decode.id, token.index())));
      }
      // The client has the first one; whoever goes on from another must start over.
      return FailStage(from, absl::DataLossError("it repeated a token as another one"));
    case TokenSequencer::Verdict::kGap:
      return FailStage(from, absl::DataLossError("it skipped a token"));
    case TokenSequencer::Verdict::kMalformed:
      return FailStage(from, absl::InternalError("it sent a token that cannot be"));
  }
}

void RequestRun::Emit(const v1::StageToken& token) {
  context_.metrics->Token(token.index(), account_.Token(token.index(), Now()));
  v1::Delta delta;
  FillOutput(token, delta.add_tokens());
  // A stop token says that the text has ended and is no part of it.
  std::string text = token.finish_reason() == "stop" ? "" : assembler_.Add(token.id());
  if (sequencer_.is_finished()) text += assembler_.Flush();
  delta.set_text(text);
  sink_->OnDelta(delta);
  if (assembler_.is_stopped()) {
    Finish("stop", !sequencer_.is_finished());
  } else if (sequencer_.is_finished()) {
    Finish(token.finish_reason(), false);
  }
}

// ---- Failures ----

bool RequestRun::IsPastDeadline(const absl::Status& status) const {
  return status.code() == absl::StatusCode::kDeadlineExceeded && request_.deadline.has_value() &&
         Now() + kDeadlineTolerance >= *request_.deadline;
}

void RequestRun::Blame(Role stage) {
  const auto add = [&](WorkerIndex worker, int points) {
    for (WorkerBlame& blame : blame_) {
      if (blame.worker == worker) {
        blame.points += points;
        return;
      }
    }
    blame_.push_back({worker, points});
  };
  const PlacedPair& at = attempt_.at;
  add(stage == Role::kPrefill ? at.prefill.worker : at.decode.worker, 2);
  // A transfer fails at either end: the second prefill worker that fails with the same decode
  // worker is not to blame for it.
  if (stage == Role::kPrefill) add(at.decode.worker, 1);
}

FailureAction RequestRun::ActionOn(Role stage, const absl::Status& status) const {
  const FailureAction action = ActionFor(status);
  const bool may_preempt = stage == Role::kDecode && preemptions_ < kv::kPreemptionsMax;
  return action == FailureAction::kMakeWay && !may_preempt ? FailureAction::kRetry : action;
}

void RequestRun::FailStage(Role stage, const absl::Status& status, bool is_lost) {
  const PlacedWorker& worker = stage == Role::kPrefill ? attempt_.at.prefill : attempt_.at.decode;
  const FailureAction action = ActionOn(stage, status);
  const std::string why =
      fmt::format("{} worker {}: {}", RoleName(stage), worker.id, Message(status));
  if (IsPastDeadline(status)) return Fail(absl::DeadlineExceededError(why));
  if (action == FailureAction::kGiveUp) return Fail(absl::Status(status.code(), ToAbsl(why)));
  const RetryReason reason = is_lost                                 ? RetryReason::kLost
                             : action == FailureAction::kWaitForRoom ? RetryReason::kNoRoom
                             : action == FailureAction::kMakeWay     ? RetryReason::kPreempted
                             : action == FailureAction::kRefuse      ? RetryReason::kRefused
                                                                     : RetryReason::kFailed;
  context_.metrics->Retried(stage, reason);
  if (!is_lost) context_.host->WorkerFailed(worker, action, Message(status));
  if (action != FailureAction::kWaitForRoom) account_.WaitAnew(Now());
  if (action == FailureAction::kMakeWay) ++preemptions_;
  if (action == FailureAction::kRetry || action == FailureAction::kRefuse) {
    Blame(stage);
    telemetry::Log(telemetry::Level::kWarning, "attempt_failed",
                   {{"request_id", request_.id},
                    {"attempt", attempt_.number},
                    {"why", why},
                    {"tokens_sent", sequencer_.size()}});
    if (++failures_ >= context_.attempts_max) {
      return Fail(Unavailable("{} attempts failed; the last: {}", failures_, why));
    }
  }
  // One that was preempted finds nothing of its own where it was.
  WaitAgain(action == FailureAction::kMakeWay ? kNoWorker : attempt_.at.decode.worker);
}

void RequestRun::CancelStreams() {
  if (attempt_.decode != nullptr && !attempt_.decode_ended) attempt_.decode->Cancel();
  if (attempt_.prefill != nullptr && !attempt_.prefill_ended) attempt_.prefill->Cancel();
}

void RequestRun::WaitAgain(WorkerIndex prefers) {
  CancelStreams();
  decode_before_ = prefers;
  attempt_ = {};
  phase_ = Phase::kWaiting;
  context_.host->Wait(ticket_, Shape(), account_.waiting_since());
}

// ---- Ends ----

void RequestRun::Finish(const std::string& reason, bool stop_decoding) {
  phase_ = Phase::kFinishing;
  finish_reason_ = reason;
  if (stop_decoding && !attempt_.decode_ended) attempt_.decode->Cancel();
  if (attempt_.has_sent || attempt_.prefill_ended) return Complete();
  linger_until_ = Now() + context_.linger;
  SetDue();
}

void RequestRun::Complete() {
  phase_ = Phase::kAnswered;
  v1::Done done;
  done.set_request_id(request_.id);
  done.set_finish_reason(finish_reason_);
  done.mutable_usage()->set_prompt_tokens(static_cast<int32_t>(request_.prompt_ids.size()));
  account_.Fill(&done);
  done.mutable_served_by()->set_prefill_worker(attempt_.at.prefill.id);
  done.mutable_served_by()->set_decode_worker(attempt_.at.decode.id);
  done.mutable_served_by()->set_attempts(1 + failures_);
  done.mutable_served_by()->set_preemptions(preemptions_);
  done.set_seed(request_.sampling.seed());
  sink_->OnDone(done);
  RecordEnd(absl::OkStatus());
  context_.host->Answered(ticket_);
  linger_until_ = Now() + context_.linger;
  SetDue();
  CloseIfIdle();
}

void RequestRun::Fail(const absl::Status& status) {
  sink_->OnError(status);
  RecordEnd(status);
  context_.host->Answered(ticket_);
  Close();
}

void RequestRun::CloseIfIdle() {
  if (attempt_.decode_ended && attempt_.prefill_ended) Close();
}

void RequestRun::Close() {
  CancelStreams();
  phase_ = Phase::kClosed;
  attempt_.decode = attempt_.prefill = nullptr;
  context_.host->Closed(ticket_);
}

void RequestRun::RecordEnd(const absl::Status& status) const {
  RouterMetrics& metrics = *context_.metrics;
  metrics.Ended(status.code());
  metrics.Prompt(static_cast<int32_t>(request_.prompt_ids.size()));
  if (status.ok()) metrics.Answered(account_.queue_time(), account_.Total(Now()));
  if (account_.time_per_token() > Duration(0)) metrics.PerToken(account_.time_per_token());
  telemetry::Log(status.ok() ? telemetry::Level::kInfo : telemetry::Level::kWarning, "request_end",
                 {{"request_id", request_.id},
                  {"code", absl::StatusCodeToString(status.code())},
                  {"why", Message(status)},
                  {"finish_reason", finish_reason_},
                  {"prompt_tokens", request_.prompt_ids.size()},
                  {"output_tokens", sequencer_.size()},
                  {"prefill", attempt_.at.prefill.id},
                  {"decode", attempt_.at.decode.id},
                  {"failed_attempts", failures_},
                  {"preemptions", preemptions_},
                  {"total_ms", account_.Total(Now()) / std::chrono::milliseconds(1)}});
}

void RequestRun::SetDue() {
  TimePoint due = TimePoint(Duration(std::numeric_limits<int64_t>::max()));
  if (phase_ < Phase::kAnswered && request_.deadline.has_value()) due = *request_.deadline;
  if (phase_ == Phase::kFinishing || phase_ == Phase::kAnswered) due = std::min(due, linger_until_);
  due_ns_.store(due.time_since_epoch().count(), std::memory_order_relaxed);
}

}  // namespace trivium::router
