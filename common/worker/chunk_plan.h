// Which tokens of which prompts share the next step. Pure functions; safe from any thread.
//
// Rules (chunked prefill): the oldest prompt first; a step holds at most `budget` rows; a chunk
// ends on a block border or at its prompt's end; prompts share a step while rows are left. Prompts
// whose every row gives logits share a smaller number of rows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

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

// Of one step. `rows` and `scored_rows` are at least block_tokens, so that there is always
// progress.
struct PlanLimits {
  int32_t rows = 0;
  int32_t scored_rows = 0;  // of scored prompts together
  size_t chunks = 0;
  int32_t block_tokens = 16;
};

// `prompts` in order of arrival.
std::vector<PlannedChunk> PlanChunks(std::span<const PromptProgress> prompts, PlanLimits limits);

// Layers are sent in groups of this many: at least four groups where there are four layers, so that
// sending overlaps computing; six where there are many, so that little is left to send after the
// last layer.
int LayersPerGroup(int layers);

}  // namespace trivium::worker
