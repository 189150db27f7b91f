// Which tokens of which prompts share the next step. Pure functions; safe from any thread.
//
// Rules (chunked prefill, Sarathi-Serve, section 4.2): the oldest prompt first; a step holds no
// more than its budget, beside the rows that run; a chunk ends on a block border or at its prompt's
// end; prompts share a step while there is room. A prompt that can end in this step goes before
// older ones that cannot, in half of the room that prompts have: so a short one waits for one step,
// and a long one takes at most twice as long. Prompts whose every row gives logits share a smaller
// number of rows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/worker/step_budget.h"

namespace trivium::worker {

struct PromptProgress {
  int32_t done = 0;     // tokens computed, on a block border
  int32_t total = 0;    // of the prompt, > done
  bool scored = false;  // every row's logits are wanted, not the last's alone
};

struct PlannedChunk {
  size_t prompt = 0;  // index into the prompts given
  int32_t begin = 0, end = 0;
};

// Of one step.
struct PlanLimits {
  StepLoad running;         // rows that are in it whatever prompts do
  StepBudget budget{};      // of the whole step. Where there are prompts they get a block at least
  int32_t scored_rows = 0;  // of scored prompts together, at least block_tokens
  size_t chunks = 0;
  int32_t block_tokens = 16;
};

// `prompts` in order of arrival, and so are the chunks.
std::vector<PlannedChunk> PlanChunks(std::span<const PromptProgress> prompts,
                                     const PlanLimits& limits);

// Layers are sent in groups of this many: at least four groups where there are four layers, so that
// sending overlaps computing; six where there are many, so that little is left to send after the
// last layer.
int LayersPerGroup(int layers);

}  // namespace trivium::worker
