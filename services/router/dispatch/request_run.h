// One request from submission to its last token, over as many attempts as it takes.
//
// An attempt: the scheduler places it -> Decode is opened at D -> D's landing ticket -> Prefill at
// P with the ticket -> P's first token, D's repetition of it, D's further tokens. When a stage
// fails, or takes its blocks back for another request, both streams of the attempt are dropped and
// the request waits for another placement, with the prompt and all tokens emitted so far; a landing
// ticket belongs to one attempt, so also the decode worker that stays is asked anew.
//
// All choices of a request take one attempt together, as long as none of them has a token. Later
// they differ, and after a failure each unfinished one goes on by itself: see RunLeg.
//
// Invariants: the sink sees the prompt's tokens, where their logprobs were asked for, once each and
// before any other; then the indices 0, 1, 2 … of each choice once each, then OnDone or OnError,
// once, last. Events of a former attempt change nothing: each carries its attempt's number.
// Thread-safety: public methods, any thread; they post to the request's strand, which owns all
// state. Knows neither gRPC nor any lock but the strand's.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "services/router/dispatch/output_choice.h"
#include "services/router/dispatch/prompt_relay.h"
#include "services/router/dispatch/run_account.h"
#include "services/router/dispatch/run_leg.h"
#include "services/router/dispatch/run_types.h"
#include "services/router/dispatch/strand.h"

namespace trivium::router {

class RequestRun : public std::enable_shared_from_this<RequestRun> {
 public:
  // `ticket` names the run at the host, a multiple of kTicketStride. The caller has enqueued it:
  // the run waits for OnPlaced.
  RequestRun(const RunContext& context, uint64_t ticket, RunRequest request,
             std::shared_ptr<ResponseSink> sink);

  void OnPlaced(uint64_t ticket, const PlacedPair& placed);
  // The host no longer waits for a placement.
  void OnRefused(uint64_t ticket, const absl::Status& status);
  void OnWorkerLost(uint64_t ticket, WorkerIndex worker, uint64_t epoch, const std::string& why);
  void OnTimer();
  void Cancel();  // by the client

  // When OnTimer has to be called next.
  TimePoint due() const { return TimePoint(Duration(due_ns_.load(std::memory_order_relaxed))); }
  RequestShape Shape() const;  // before it was first placed
  const RunRequest& request() const { return request_; }

 private:
  using Leg = RunLeg;
  using Phase = RunLeg::Phase;

  // Hands events of the leg's present attempt over to the strand; drops them when it is over.
  using Handle = std::function<void(RequestRun&, Leg&)>;
  std::function<void(Handle)> PosterFor(Leg& leg);
  template <typename Event>
  StageHandlers<Event> HandlersFor(Leg& leg, Role stage,
                                   void (RequestRun::*on_event)(Leg&, const Event&));
  void PostTo(uint64_t ticket, std::function<void(RequestRun&, Leg&)> task);

  void Begin(Leg& leg, const PlacedPair& placed);
  template <typename Message>
  Message RequestOf(const Leg& leg) const;
  void OpenDecode(Leg& leg);
  void OnReserved(Leg& leg);
  void OpenPrefill(Leg& leg, const v1::LandingTicket& ticket);
  void OnDecodeEvent(Leg& leg, const v1::DecodeEvent& event);
  void OnPrefillEvent(Leg& leg, const v1::PrefillEvent& event);
  void OnPullTicket(Leg& leg, const v1::LandingTicket& ticket);
  void OnPrefixSent(Leg& leg, const v1::PrefixSent& sent);
  void OnPullEnd(Leg& leg, const absl::Status& status, TimePoint begin);
  void OnSliceTickets(Leg& leg, const v1::SliceTickets& tickets);
  void AskForSlices(Leg& leg);
  // Numbers of slices of one picture, and where they were placed, all at one worker.
  using SlicesAt = std::vector<std::pair<int32_t, PlacedSlice>>;
  void OpenEncode(Leg& leg, const SlicesAt& slices);
  v1::EncodeRequest EncodeRequestOf(const Leg& leg, int32_t picture) const;
  void OnEncodeEvent(Leg& leg, size_t call, const v1::EncodeEvent& event);
  void OnSliceSent(Leg& leg, size_t call, const v1::SliceSent& sent);
  void OnSlicesElsewhere(Leg& leg, size_t call, const v1::SlicesElsewhere& slices);
  void OnEncodeEnd(Leg& leg, size_t call, const absl::Status& status);
  void HandleEncoderLoss(Leg& leg, WorkerIndex worker, uint64_t epoch, const std::string& why);
  void DropEncodes(Leg& leg);
  void OnPromptLogprobs(Leg& leg, const v1::PromptLogprobs& message);
  void HoldToken(Leg& leg, const v1::StageToken& token);
  void AcceptHeld(Leg& leg);
  bool NeedsPrefill(const Leg& leg) const;
  void OnStageEnd(Leg& leg, Role stage, const absl::Status& status);
  void HandleLoss(Leg& leg, WorkerIndex worker, uint64_t epoch, const std::string& why);
  void HandleTimer();

  void Accept(Leg& leg, const v1::StageToken& token, Role from);
  void Emit(Leg& leg, int32_t choice, const v1::StageToken& token);
  void EndChoice(const Leg& leg, int32_t choice) const;
  FailureAction ActionOn(const Leg& leg, Role stage, const absl::Status& status) const;
  void FailStage(Leg& leg, Role stage, const absl::Status& status, bool is_lost = false);
  void TryAgain(Leg& leg, WorkerIndex prefers);
  void GoOnAlone(Leg& leg);
  bool IsPastDeadline(const absl::Status& status) const;

  void Finish(Leg& leg);
  void CompleteIfAccounted(Leg& leg);
  void Complete(Leg& leg);
  void Answer();
  void Fail(const absl::Status& status);
  void Close(Leg& leg);
  void RecordEnd(const absl::Status& status) const;
  void SetDue();
  std::span<const OutputChoice> ChoicesOf(const Leg& leg) const;
  RequestShape ShapeOf(const Leg& leg) const;
  TimePoint Now() const { return context_.clock->Now(); }

  const RunContext& context_;
  const RunRequest request_;
  const std::shared_ptr<ResponseSink> sink_;
  Strand strand_;
  std::atomic<int64_t> due_ns_;

  // Of the strand.
  PromptRelay prompt_;
  std::vector<OutputChoice> choices_;
  std::deque<Leg> legs_;  // grows, once, by at most one a choice; their places do not change
  RunAccount account_;
  PlacedPair at_;     // of the newest attempt
  int failures_ = 0;  // of all legs, as the next
  int32_t preemptions_ = 0;
  bool has_ended_ = false;  // the sink has had its OnDone or OnError
};

}  // namespace trivium::router
