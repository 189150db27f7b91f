// One request from submission to its last token, over as many attempts as it takes.
//
// An attempt: the scheduler places it -> Decode is opened at D -> D's landing ticket -> Prefill at
// P with the ticket -> P's first token, D's repetition of it, D's further tokens. When a stage
// fails, or takes its blocks back for another request, both streams of the attempt are dropped and
// the request waits for another placement, with the prompt and all tokens emitted so far; a landing
// ticket belongs to one attempt, so also the decode worker that stays is asked anew.
//
// Invariants: the sink sees the prompt's tokens, where their logprobs were asked for, once each and
// before any other; then the indices 0, 1, 2 … once each, then OnDone or OnError, once, last.
// Events of a former attempt change nothing: each carries its attempt's number.
// Thread-safety: public methods, any thread; they post to the request's strand, which owns all
// state. Knows neither gRPC nor any lock but the strand's.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "services/router/dispatch/prompt_relay.h"
#include "services/router/dispatch/run_account.h"
#include "services/router/dispatch/run_types.h"
#include "services/router/dispatch/strand.h"
#include "services/router/dispatch/text_assembler.h"
#include "services/router/dispatch/token_sequencer.h"

namespace trivium::router {

class RequestRun : public std::enable_shared_from_this<RequestRun> {
 public:
  // `ticket` names the run at the host. The caller has enqueued it: the run waits for OnPlaced.
  RequestRun(const RunContext& context, uint64_t ticket, RunRequest request,
             std::shared_ptr<ResponseSink> sink);

  void OnPlaced(const PlacedPair& placed);
  void OnRefused(const absl::Status& status);  // the host no longer waits for a placement
  void OnWorkerLost(WorkerIndex worker, uint64_t epoch, const std::string& why);
  void OnTimer();
  void Cancel();  // by the client

  // When OnTimer has to be called next.
  TimePoint due() const { return TimePoint(Duration(due_ns_.load(std::memory_order_relaxed))); }
  RequestShape Shape() const;  // before it was first placed

 private:
  struct Attempt {
    uint32_t number = 0;
    std::string secret;
    PlacedPair at;
    std::shared_ptr<StageCall> decode, prefill;
    bool has_ticket = false;
    bool decode_has_kv = false;  // it has sent a token: the prefill worker is no longer needed
    bool has_sent = false;       // the prefill worker's account has come
    bool decode_ended = false, prefill_ended = true;
    // Decode's tokens that have overtaken the prompt's; at most max_tokens.
    std::vector<v1::StageToken> held;
  };
  // kFinishing: all tokens are out, the account of the transfer is due. kAnswered: Done is out, the
  // streams are about to end.
  enum class Phase : uint8_t { kWaiting, kRunning, kFinishing, kAnswered, kClosed };

  template <typename Event>
  StageHandlers<Event> HandlersFor(Role stage, void (RequestRun::*on_event)(const Event&));

  void Begin(const PlacedPair& placed);
  void OpenDecode();
  void OpenPrefill(const v1::LandingTicket& ticket);
  void OnDecodeEvent(const v1::DecodeEvent& event);
  void OnPrefillEvent(const v1::PrefillEvent& event);
  void OnPromptLogprobs(const v1::PromptLogprobs& message);
  void HoldToken(const v1::StageToken& token);
  void AcceptHeld();
  bool NeedsPrefill() const;
  void OnStageEnd(Role stage, const absl::Status& status);
  void HandleLoss(WorkerIndex worker, uint64_t epoch, const std::string& why);
  void HandleTimer();

  void Accept(const v1::StageToken& token, Role from);
  void Emit(const v1::StageToken& token);
  FailureAction ActionOn(Role stage, const absl::Status& status) const;
  void FailStage(Role stage, const absl::Status& status, bool is_lost = false);
  void Blame(Role stage);
  void CancelStreams();
  void WaitAgain(WorkerIndex prefers);
  bool IsPastDeadline(const absl::Status& status) const;

  void Finish(const std::string& reason, bool stop_decoding);
  void Complete();
  void Fail(const absl::Status& status);
  void CloseIfIdle();
  void Close();
  void RecordEnd(const absl::Status& status) const;
  void SetDue();
  TimePoint Now() const { return context_.clock->Now(); }

  const RunContext& context_;
  const uint64_t ticket_;
  const RunRequest request_;
  const std::shared_ptr<ResponseSink> sink_;
  Strand strand_;
  std::atomic<int64_t> due_ns_;

  // Of the strand.
  Phase phase_ = Phase::kWaiting;
  PromptRelay prompt_;
  TokenSequencer sequencer_;
  TextAssembler assembler_;
  RunAccount account_;
  Attempt attempt_;
  uint32_t attempts_begun_ = 0;
  int failures_ = 0;
  int32_t preemptions_ = 0;
  WorkerIndex decode_before_ = kNoWorker;
  std::vector<WorkerBlame> blame_;
  std::string finish_reason_;
  TimePoint linger_until_;
};

}  // namespace trivium::router
