// Chooses the next token from logits. Counter-based: the draw depends on (seed, output index)
// alone, so a request can go on at any worker from its ids. Bit-equal logits give the same token on
// every machine. Stateless; safe from any thread.
//
// Order of the cuts: temperature, then the top_k most likely, then of these the fewest whose share
// reaches top_p. A NaN logit counts as minus infinity.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "common/base/status.h"

namespace trivium::engine {

inline constexpr int32_t kMaxLogprobs = 20;
inline constexpr size_t kMaxStopTokens = 128;

struct SamplingParams {
  float temperature = 0;     // 0: greedy; finite, 0 … 100
  int32_t top_k = 0;         // 0: off, as is anything from the vocabulary's size up
  float top_p = 1;           // (0, 1]
  uint64_t seed = 0;         // always set by the router
  int32_t max_tokens = 256;  // output tokens, >= 1
  int32_t min_tokens =
      0;  // 0 … max_tokens; before these, no end-of-generation or stop token is drawn
  bool ignore_eos = false;  // end-of-generation tokens do not end the request; stop tokens still do
  std::vector<int32_t> stop_token_ids{};  // at most kMaxStopTokens, each in the vocabulary
  int32_t logprobs =
      -1;  // -1: none; n: the drawn token's and the n most likely; at most kMaxLogprobs
};

// INVALID_ARGUMENT naming the field ("sampling.top_p") and its range.
absl::Status Validate(const SamplingParams& params, int32_t vocab);

struct SampledToken {
  int32_t id = 0;
  // Natural log, of the model's own distribution before temperature, cuts and masks. 0 unless asked
  // for.
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top;  // most likely first; ties by the lower id
};

// Ties go to the lower id. `output_index` counts the request's output tokens from 0.
// `end_ids`: the model's end-of-generation ids. `logits` is not empty, `params` is valid.
SampledToken Sample(std::span<const float> logits, const SamplingParams& params,
                    int32_t output_index, std::span<const int32_t> end_ids);

enum class FinishReason : uint8_t { kNone, kStop, kLength };
// Whether the token drawn at `output_index` ends the request. A stop token at the last place is a
// stop.
FinishReason FinishAfter(int32_t id, const SamplingParams& params, int32_t output_index,
                         std::span<const int32_t> end_ids);

}  // namespace trivium::engine
