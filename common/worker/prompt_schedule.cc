#include "common/worker/prompt_schedule.h"

#include <algorithm>

namespace trivium::worker {
namespace {

// Where no time is asked for, a cohort passes in as many groups of layers as it has this many rows:
// a step takes about as long as one of so many rows through all layers.
constexpr int64_t kGroupRows = 512;

}  // namespace

const PromptStep& PromptSchedule::Plan(std::span<const PromptTurn> prompts, StepLoad running,
                                       const StepBudget& budget) {
  if (is_through() || step_.chunks.empty()) {
    FormCohort(prompts, running, budget);
  } else {
    step_.layer_begin = step_.layer_end;
  }
  if (step_.chunks.empty()) return step_;
  if (options_.policy == PrefillPolicy::kChunked) {
    step_.layer_end = options_.layers;
    step_.limit = cohort_limit_;
    return step_;
  }
  step_.layer_end = step_.layer_begin + LayersOf(CohortLoad(), running, budget);
  step_.limit = is_through() ? cohort_limit_ : PromptStep::Limit::kSeconds;
  return step_;
}

void PromptSchedule::FormCohort(std::span<const PromptTurn> prompts, StepLoad running,
                                const StepBudget& budget) {
  step_ = {};
  cohort_limit_ = PromptStep::Limit::kWork;
  std::vector<PromptProgress> progress;
  for (const PromptTurn& prompt : prompts) progress.push_back(prompt.progress);
  PlanLimits limits{.running = running,
                    .budget = budget,
                    .scored_rows = options_.scored_rows,
                    .chunks = options_.chunks,
                    .block_tokens = options_.block_tokens};
  if (options_.policy == PrefillPolicy::kLayered) {
    limits.budget.seconds = 0;
    limits.running.rows = std::max(limits.running.rows, int64_t{options_.running_max});
  }
  StepLoad all = running;
  bool is_all = true;
  size_t taken = 0;
  for (const PlannedChunk& chunk : PlanChunks(progress, limits)) {
    step_.chunks.push_back({prompts[chunk.prompt].number, chunk.begin, chunk.end});
    all.Add(chunk.begin, chunk.end - chunk.begin);
    is_all &= chunk.end == progress[chunk.prompt].total;
    ++taken;
  }
  if (is_all && taken == prompts.size()) return;
  all.rows += options_.block_tokens;
  cohort_limit_ =
      limits.budget.IsInTime(all) ? PromptStep::Limit::kRows : PromptStep::Limit::kSeconds;
}

int PromptSchedule::LayersOf(StepLoad cohort, StepLoad running, const StepBudget& budget) const {
  const int left = options_.layers - step_.layer_begin;
  if (budget.seconds <= 0) {
    const int64_t groups = (cohort.rows + kGroupRows - 1) / kGroupRows;
    return std::clamp(static_cast<int>((options_.layers + groups - 1) / groups), 1, left);
  }
  int layers = left;
  while (layers > 1 && !budget.IsInTime(running + cohort.Share(layers, options_.layers))) --layers;
  return layers;
}

StepLoad PromptSchedule::CohortLoad() const {
  StepLoad load;
  for (const PromptChunk& chunk : step_.chunks) load.Add(chunk.begin, chunk.end - chunk.begin);
  return load;
}

void PromptSchedule::Drop(uint64_t number) {
  const auto chunk = std::ranges::find(step_.chunks, number, &PromptChunk::number);
  if (chunk == step_.chunks.end()) return;
  if (!is_through()) {
    const int64_t width = static_cast<int64_t>(hidden_.size()) / CohortLoad().rows;
    int64_t begin = 0;
    for (auto before = step_.chunks.begin(); before != chunk; ++before) {
      begin += before->end - before->begin;
    }
    const auto first = hidden_.begin() + begin * width;
    hidden_.erase(first, first + (chunk->end - chunk->begin) * width);
  }
  step_.chunks.erase(chunk);
}

}  // namespace trivium::worker
