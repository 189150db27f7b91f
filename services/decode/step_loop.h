// The decode stage without its network: reserves blocks and a landing place for each request, waits
// for its KV, then gives every running request one token a step until it ends. A request that is to
// be prefilled here has no landing: what tiers hold of its prompt is loaded, and the rest joins the
// steps, behind the rows of those that run.
//
// One thread owns the engine and every request. Commands reach it through a mailbox and are read at
// step boundaries; outputs leave through DecodeSink. Thread-safety: all public methods, any thread.
// A request has one member for each of its choices: a sequence of its own in the batch. The
// prompt's KV lands once; its full blocks are shared, the last partial one is copied for each
// member. Leading blocks that the pool holds already, for one of the request's sharing domains, are
// neither sent nor computed; every block that becomes full here is kept for others. A request holds
// the blocks of its prompt and of the answer that is expected, from Submit on; one that goes on
// longer gets a block more before the step that needs it, or another gives its blocks back and
// ends: see growth.h; several choices hold all that they may need. Invariants: each member gives
// its own blocks back when it ends; a step holds exactly one row for every running member, and of
// prompts what worker::PromptSchedule leaves them of step_tokens rows and step_target_s; every
// submitted request ends with exactly one OnEnd; its blocks stay leased while the transport may
// write them.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <variant>
#include <vector>

#include "common/base/status.h"
#include "common/worker/admission.h"
#include "common/worker/loop_context.h"
#include "common/worker/mailbox.h"
#include "common/worker/prompt_schedule.h"
#include "common/worker/types.h"
#include "services/decode/growth.h"
#include "services/decode/job.h"

namespace trivium::decode {

struct PrefillReport {
  int32_t cached_tokens = 0;
  double queue_s = 0;    // waited before its first step
  double compute_s = 0;  // first step's start to the first token
};

// Where the outputs of one request go. Called on the engine's thread; must not block. Not touched
// after OnEnd, until which it must live.
class DecodeSink {
 public:
  // Before the first token of a request that is prefilled here.
  virtual void OnPrefilled(const PrefillReport& report) = 0;
  // The first of each choice is the prefill worker's.
  virtual void OnToken(const worker::OutputToken& token) = 0;
  virtual void OnEnd(absl::Status status) = 0;

 protected:
  ~DecodeSink() = default;
};

class StepLoop {
 public:
  explicit StepLoop(const worker::LoopContext& context);
  ~StepLoop();  // Stop
  StepLoop(const StepLoop&) = delete;
  StepLoop& operator=(const StepLoop&) = delete;

  struct Submitted {
    uint64_t number = 0;                     // for Cancel
    std::optional<transfer::Ticket> ticket;  // none: the prompt is prefilled here
  };
  // Reserves at once, without waiting for the running step. An error ends the request, without
  // OnEnd: UNAVAILABLE while draining, RESOURCE_EXHAUSTED with a retry hint when blocks or places
  // are taken, INVALID_ARGUMENT when this pool can never hold the request. OnEnd later gives: OK,
  // UNAVAILABLE "landing failed: …", DATA_LOSS for a tail that is no token of this request,
  // CANCELLED, ABORTED when it was preempted: its tokens so far are right and can be gone on from.
  absl::StatusOr<Submitted> Submit(worker::StageRequest request, DecodeSink* sink);
  // At the next step boundary: withdraws the landing and gives the blocks back. Ignored for a
  // request that has ended.
  void Cancel(uint64_t number);
  // No more tokens of one choice are wanted: it ends with its next one, the request goes on with
  // the others. Ignored where there is no such request or choice (any more), and where more of
  // these wait than requests may run: they spare work, and nothing depends on them.
  void EndChoice(const transfer::Credentials& key, int32_t choice);
  // Refuses new requests from now on; running ones finish.
  void Drain();
  // Ends what still runs with UNAVAILABLE and joins the thread.
  void Stop();

 private:
  struct Reserved {
    std::unique_ptr<Job> job;
  };
  struct Expected {
    uint64_t number, landing_id;
  };
  struct Cancelled {
    uint64_t number;
    bool silent;  // Submit itself reports the end
  };
  struct Fetched {
    uint64_t number;
    int32_t blocks;
  };
  struct Landed {
    uint64_t number;
    absl::StatusOr<transfer::Arrival> arrival;
  };
  struct ChoiceCut {
    transfer::Credentials key;
    int32_t choice;
  };
  using Command = std::variant<Reserved, Expected, Cancelled, Fetched, Landed, ChoiceCut>;

  absl::StatusOr<Submitted> SubmitAdmitted(worker::StageRequest request, DecodeSink* sink);
  absl::StatusOr<std::vector<kv::Reservation>> Reserve(const worker::StageRequest& request);
  static absl::Status CheckPictures(const Job& job);
  bool MayGrow(const Job& job) const;
  int32_t Spare() const;
  transfer::LandingOptions LandingFor(const Job& job) const;
  void Fetch(Job& job, int32_t blocks);
  void Run();
  std::optional<Duration> IdleTime() const;
  void Apply(Command command);
  void Cut(const ChoiceCut& cut);
  void Land(Job& job, absl::StatusOr<transfer::Arrival> arrival);
  absl::Status Join(Job& job, const transfer::Arrival& arrival);
  void KeepLandingsAlive();
  void Start(Job& job, const std::vector<worker::OutputToken>& first);
  void ShareKv(Job& job);
  void MakeRoom();
  void Preempt();
  std::vector<StepPart> Plan();
  void PlanPrompts(worker::StepLoad running, std::vector<StepPart>* parts);
  void RunStep();
  // What a part of the step has given: no token, one, or the first of each choice.
  std::vector<worker::OutputToken> Advance(const StepPart& part, std::span<const float> logits);
  void Give(Job& job, const std::vector<worker::OutputToken>& tokens);
  void Publish(Member& member);
  worker::OutputToken NextToken(const Job& job, const Member& member,
                                std::span<const float> logits) const;
  void Emit(Job& job, const worker::OutputToken& token);
  void Learn(const Job& job, const Member& member);
  void End(uint64_t number, absl::Status status, bool silent = false);
  void PublishLoad();

  const worker::LoopContext context_;
  worker::Admission admission_;
  std::shared_ptr<worker::Mailbox<Command>>
      mailbox_;  // callbacks of the transport may outlive the loop
  std::atomic<uint64_t> next_number_{1};
  std::atomic<int32_t> cuts_waiting_{0};
  AnswerLengths lengths_;
  // Its further owners are the requests that hold less than they may need.
  const std::shared_ptr<const bool> growing_ = std::make_shared<const bool>(true);
  // The engine's thread only.
  std::map<uint64_t, std::unique_ptr<Job>> jobs_;
  worker::PromptSchedule schedule_;
  worker::PromptStep plan_;  // of the step at hand
  TimePoint kept_alive_{};
  uint64_t steps_ = 0;
  std::thread thread_;
};

}  // namespace trivium::decode
