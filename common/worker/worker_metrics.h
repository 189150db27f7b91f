// The Prometheus metrics of a worker process: one place that knows their names. Thread-safety: all
// methods, any thread. `pool`, `transport`, `board` and `prefixes` outlive the scrapes.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "common/engine/step_cost.h"
#include "common/kv/block_pool.h"
#include "common/media/media_pool.h"
#include "common/telemetry/metrics.h"
#include "common/transfer/transport.h"
#include "common/worker/load_board.h"
#include "common/worker/loop_context.h"
#include "common/worker/prefix_sender.h"

namespace trivium::worker {

// By which label the ends of requests are counted; kUnknown stands for every code without an entry.
// What `aborted` means is the stage's affair.
std::map<absl::StatusCode, std::string> EndNames(std::string aborted);

// Of the blocks for multimedia tokens that prompts wait for. `media` outlives the scrapes.
void AddPictureMetrics(telemetry::Metrics& metrics, const media::MediaPool& media);

class WorkerMetrics final : public LoopProbe {
 public:
  WorkerMetrics(telemetry::Metrics& metrics, const kv::BlockPool& pool,
                const transfer::Transport& transport, const LoadBoard& board,
                const PrefixSender& prefixes);
  ~WorkerMetrics() override;

  void OnStep(const StepRecord& step) override;
  void OnFirstToken(double seconds_since_submit) override;
  void OnTokenGap(double seconds) override;
  void OnPrompt(const PromptRecord& prompt) override;
  void OnEnd(const absl::Status& status) override;

  const engine::StepCost& step_cost() const { return step_cost_; }

 private:
  struct Handles;
  void Refresh();

  const kv::BlockPool& pool_;
  const transfer::Transport& transport_;
  const LoadBoard& board_;
  const PrefixSender& prefixes_;
  engine::StepCost step_cost_;
  std::unique_ptr<Handles> handles_;
};

}  // namespace trivium::worker
