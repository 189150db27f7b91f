// One step of a loop, from the rows that it is to hold to the record of it: answers pass all
// layers, chunks of prompts those that PromptSchedule says. Thread-safety: none, the engine's
// thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/worker/loop_context.h"
#include "common/worker/types.h"

namespace trivium::worker {

class StepBatch {
 public:
  explicit StepBatch(const LoopContext& context) : context_(context) {}

  // All of them before the first chunk. What the arguments refer to outlives Run.
  void AddAnswer(uint64_t number, const int32_t& newest, int32_t position,
                 std::span<const int32_t> block_table);
  // Of the step that `schedule` has planned last, in its order. `scored`: every row gives logits.
  // `given`: by place in the chunk.
  void AddChunk(const PromptChunk& chunk, const StageRequest& request,
                std::span<const int32_t> block_table, bool scored,
                std::span<const engine::GivenRows> given = {});

  void Run(PromptSchedule& schedule, const engine::LayerDone& layer_done);
  // Of an answer or chunk, by the order in which they were added: logits of all its rows that give
  // some. Valid until the engine's next step.
  std::span<const float> logits(size_t index) const;
  // Tells the probe. `begin`: when the step began.
  void Report(const PromptStep& plan, TimePoint begin);

 private:
  const LoopContext& context_;
  std::vector<engine::SequenceRange> answers_, chunks_;
  std::vector<RangeRecord> records_;
  engine::StepResult result_;
};

// A schedule for the model of a loop. `scored_rows`, `running_max`: see PromptSchedule::Options.
PromptSchedule MakeSchedule(const LoopContext& context, int32_t scored_rows, int32_t running_max);

}  // namespace trivium::worker
