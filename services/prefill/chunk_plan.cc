#include "services/prefill/chunk_plan.h"

#include <algorithm>

namespace trivium::prefill {

std::vector<PlannedChunk> PlanChunks(std::span<const PromptProgress> prompts, int32_t budget,
                                     int32_t block_tokens, size_t chunks_max) {
  std::vector<PlannedChunk> chunks;
  for (size_t i = 0; i < prompts.size() && budget > 0 && chunks.size() < chunks_max; ++i) {
    const int32_t left = prompts[i].total - prompts[i].done;
    const int32_t rows = left <= budget ? left : budget - budget % block_tokens;
    if (rows == 0) continue;
    chunks.push_back({i, prompts[i].done, prompts[i].done + rows});
    budget -= rows;
  }
  return chunks;
}

int LayersPerGroup(int layers) {
  constexpr int kGroups = 6;
  return std::max(1, (layers + kGroups - 1) / kGroups);
}

}  // namespace trivium::prefill
