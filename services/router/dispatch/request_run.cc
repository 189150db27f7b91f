#include "services/router/dispatch/request_run.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "common/telemetry/log.h"
#include "services/router/dispatch/random.h"
#include "services/router/dispatch/router_metrics.h"
#include "services/router/dispatch/stage_messages.h"

namespace trivium::router {

RequestRun::RequestRun(const RunContext& context, uint64_t ticket, RunRequest request,
                       std::shared_ptr<ResponseSink> sink)
    : context_(context),
      request_(std::move(request)),
      sink_(std::move(sink)),
      prompt_(request_.prompt_ids, request_.sampling.prompt_logprobs()),
      account_(context.clock->Now(), static_cast<int32_t>(request_.prompt_ids.size())) {
  for (int32_t i = 0; i < request_.choices; ++i) {
    choices_.emplace_back(
        TokenSequencer(request_.sampling.max_tokens(), context.vocab),
        TextAssembler(*context.tokenizer, request_.prompt_ids.back(), request_.stop));
  }
  legs_.emplace_back(ticket, request_.id, request_.choices, Now());
  SetDue();
}

std::span<const OutputChoice> RequestRun::ChoicesOf(const Leg& leg) const {
  return std::span(choices_).subspan(static_cast<size_t>(leg.choice_begin),
                                     static_cast<size_t>(leg.choices));
}

RequestShape RequestRun::Shape() const { return ShapeOf(legs_.front()); }

RequestShape RequestRun::ShapeOf(const Leg& leg) const {
  const int32_t emitted = ChoicesOf(leg).front().tokens().size();
  return {.prompt_tokens = static_cast<int32_t>(request_.prompt_ids.size()) + emitted,
          .output_tokens = request_.sampling.max_tokens() - emitted,
          .choices = leg.choices,
          .in_full = leg.choices > 1 ||
                     (request_.sampling.ignore_eos() && request_.sampling.stop_token_ids().empty()),
          .preemptions = leg.preemptions,
          .has_begun = account_.tokens() > 0,
          .needs_prefill_worker = !prompt_.is_complete(),
          .picture_blocks = PictureBlocksOf(request_.slices),
          .pictures_end = request_.slices.empty() ? 0 : request_.slices.back().span.end(),
          .turn = leg.ticket / kTicketStride + leg.ticket % kTicketStride,
          .decode_before = leg.decode_before,
          .blame = leg.blame};
}

// ---- Entrances: any thread ----

void RequestRun::PostTo(uint64_t ticket, std::function<void(RequestRun&, Leg&)> task) {
  strand_.Post([self = shared_from_this(), ticket, task = std::move(task)] {
    for (Leg& leg : self->legs_) {
      if (leg.ticket == ticket) return task(*self, leg);
    }
  });
}

void RequestRun::OnPlaced(uint64_t ticket, const PlacedPair& placed) {
  PostTo(ticket, [placed](RequestRun& run, Leg& leg) { run.Begin(leg, placed); });
}

void RequestRun::OnRefused(uint64_t ticket, const absl::Status& status) {
  PostTo(ticket, [status](RequestRun& run, Leg& leg) {
    if (leg.phase == Phase::kWaiting) run.Fail(status);
  });
}

void RequestRun::OnWorkerLost(uint64_t ticket, WorkerIndex worker, uint64_t epoch,
                              const std::string& why) {
  PostTo(ticket, [worker, epoch, why](RequestRun& run, Leg& leg) {
    run.HandleLoss(leg, worker, epoch, why);
  });
}

void RequestRun::OnTimer() {
  strand_.Post([self = shared_from_this()] { self->HandleTimer(); });
}

void RequestRun::Cancel() {
  strand_.Post([self = shared_from_this()] {
    if (!self->has_ended_) self->Fail(absl::CancelledError("cancelled by the client"));
  });
}

// ---- An attempt ----

void RequestRun::Begin(Leg& leg, const PlacedPair& placed) {
  if (leg.phase != Phase::kWaiting) return;  // it ended while the scheduler placed it
  leg.phase = Phase::kRunning;
  leg.attempt.number = ++leg.attempts_begun;
  leg.attempt.secret = DrawSecret();
  leg.attempt.at = at_ = placed;
  prompt_.BeginAttempt();
  leg.times.DecodeOpened(Now());
  // News of a loss that overtook the placement has found the leg waiting, and will not come again.
  for (const Role stage : {Role::kDecode, Role::kPrefill}) {
    if (leg.At(stage).worker == kNoWorker || !context_.host->IsGone(leg.At(stage))) continue;
    return FailStage(leg, stage, Unavailable("it was lost before the request reached it"), true);
  }
  OpenDecode(leg);
}

std::function<void(RequestRun::Handle)> RequestRun::PosterFor(Leg& leg) {
  return [self = shared_from_this(), &leg, number = leg.attempt.number](Handle handle) {
    self->strand_.Post([self, &leg, number, handle = std::move(handle)] {
      if (leg.phase == Phase::kClosed) return;  // the host and its context may be gone
      if (number != leg.attempt.number) {
        return self->context_.metrics->Dropped(DropReason::kLateAttempt);
      }
      handle(*self, leg);
    });
  };
}

template <typename Event>
StageHandlers<Event> RequestRun::HandlersFor(Leg& leg, Role stage,
                                             void (RequestRun::*on_event)(Leg&, const Event&)) {
  const auto post = PosterFor(leg);
  return {
      .on_event =
          [post, on_event](const Event& event) {
            post([on_event, event](RequestRun& run, Leg& of) { (run.*on_event)(of, event); });
          },
      .on_end =
          [post, stage](const absl::Status& status) {
            post([stage, status](RequestRun& run, Leg& of) { run.OnStageEnd(of, stage, status); });
          }};
}

// What both stages are told about the leg.
template <typename Message>
Message RequestRun::RequestOf(const Leg& leg) const {
  const TokenSequencer& emitted = ChoicesOf(leg).front().tokens();
  Message request;
  request.set_fingerprint(context_.fingerprint);
  request.mutable_token_ids()->Assign(request_.prompt_ids.begin(), request_.prompt_ids.end());
  request.mutable_token_ids()->Add(emitted.ids().begin(), emitted.ids().end());
  request.set_output_index(emitted.size());
  request.set_choices(leg.choices);
  FillKey(leg, request.mutable_key());
  FillDomains(request_.kv_domains, request.mutable_kv_domains());
  FillSlices(request_.slices, request.token_ids_size(), request.mutable_slices());
  *request.mutable_sampling() = request_.sampling;
  request.mutable_sampling()->set_seed(request_.sampling.seed() +
                                       static_cast<uint64_t>(leg.choice_begin));
  return request;
}

void RequestRun::OpenDecode(Leg& leg) {
  auto request = RequestOf<v1::DecodeRequest>(leg);
  request.set_prefills(leg.attempt.is_local());
  request.set_numerics_class(leg.attempt.is_local() ? leg.attempt.at.decode.numerics_class
                                                    : leg.attempt.at.prefill.numerics_class);
  request.set_priority(request_.priority);
  request.set_preemptions(leg.preemptions);
  leg.attempt.decode =
      context_.stages->Decode(leg.attempt.at.decode.worker, request, request_.deadline,
                              HandlersFor(leg, Role::kDecode, &RequestRun::OnDecodeEvent));
}

void RequestRun::OpenPrefill(Leg& leg, const v1::LandingTicket& ticket) {
  auto request = RequestOf<v1::PrefillRequest>(leg);
  if (prompt_.is_complete()) request.mutable_sampling()->set_prompt_logprobs(-1);
  *request.mutable_ticket() = ticket;
  request.set_priority(request_.priority);
  FillShare(request_.share, request.mutable_share());
  if (leg.attempt.at.pull_tokens > 0) {
    request.set_pull_tokens(leg.attempt.at.pull_tokens);
    request.set_pull_ms(std::chrono::duration<double, std::milli>(leg.attempt.at.pull_for).count());
  }
  leg.attempt.prefill_ended = false;
  leg.attempt.prefill =
      context_.stages->Prefill(leg.attempt.at.prefill.worker, request, request_.deadline,
                               HandlersFor(leg, Role::kPrefill, &RequestRun::OnPrefillEvent));
}

// ---- Events of a leg's present attempt ----

void RequestRun::OnDecodeEvent(Leg& leg, const v1::DecodeEvent& event) {
  if (leg.phase != Phase::kRunning) return;
  if (event.has_token() && leg.attempt.has_begun && !prompt_.is_complete()) {
    HoldToken(leg, event.token());
  } else if (event.has_token() && leg.attempt.has_begun) {
    leg.attempt.decode_has_kv = true;
    Accept(leg, event.token(), Role::kDecode);
  } else if (leg.attempt.has_begun) {
    FailStage(leg, Role::kDecode, absl::InternalError("it broke the order of events"));
  } else if (event.has_ticket() && !leg.attempt.is_local()) {
    OnReserved(leg);
    OpenPrefill(leg, event.ticket());
  } else if (event.has_prefilled() && leg.attempt.is_local()) {
    OnReserved(leg);
    leg.attempt.has_sent = true;
    account_.Prefilled(event.prefilled());
    context_.host->FirstToken(leg.ticket);
  } else {
    FailStage(leg, Role::kDecode, absl::InternalError("it broke the order of events"));
  }
}

void RequestRun::OnReserved(Leg& leg) {
  leg.attempt.has_begun = true;
  leg.times.Reserved(Now());
  context_.host->Reserved(leg.ticket);
}

void RequestRun::OnPrefillEvent(Leg& leg, const v1::PrefillEvent& event) {
  if (event.has_sent()) {
    if (!std::exchange(leg.attempt.has_sent, true)) {
      account_.Sent(event.sent());
      context_.metrics->Transferred(account_.transfer_time());
      context_.host->Transferred(leg.ticket, event.sent().kv_bytes(), account_.transfer_time());
    }
    CompleteIfAccounted(leg);
  } else if (event.has_pull_ticket() && leg.phase == Phase::kRunning) {
    OnPullTicket(leg, event.pull_ticket());
  } else if (event.has_slice_tickets() && leg.phase == Phase::kRunning) {
    OnSliceTickets(leg, event.slice_tickets());
  } else if (event.has_prompt_logprobs() && leg.phase == Phase::kRunning) {
    OnPromptLogprobs(leg, event.prompt_logprobs());
  } else if (event.has_first_token() && leg.phase == Phase::kRunning) {
    if (!prompt_.is_complete()) {
      return FailStage(leg, Role::kPrefill,
                       absl::DataLossError("it left out tokens of the prompt"));
    }
    context_.host->FirstToken(leg.ticket);
    Accept(leg, event.first_token(), Role::kPrefill);
  }
}

void RequestRun::OnPromptLogprobs(Leg& leg, const v1::PromptLogprobs& message) {
  if (prompt_.is_complete()) return;  // a worker that was not asked for them
  const std::optional<int> first_new = prompt_.Offer(message);
  if (!first_new.has_value()) {
    return FailStage(leg, Role::kPrefill,
                     absl::InternalError("it sent other tokens of the prompt"));
  }
  v1::Delta delta;
  for (int i = *first_new; i < message.tokens_size(); ++i) {
    FillOutput(message.tokens(i), delta.add_prompt_tokens());
  }
  if (delta.prompt_tokens_size() > 0) sink_->OnDelta(delta);
  if (prompt_.is_complete()) AcceptHeld(leg);
}

void RequestRun::HoldToken(Leg& leg, const v1::StageToken& token) {
  const auto tokens_max =
      static_cast<size_t>(leg.choices) * static_cast<size_t>(request_.sampling.max_tokens());
  if (leg.attempt.held.size() >= tokens_max) {
    return FailStage(leg, Role::kDecode, absl::InternalError("it sent more than max_tokens"));
  }
  leg.attempt.held.push_back(token);
}

// Any of them may end the attempt.
void RequestRun::AcceptHeld(Leg& leg) {
  const auto goes_on = [&leg, number = leg.attempt.number] {
    return leg.phase == Phase::kRunning && leg.attempt.number == number;
  };
  const std::vector<v1::StageToken> held = std::exchange(leg.attempt.held, {});
  leg.attempt.decode_has_kv = !held.empty();
  for (size_t i = 0; i < held.size() && goes_on(); ++i) Accept(leg, held[i], Role::kDecode);
  if (!held.empty() && goes_on() && leg.attempt.decode_ended) {
    FailStage(leg, Role::kDecode, absl::InternalError("it ended before the last token"));
  }
}

// Its part is over once it has given its account, or its KV is in use.
bool RequestRun::NeedsPrefill(const Leg& leg) const {
  return !prompt_.is_complete() || (!leg.attempt.decode_has_kv && !leg.attempt.has_sent);
}

void RequestRun::OnStageEnd(Leg& leg, Role stage, const absl::Status& status) {
  (stage == Role::kPrefill ? leg.attempt.prefill_ended : leg.attempt.decode_ended) = true;
  if (stage == Role::kPrefill) context_.host->PrefillEnded(leg.ticket);
  switch (leg.phase) {
    case Phase::kRunning:
      if (stage == Role::kDecode) {
        if (status.ok() && !leg.attempt.held.empty()) break;  // the last token may be among them
        FailStage(leg, stage,
                  status.ok() ? absl::InternalError("it ended before the last token") : status);
      } else if (NeedsPrefill(leg)) {
        FailStage(leg, stage,
                  status.ok() ? absl::InternalError("it ended without its account") : status);
      }
      break;
    case Phase::kFinishing:
      CompleteIfAccounted(leg);
      break;
    case Phase::kAnswered:
      if (leg.is_idle()) Close(leg);
      break;
    case Phase::kWaiting:
    case Phase::kClosed:
      break;
  }
}

void RequestRun::HandleLoss(Leg& leg, WorkerIndex worker, uint64_t epoch, const std::string& why) {
  const auto is_at = [&](Role stage) {
    return leg.At(stage).worker == worker && leg.At(stage).epoch == epoch;
  };
  if (leg.phase == Phase::kFinishing && is_at(Role::kPrefill)) Complete(leg);
  if (leg.phase != Phase::kRunning) return;
  // First, since it ends the attempt: a prefill worker may encode too.
  for (const Role stage : {Role::kDecode, Role::kPrefill}) {
    if (!is_at(stage) || (stage == Role::kPrefill && !NeedsPrefill(leg))) continue;
    return FailStage(leg, stage, Unavailable("{}", why), true);
  }
  HandleEncoderLoss(leg, worker, epoch, why);
}

void RequestRun::HandleTimer() {
  const TimePoint now = Now();
  if (!has_ended_ && request_.deadline.has_value() && now >= *request_.deadline) {
    const bool waits = std::any_of(legs_.begin(), legs_.end(),
                                   [](const Leg& leg) { return leg.phase == Phase::kWaiting; });
    return Fail(absl::DeadlineExceededError(
        fmt::format("deadline passed {} with {} tokens sent",
                    waits ? "while waiting for room" : "on the workers", account_.tokens())));
  }
  for (Leg& leg : legs_) {
    if (leg.phase == Phase::kRunning && leg.attempt.encode.retry_at <= now) AskForSlices(leg);
    if (leg.phase == Phase::kFinishing && now >= leg.linger_until) Complete(leg);
    if (leg.phase == Phase::kAnswered && now >= leg.linger_until) Close(leg);
  }
}

// ---- Tokens ----

void RequestRun::Accept(Leg& leg, const v1::StageToken& token, Role from) {
  if (token.choice() < 0 || token.choice() >= leg.choices) {
    return FailStage(leg, from, absl::InternalError("it sent a token of no choice"));
  }
  const int32_t number = leg.choice_begin + token.choice();
  OutputChoice& choice = choices_[static_cast<size_t>(number)];
  if (choice.is_over()) return;  // the worker does not know of a stop string
  switch (choice.Offer(token)) {
    case TokenSequencer::Verdict::kNew:
      return Emit(leg, number, token);
    case TokenSequencer::Verdict::kDuplicate:
      return context_.metrics->Dropped(DropReason::kDuplicate);
    case TokenSequencer::Verdict::kMismatch:
      context_.metrics->Dropped(DropReason::kMismatch);
      if (!IsFast(leg.attempt.at.decode.numerics_class)) {
        return Fail(absl::InternalError(
            fmt::format("prefill worker {} and decode worker {} disagree on token {}",
                        leg.attempt.at.prefill.id, leg.attempt.at.decode.id, token.index())));
      }
      // The client has the first one; whoever goes on from another must start over.
      return FailStage(leg, from, absl::DataLossError("it repeated a token as another one"));
    case TokenSequencer::Verdict::kGap:
      return FailStage(leg, from, absl::DataLossError("it skipped a token"));
    case TokenSequencer::Verdict::kMalformed:
      return FailStage(leg, from, absl::InternalError("it sent a token that cannot be"));
  }
}

void RequestRun::Emit(Leg& leg, int32_t number, const v1::StageToken& token) {
  const Duration since = account_.Token(number, token.index(), Now(), leg.times);
  context_.metrics->Token(token.index(), since);
  v1::Delta delta;
  delta.set_choice(number);
  choices_[static_cast<size_t>(number)].Fill(token, &delta);
  sink_->OnDelta(delta);
  const auto all = ChoicesOf(leg);
  if (std::all_of(all.begin(), all.end(), [](const auto& one) { return one.is_over(); })) {
    Finish(leg);
  } else if (choices_[static_cast<size_t>(number)].is_cut()) {
    EndChoice(leg, token.choice());
  }
}

// Decode knows of no stop string, and would go on with this choice as long as with any.
void RequestRun::EndChoice(const Leg& leg, int32_t choice) const {
  v1::EndChoiceRequest request;
  FillKey(leg, request.mutable_key());
  request.set_choice(choice);
  context_.stages->EndChoice(leg.attempt.at.decode.worker, request);
}

// ---- Ends ----

void RequestRun::Finish(Leg& leg) {
  leg.phase = Phase::kFinishing;
  const auto all = ChoicesOf(leg);
  const bool decodes_on =
      std::any_of(all.begin(), all.end(), [](const auto& one) { return one.is_cut(); });
  if (decodes_on && !leg.attempt.decode_ended) leg.attempt.decode->Cancel();
  leg.linger_until = Now() + context_.linger;
  SetDue();
  CompleteIfAccounted(leg);
}

// By the prefill worker, and by those that encoded for it.
void RequestRun::CompleteIfAccounted(Leg& leg) {
  if (leg.phase != Phase::kFinishing) return;
  if (!leg.attempt.has_sent && !leg.attempt.prefill_ended) return;
  const bool encodes = std::ranges::any_of(
      leg.attempt.encode.calls, [](const EncodeCall& call) { return !call.slices.empty(); });
  if (!encodes) Complete(leg);
}

void RequestRun::Complete(Leg& leg) {
  leg.phase = Phase::kAnswered;
  account_.LegEnded(leg.times);
  if (std::all_of(legs_.begin(), legs_.end(),
                  [](const Leg& one) { return one.phase >= Phase::kAnswered; })) {
    Answer();
  }
  context_.host->Answered(leg.ticket);
  leg.linger_until = Now() + context_.linger;
  SetDue();
  if (leg.is_idle()) Close(leg);
}

void RequestRun::Answer() {
  has_ended_ = true;
  v1::Done done;
  done.set_request_id(request_.id);
  account_.Fill(&done);
  done.mutable_served_by()->set_prefill_worker(at_.prefill.id);
  done.mutable_served_by()->set_decode_worker(at_.decode.id);
  done.mutable_served_by()->set_attempts(1 + failures_);
  done.mutable_served_by()->set_preemptions(preemptions_);
  for (const OutputChoice& choice : choices_) {
    v1::ChoiceEnd* end = done.add_choices();
    end->set_seed(request_.sampling.seed() + static_cast<uint64_t>(done.choices_size() - 1));
    end->set_finish_reason(choice.finish_reason());
    end->set_completion_tokens(choice.tokens().size());
  }
  done.set_finish_reason(choices_.front().finish_reason());
  done.set_seed(request_.sampling.seed());
  sink_->OnDone(done);
  RecordEnd(absl::OkStatus());
}

void RequestRun::Fail(const absl::Status& status) {
  has_ended_ = true;
  sink_->OnError(status);
  RecordEnd(status);
  for (Leg& leg : legs_) {
    if (leg.phase < Phase::kAnswered) context_.host->Answered(leg.ticket);
    if (leg.phase != Phase::kClosed) Close(leg);
  }
}

void RequestRun::Close(Leg& leg) {
  leg.CancelStreams();
  DropEncodes(leg);
  leg.phase = Phase::kClosed;
  leg.attempt.decode = leg.attempt.prefill = leg.attempt.pull = nullptr;
  context_.host->Closed(leg.ticket);
}

void RequestRun::RecordEnd(const absl::Status& status) const {
  RouterMetrics& metrics = *context_.metrics;
  metrics.Ended(status.code());
  metrics.Prompt(static_cast<int32_t>(request_.prompt_ids.size()), account_.cached_tokens());
  if (status.ok()) metrics.Answered(account_.queue_time(), account_.Total(Now()));
  if (account_.time_per_token() > Duration(0)) metrics.PerToken(account_.time_per_token());
  if (account_.encode_time() > Duration(0)) metrics.Encoded(account_.encode_time());
  telemetry::Log(status.ok() ? telemetry::Level::kInfo : telemetry::Level::kWarning, "request_end",
                 {{"request_id", request_.id},
                  {"tenant", request_.tenant.value},
                  {"code", absl::StatusCodeToString(status.code())},
                  {"why", Message(status)},
                  {"finish_reason", choices_.front().finish_reason()},
                  {"choices", request_.choices},
                  {"prompt_tokens", request_.prompt_ids.size()},
                  {"cached_tokens", account_.cached_tokens()},
                  {"output_tokens", account_.tokens()},
                  {"prefill", at_.prefill.id},
                  {"decode", at_.decode.id},
                  {"failed_attempts", failures_},
                  {"preemptions", preemptions_},
                  {"total_ms", account_.Total(Now()) / std::chrono::milliseconds(1)}});
}

void RequestRun::SetDue() {
  TimePoint at = TimePoint(Duration(std::numeric_limits<int64_t>::max()));
  if (!has_ended_ && request_.deadline.has_value()) at = *request_.deadline;
  for (const Leg& leg : legs_) {
    if (leg.is_lingering()) at = std::min(at, leg.linger_until);
    if (leg.phase == Phase::kRunning) at = std::min(at, leg.attempt.encode.retry_at);
  }
  due_ns_.store(at.time_since_epoch().count(), std::memory_order_relaxed);
}

}  // namespace trivium::router
