// One request from prompt to last token on one engine, alone: what the split services must
// reproduce. Thread-safety: the engine's; blocks until the request has ended.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/base/status.h"
#include "common/engine/engine.h"
#include "common/engine/sampler.h"
#include "common/kv/block_pool.h"

namespace trivium::engine {

struct Generation {
  // One for each token of the prompt, the first without logprob; empty unless
  // params.prompt_logprobs asks for them.
  std::vector<SampledToken> prompt;
  std::vector<SampledToken> tokens;
  FinishReason finish = FinishReason::kNone;

  std::vector<int32_t> Ids() const;
};

// Prefills the prompt in chunks of `chunk_tokens` (>= 1) rows, then decodes token by token.
// INVALID_ARGUMENT for an empty prompt, ids outside the vocabulary, a prompt that with max_tokens
// exceeds the context, or bad sampling parameters; RESOURCE_EXHAUSTED when the pool has too few
// free blocks. The engine works on the storage that `pool` accounts for.
absl::StatusOr<Generation> GenerateLocal(Engine& engine, kv::BlockPool& pool,
                                         std::span<const int32_t> prompt_ids,
                                         const SamplingParams& params, int chunk_tokens);

}  // namespace trivium::engine
