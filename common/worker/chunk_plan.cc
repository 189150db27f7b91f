#include "common/worker/chunk_plan.h"

#include <algorithm>

namespace trivium::worker {
namespace {

class ChunkPlanner {
 public:
  ChunkPlanner(std::span<const PromptProgress> prompts, const PlanLimits& limits)
      : prompts_(prompts), limits_(limits), scored_left_(limits.scored_rows) {}

  std::vector<PlannedChunk> Plan() {
    std::vector<bool> taken(prompts_.size());
    for (size_t i = 1; i < prompts_.size() && has_place(); ++i) taken[i] = TakeShort(i);
    for (size_t i = 0; i < prompts_.size() && has_place(); ++i) {
      if (!taken[i]) TakeRows(i);
    }
    std::ranges::sort(chunks_, {}, &PlannedChunk::prompt);
    return std::move(chunks_);
  }

 private:
  int32_t block_tokens() const { return limits_.block_tokens; }
  bool has_place() const { return chunks_.size() < limits_.chunks; }

  // What prompts have of the step, with `rows` more of this one.
  StepLoad With(const PromptProgress& prompt, int32_t rows) const {
    StepLoad load = prompt_load_;
    load.Add(prompt.done, rows);
    return load;
  }

  bool Fits(StepLoad of_prompts) const {
    return limits_.budget.Holds(limits_.running + of_prompts);
  }

  // The oldest keeps as much, and a block at least.
  bool TakeShort(size_t i) {
    const PromptProgress& prompt = prompts_[i];
    const int32_t left = prompt.total - prompt.done;
    const StepLoad load = With(prompt, left);
    StepLoad kept;
    kept.Add(prompts_[0].done, limits_.block_tokens);
    kept = {std::max(kept.rows, load.rows), std::max(kept.keys, load.keys)};
    if (prompt.scored || !Fits(load + kept)) return false;
    Take(i, left);
    return true;
  }

  // The most that fits; at least a block, so that there is always progress.
  void TakeRows(size_t i) {
    const PromptProgress& prompt = prompts_[i];
    int32_t left = prompt.total - prompt.done;
    if (prompt.scored && left > scored_left_) left = scored_left_ / block_tokens() * block_tokens();
    if (left <= 0) return;
    if (Fits(With(prompt, left))) return Take(i, left);
    int32_t fitting = 0, too_many = (left + block_tokens() - 1) / block_tokens();
    while (too_many - fitting > 1) {
      const int32_t blocks = (fitting + too_many) / 2;
      (Fits(With(prompt, blocks * block_tokens())) ? fitting : too_many) = blocks;
    }
    if (fitting == 0 && chunks_.empty()) fitting = 1;
    if (fitting > 0) Take(i, std::min(left, fitting * block_tokens()));
  }

  void Take(size_t i, int32_t rows) {
    const PromptProgress& prompt = prompts_[i];
    chunks_.push_back({i, prompt.done, prompt.done + rows});
    prompt_load_.Add(prompt.done, rows);
    if (prompt.scored) scored_left_ -= rows;
  }

  const std::span<const PromptProgress> prompts_;
  const PlanLimits& limits_;
  StepLoad prompt_load_;
  int32_t scored_left_;
  std::vector<PlannedChunk> chunks_;
};

}  // namespace

std::vector<PlannedChunk> PlanChunks(std::span<const PromptProgress> prompts,
                                     const PlanLimits& limits) {
  return ChunkPlanner(prompts, limits).Plan();
}

int LayersPerGroup(int layers) {
  constexpr int kGroups = 6;
  return std::max(1, (layers + kGroups - 1) / kGroups);
}

}  // namespace trivium::worker
