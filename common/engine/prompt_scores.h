// What the model thinks of a prompt's own tokens. Stateless; safe from any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/engine/sampler.h"

namespace trivium::engine {

// Where the tokens that the rows from position `begin` on score start: each row scores the token
// behind it, and position 0, which follows nothing, comes along with the first row.
inline int32_t FirstScored(int32_t begin) { return begin == 0 ? 0 : begin + 1; }

// The prompt's tokens from FirstScored(begin) on, as far as `logits` (rows of `vocab`, of the
// positions from `begin` on) score them; position 0 with no logprob. The rows of all chunks of a
// prompt give each of its tokens once. `top`: how many alternatives, 0 … kMaxLogprobs.
std::vector<SampledToken> ScorePrompt(std::span<const int32_t> prompt, int32_t begin,
                                      std::span<const float> logits, int32_t vocab, int32_t top);

}  // namespace trivium::engine
