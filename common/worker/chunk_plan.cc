#include "common/worker/chunk_plan.h"

#include <algorithm>

namespace trivium::worker {

std::vector<PlannedChunk> PlanChunks(std::span<const PromptProgress> prompts, PlanLimits limits) {
  std::vector<PlannedChunk> chunks;
  for (size_t i = 0; i < prompts.size() && limits.rows > 0 && chunks.size() < limits.chunks; ++i) {
    const int32_t left = prompts[i].total - prompts[i].done;
    const int32_t room =
        prompts[i].scored ? std::min(limits.rows, limits.scored_rows) : limits.rows;
    const int32_t rows = left <= room ? left : room - room % limits.block_tokens;
    if (rows == 0) continue;
    chunks.push_back({i, prompts[i].done, prompts[i].done + rows});
    limits.rows -= rows;
    if (prompts[i].scored) limits.scored_rows -= rows;
  }
  return chunks;
}

int LayersPerGroup(int layers) {
  constexpr int kGroups = 6;
  return std::max(1, (layers + kGroups - 1) / kGroups);
}

}  // namespace trivium::worker
