// Chooses the next token from logits. Counter-based: the draw depends on (seed, output index)
// alone, and penalties on the ids so far, so a request can go on at any worker from its ids.
// Bit-equal logits give the same token on every machine. Stateless; safe from any thread.
//
// Order:
//   1. repetition penalty (Keskar et al., 2019: a positive logit is divided, a negative one
//      multiplied) over prompt and output; then frequency and presence penalty over the output
//      (logit - count · frequency - presence); then the bias; ends are masked before min_tokens;
//   2. temperature; 0 takes the highest logit here, ties to the lower id;
//   3. top_k: the k most likely;
//      typical_p: of these the fewest whose information content is nearest to the entropy and whose
//      share reaches typical_p, ties to the more likely;
//      top_p: of these the fewest most likely whose share reaches top_p;
//      min_p: of these those at least min_p times as likely as the likeliest;
//   4. the draw from what is left. No cut leaves nothing.
// A NaN logit counts as minus infinity.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "common/engine/sampling_params.h"
#include "common/engine/token_history.h"

namespace trivium::engine {

struct SampledToken {
  int32_t id = 0;
  // Natural log, of the model's own distribution before penalties, bias, temperature, cuts and
  // masks. 0 unless asked for.
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top{};  // most likely first; ties by the lower id
};

// `output_index` counts the request's output tokens from 0. `end_ids`: the model's
// end-of-generation ids. `history`: the request's tokens before this one; the default serves
// requests without penalties. `logits` is not empty, `params` is valid.
SampledToken Sample(std::span<const float> logits, const SamplingParams& params,
                    int32_t output_index, std::span<const int32_t> end_ids,
                    const TokenHistory& history = {});

// A token that is known, with the logprob that `logits` give it and the `top` most likely.
SampledToken Score(std::span<const float> logits, int32_t id, int32_t top);

enum class FinishReason : uint8_t { kNone, kStop, kLength };
// Whether the token drawn at `output_index` ends the request. A stop token at the last place is a
// stop.
FinishReason FinishAfter(int32_t id, const SamplingParams& params, int32_t output_index,
                         std::span<const int32_t> end_ids);

}  // namespace trivium::engine
