// The prefill stage without its network: takes prompts, computes their KV in a continuous batch, as
// worker::PromptSchedule says, sends it layer group by layer group while later layers run, and
// samples each prompt's first token.
//
// One thread owns the engine and every request. Commands reach it through a mailbox and are read at
// step boundaries; outputs leave through PrefillSink. Thread-safety: all public methods, any
// thread. Invariants: a prompt holds all its blocks or none; blocks are given in PromptQueue's
// order, and prompts are computed in that in which they got them; every submitted request ends with
// exactly one OnEnd; its blocks stay leased while the transport may read them.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <variant>
#include <vector>

#include "common/base/status.h"
#include "common/worker/admission.h"
#include "common/worker/loop_context.h"
#include "common/worker/mailbox.h"
#include "common/worker/prompt_schedule.h"
#include "common/worker/types.h"
#include "services/prefill/picture_intake.h"
#include "services/prefill/prompt_queue.h"

namespace trivium::prefill {

struct SentReport {
  transfer::TransferStats transfer;
  int32_t cached_tokens = 0;  // of the prompt, whose KV was here already
  int32_t pulled_tokens = 0;  // and came from another worker
  double queue_s = 0;         // waited before its first step
  double compute_s = 0;       // first step's start to the first token
};

// Where the outputs of one request go. Called on the engine's thread; must not block. Not touched
// after OnEnd, until which it must live. Order: OnPullTicket, OnSliceTickets any number of times,
// OnPromptTokens, OnFirstToken, OnSent, OnEnd; all but the last may be missing.
class PrefillSink {
 public:
  // Where request.pull_tokens may land, from whoever holds them. Nobody need come.
  virtual void OnPullTicket(const transfer::Ticket& ticket) = 0;
  // Where slices may land, from whoever encodes them: all that the prompt needs, then anew those
  // that were lost.
  virtual void OnSliceTickets(const std::vector<SliceTicket>& tickets) = 0;
  // The next tokens of a prompt whose logprobs are wanted: each once over all calls, in order, the
  // first without logprob.
  virtual void OnPromptTokens(const std::vector<worker::OutputToken>& tokens) = 0;
  virtual void OnFirstToken(const worker::OutputToken& token) = 0;  // once for each choice
  virtual void OnSent(const SentReport& report) = 0;
  virtual void OnEnd(absl::Status status) = 0;

 protected:
  ~PrefillSink() = default;
};

class StepLoop {
 public:
  explicit StepLoop(const worker::LoopContext& context);
  ~StepLoop();  // Stop
  StepLoop(const StepLoop&) = delete;
  StepLoop& operator=(const StepLoop&) = delete;

  // Gives the request's number, for Cancel. An error ends the request at once, without OnEnd:
  // UNAVAILABLE while draining, RESOURCE_EXHAUSTED with a retry hint when requests_max are inside,
  // INVALID_ARGUMENT for a prompt that this pool can never hold, or slices that its pool of
  // multimedia tokens cannot. OnEnd later gives: OK when every
  // row was acknowledged, UNAVAILABLE when the decode worker was lost (after OnFirstToken, if the
  // token was there), CANCELLED.
  absl::StatusOr<uint64_t> Submit(worker::StageRequest request, transfer::Ticket ticket,
                                  PrefillSink* sink);
  // At the next step boundary; ignored for a request that has ended.
  void Cancel(uint64_t number);
  // Refuses new requests from now on; running ones finish.
  void Drain();
  // Ends what still runs with UNAVAILABLE and joins the thread.
  void Stop();

 private:
  struct Job;
  struct Arrived {
    std::unique_ptr<Job> job;
  };
  struct Cancelled {
    uint64_t number;
  };
  struct Fetched {
    uint64_t number;
    int32_t blocks;
  };
  struct Delivered {
    uint64_t number;
    absl::StatusOr<transfer::TransferStats> stats;
  };
  struct Pulled {
    uint64_t number;
    absl::StatusOr<transfer::Arrival> arrival;
  };
  struct SliceLanded {
    uint64_t number;
    int32_t slice;
    uint32_t attempt;
    absl::Status status;
  };
  using Command = std::variant<Arrived, Cancelled, Fetched, Delivered, Pulled, SliceLanded>;
  struct Chunk {
    Job* job;
    worker::PromptChunk tokens;
  };
  // The rows of pictures in a chunk.
  struct PictureRows {
    std::vector<float> values;
    std::vector<engine::GivenRows> given;
  };

  void Run();
  std::optional<Duration> IdleTime() const;
  void Apply(Command command);
  void Finish(Job& job, absl::StatusOr<transfer::TransferStats> stats);
  bool BeginPull(Job& job);
  void EndPull(Job& job, const absl::StatusOr<transfer::Arrival>& arrival);
  void CheckPulls();
  absl::Status CheckPictures(const Job& job, int32_t blocks) const;
  absl::Status StartPictures(Job& job);
  absl::Status BeginPictures(Job& job);
  void OnSliceLanded(Job& job, const SliceLanded& landed);
  void CheckPictures();
  void KeepPicturesAlive();
  bool IsReady(const Job& job) const;
  void Admit();
  PromptQueue::Admitted AdmittedOf(const Job& job) const;
  absl::Status Start(Job& job);
  bool Fetch(Job& job, const kv::PrefixUse& prefix);
  absl::Status Begin(Job& job, int32_t fetched_blocks);
  absl::Status BeginComputing(Job& job);
  std::vector<Chunk> Plan();
  void RunStep(const std::vector<Chunk>& chunks);
  void Advance(const Chunk& chunk, std::span<const float> logits);
  void Send(Job& job, transfer::RowRange rows);
  void SendLayers(const std::vector<Chunk>& chunks, int layer);
  void ScorePrompt(const Chunk& chunk, std::span<const float> logits);
  void Sample(Job& job, std::span<const float> logits);
  void End(uint64_t number, absl::Status status);
  void PublishLoad();

  const worker::LoopContext context_;
  worker::Admission admission_;
  std::shared_ptr<worker::Mailbox<Command>>
      mailbox_;  // callbacks of the transport may outlive the loop
  std::atomic<uint64_t> next_number_{1};
  // The engine's thread only.
  std::map<uint64_t, std::unique_ptr<Job>> jobs_;  // by arrival
  PromptQueue waiting_;
  worker::PromptSchedule schedule_;
  worker::PromptStep plan_;  // of the step at hand
  uint64_t turns_ = 0;
  uint64_t steps_ = 0;
  TimePoint pictures_kept_alive_{};
  std::thread thread_;
};

}  // namespace trivium::prefill
