// What a request says about the choice of its tokens. A plain value.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "common/base/status.h"

namespace trivium::engine {

inline constexpr int32_t kMaxLogprobs = 20;
inline constexpr size_t kMaxStopTokens = 128;
inline constexpr size_t kMaxLogitBias = 1024;

struct SamplingParams {
  float temperature = 0;     // 0: greedy; finite, 0 … 100
  int32_t top_k = 0;         // 0: off, as is anything from the vocabulary's size up
  float top_p = 1;           // (0, 1]
  float min_p = 0;           // [0, 1]; 0: off
  float typical_p = 1;       // (0, 1]; 1: off
  uint64_t seed = 0;         // always set by the router
  int32_t max_tokens = 256;  // output tokens, >= 1
  int32_t min_tokens =
      0;  // 0 … max_tokens; before these, no end-of-generation or stop token is drawn
  bool ignore_eos = false;  // end-of-generation tokens do not end the request; stop tokens still do
  std::vector<int32_t> stop_token_ids{};  // at most kMaxStopTokens, each in the vocabulary
  int32_t logprobs =
      -1;  // -1: none; n: the drawn token's and the n most likely; at most kMaxLogprobs
  float repetition_penalty = 1;  // (0, 10]; 1: off; over prompt and output
  float presence_penalty = 0;    // -2 … 2; over the output alone, as is the next
  float frequency_penalty = 0;   // -2 … 2
  // Added to the logits of these ids: -100 … 100. Each id once, in the vocabulary; at most
  // kMaxLogitBias.
  std::vector<std::pair<int32_t, float>> logit_bias{};
  int32_t prompt_logprobs = -1;  // as `logprobs`, for each token of the prompt after the first

  // The choice depends on the tokens so far.
  bool has_penalties() const {
    return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0;
  }
};

// INVALID_ARGUMENT naming the field ("sampling.top_p") and its range.
absl::Status Validate(const SamplingParams& params, int32_t vocab);

}  // namespace trivium::engine
