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
// free blocks. The engine works on the storage that `pool` accounts for. `given`: by position in
// the prompt, rising.
absl::StatusOr<Generation> GenerateLocal(Engine& engine, kv::BlockPool& pool,
                                         std::span<const int32_t> prompt_ids,
                                         const SamplingParams& params, int chunk_tokens,
                                         std::span<const GivenRows> given = {});

// Those of `given`, or parts of them, that lie in the tokens from `begin` to `end`, by place in
// these.
std::vector<GivenRows> GivenIn(std::span<const GivenRows> given, int32_t begin, int32_t end,
                               int64_t hidden);

}  // namespace trivium::engine
