// A prefill and a decode worker in one process, without gRPC: real engines on the tiny model, real
// pools, the in-process transport, and both step loops. Thread-safety: Run from any number of
// threads.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <vector>

#include "common/engine/generate.h"
#include "common/engine/test_setup.h"
#include "common/worker/loop_context.h"
#include "services/decode/step_loop.h"
#include "services/prefill/step_loop.h"

namespace trivium::stages {

struct RigOptions {
  kernels::Numerics numerics = kernels::Numerics::kBatchInvariant;
  int32_t prefill_blocks = 256, decode_blocks = 256;
  int32_t step_tokens = 64;
  int32_t requests_max = 64;
  double timeout_scale = 1;
  bool admits_expected = true;
  int64_t tier_memory_bytes = 0;  // of each worker's compressed tier
  worker::PrefillPolicy prefill_policy = worker::PrefillPolicy::kChunked;
  double step_target_s = 0;
  std::string tier_disk = {};  // its files are this and the worker's name; empty: no disk
};

// Remembers every step.
class StepLog final : public worker::LoopProbe {
 public:
  struct Step {
    std::vector<worker::RangeRecord> ranges;
    worker::StepLoad load;
    std::optional<worker::PromptStep::Limit> limit;
  };
  // Called behind each step, on the engine's thread; set before the first request.
  std::function<void(const Step&)> on_step;
  void OnStep(const worker::StepRecord& step) override;
  void OnFirstToken(double) override {}
  void OnTokenGap(double) override;
  void OnPrompt(const worker::PromptRecord& prompt) override;
  void OnEnd(const absl::Status& status) override;
  std::vector<Step> steps() const;
  worker::PromptRecord prompts() const;   // of all together
  int ends(absl::StatusCode code) const;  // requests that ended so
  int64_t gaps() const;                   // between tokens
  void WaitStepOf(uint64_t request) const;

 private:
  mutable std::mutex mutex_;
  std::vector<Step> steps_;
  worker::PromptRecord prompts_;
  std::map<absl::StatusCode, int> ends_;
  int64_t gaps_ = 0;
};

// What all workers share: engine, pool, transport.
struct WorkerParts {
  WorkerParts(const RigOptions& options, int32_t blocks, uint64_t epoch);
  worker::LoopContext Context();
  // Waits until no block is used or leased; false when that takes longer than any timeout of the
  // transport.
  bool WaitAllFree() const;
  bool WaitHeard() const;  // until a message has come from a sender

  RigOptions options;
  engine::TestEngine engine;
  std::unique_ptr<kv::BlockPool> pool;
  std::unique_ptr<kv::Offload> offload;  // null: no tiers
  // Of no step of this engine: without observations all is loaded that can be, and a step with a
  // target holds no more than one block of a prompt.
  engine::StepCost cost;
  std::unique_ptr<worker::Promotion> promotion;
  std::unique_ptr<transfer::Transport> transport;
  worker::LoadBoard board;
  StepLog log;
};

// What a request gave at one stage.
class Outcome : public prefill::PrefillSink, public decode::DecodeSink {
 public:
  std::function<void(const transfer::Ticket&)> on_pull_ticket;  // set before it is submitted
  void OnPullTicket(const transfer::Ticket& ticket) override {
    if (on_pull_ticket) on_pull_ticket(ticket);
  }
  std::function<void(const std::vector<prefill::SliceTicket>&)> on_slice_tickets;  // as that
  void OnSliceTickets(const std::vector<prefill::SliceTicket>& tickets) override {
    if (on_slice_tickets) on_slice_tickets(tickets);
  }
  void OnPromptTokens(const std::vector<worker::OutputToken>& tokens) override;
  void OnFirstToken(const worker::OutputToken& token) override { Add(token); }
  void OnToken(const worker::OutputToken& token) override { Add(token); }
  void OnSent(const prefill::SentReport& report) override;
  void OnPrefilled(const decode::PrefillReport& report) override;
  void OnEnd(absl::Status status) override;

  absl::Status Wait();             // for the end
  bool WaitFor(Duration timeout);  // false: not ended yet
  void WaitTokens(size_t count);   // or the end
  void End(absl::Status status) { OnEnd(std::move(status)); }
  std::vector<worker::OutputToken> tokens() const;
  std::vector<worker::OutputToken> prompt_tokens() const;
  std::vector<int32_t> ids() const;
  int ends() const;
  prefill::SentReport sent() const;

 private:
  void Add(const worker::OutputToken& token);

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<worker::OutputToken> tokens_, prompt_tokens_;
  prefill::SentReport sent_;
  absl::Status status_;
  int ends_ = 0;
};

// A request under way at both stages.
struct Flight {
  Outcome prefill, decode;
  uint64_t prefill_number = 0, decode_number = 0;
};

class Rig {
 public:
  explicit Rig(const RigOptions& options = {});
  ~Rig();

  worker::StageRequest Request(std::vector<int32_t> ids, const engine::SamplingParams& sampling,
                               int32_t output_index = 0);
  // What the router does: decode first, its ticket to prefill. A refusal ends the outcome with it.
  std::unique_ptr<Flight> Launch(const worker::StageRequest& request);
  // The same at another prefill worker, which may give a pull ticket.
  using OnPullTicket = std::function<void(const transfer::Ticket&)>;
  using OnSliceTickets = std::function<void(const std::vector<prefill::SliceTicket>&)>;
  std::unique_ptr<Flight> LaunchAt(prefill::StepLoop& at, const worker::StageRequest& request,
                                   OnPullTicket on_pull_ticket = nullptr,
                                   OnSliceTickets on_slice_tickets = nullptr);
  // The whole answer; checks that both stages agree on the first token.
  absl::StatusOr<std::vector<worker::OutputToken>> Run(const worker::StageRequest& request);
  // The same on one engine of its own, alone, in chunks of step_tokens.
  engine::Generation Local(const worker::StageRequest& request);
  std::vector<int32_t> RandomPrompt(std::mt19937& random, size_t count) const;

  RigOptions options;
  WorkerParts prefill_parts, decode_parts;
  std::unique_ptr<prefill::StepLoop> prefill;
  std::unique_ptr<decode::StepLoop> decode;

 private:
  std::mutex mutex_;
  uint32_t requests_ = 0;
  engine::TestEngine local_;
  kv::BlockPool local_pool_;
};

}  // namespace trivium::stages
