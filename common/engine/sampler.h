// Chooses the next token from logits. Counter-based: the draw depends on (seed, output index) alone, so a
// request can go on at any worker from its ids. Stateless; safe from any thread.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "common/base/status.h"

namespace trivium::engine {

struct SamplingParams {
  float temperature = 0;    // 0: greedy; finite, 0 … 100
  int32_t top_k = 0;        // 0: off
  float top_p = 1;          // (0, 1]
  uint64_t seed = 0;        // always set by the router
  int32_t max_tokens = 256; // output tokens, >= 1
  int32_t min_tokens = 0;   // before these, no end-of-generation or stop token is drawn
  bool ignore_eos = false;  // end-of-generation tokens do not end the request
  std::vector<int32_t> stop_token_ids;
  int32_t logprobs = -1;    // -1: none; n: the drawn token's and the n most likely; at most 20
};

// INVALID_ARGUMENT naming the field ("sampling.top_p") and its range.
absl::Status Validate(const SamplingParams& params, int32_t vocab);

struct SampledToken {
  int32_t id = 0;
  float logprob = 0;  // natural log, of the model's own distribution before temperature and cuts
  std::vector<std::pair<int32_t, float>> top;  // most likely first
};

// Ties go to the lower id. `output_index` counts the request's output tokens from 0.
// `end_ids`: the model's end-of-generation ids.
SampledToken Sample(std::span<const float> logits, const SamplingParams& params, int32_t output_index,
                    std::span<const int32_t> end_ids);

enum class FinishReason : uint8_t { kNone, kStop, kLength };
// Whether the token drawn at `output_index` ends the request.
FinishReason FinishAfter(int32_t id, const SamplingParams& params, int32_t output_index,
                         std::span<const int32_t> end_ids);

}  // namespace trivium::engine
