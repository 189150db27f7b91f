// What prompts do in each step of a loop, beside the rows that run, which pass all layers in every
// step. Chunked: as many tokens as the step holds pass all layers. Layered ("From Tokens to
// Layers", 2025): a cohort of prompts, up to the rows of a step, passes as many layers as the
// step's time holds, and goes on in the next one; so weights are read once for all its rows.
//
// Thread-safety: none, the engine's thread. Invariants: every token of a prompt passes each layer
// once, in order; one cohort at a time; what a step holds is within the budget, but for a block of
// one prompt, or one layer, without which there would be no progress. The hidden rows of a cohort
// are kept between its steps: step_tokens × hidden floats at most.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/engine/engine.h"
#include "common/worker/chunk_plan.h"

namespace trivium::worker {

enum class PrefillPolicy : uint8_t { kChunked, kLayered };

// A prompt that is being computed.
struct PromptTurn {
  uint64_t number = 0;  // the loop's, unique
  PromptProgress progress{};
};

struct PromptChunk {
  uint64_t number = 0;
  int32_t begin = 0, end = 0;  // tokens
};

// What prompts do in one step: all chunks pass these layers. No chunk: nothing.
struct PromptStep {
  std::vector<PromptChunk> chunks;
  int layer_begin = 0, layer_end = 0;
  // Why it is not more: all that waits is in it, or the step holds no more rows or no more seconds.
  enum class Limit : uint8_t { kWork, kRows, kSeconds } limit = Limit::kWork;
};

class PromptSchedule {
 public:
  struct Options {
    PrefillPolicy policy = PrefillPolicy::kChunked;
    int layers = 0;           // of the model
    int32_t running_max = 0;  // rows that may come to run while a cohort is under way
    int32_t scored_rows = 0;  // as in PlanLimits
    size_t chunks = 0;
    int32_t block_tokens = 16;
  };
  explicit PromptSchedule(const Options& options) : options_(options) {}

  // The next step, which the caller runs, with the pass that Pass gives. `prompts` in order of
  // arrival; those of a cohort under way are known from the steps before.
  const PromptStep& Plan(std::span<const PromptTurn> prompts, StepLoad running,
                         const StepBudget& budget);
  // `ranges`: one for each chunk of the step that was planned last.
  engine::LayerPass Pass(std::span<const engine::SequenceRange> ranges) {
    return {ranges, step_.layer_begin, step_.layer_end, &hidden_};
  }
  // Whether the chunks of the step planned last are through all layers.
  bool is_through() const { return step_.layer_end == options_.layers; }
  // A prompt that has ended, or will end without the rest: nothing of it is computed any more.
  void Drop(uint64_t number);

 private:
  void FormCohort(std::span<const PromptTurn> prompts, StepLoad running, const StepBudget& budget);
  int LayersOf(StepLoad cohort, StepLoad running, const StepBudget& budget) const;
  StepLoad CohortLoad() const;

  const Options options_;
  PromptStep step_;                                            // planned last
  PromptStep::Limit cohort_limit_ = PromptStep::Limit::kWork;  // why no more is in its chunks
  std::vector<float> hidden_;
};

}  // namespace trivium::worker
