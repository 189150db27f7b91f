// What the prefill and the decode stage share about one request, checked and free of any wire
// format. Plain values.
#pragma once

#include <cstdint>
#include <vector>

#include "common/engine/sampler.h"
#include "common/transfer/transport.h"

namespace trivium::worker {

// A request at one stage. Invariants (kept by convert.h): at least one token, every id below the
// vocabulary, valid sampling, output_index < sampling.max_tokens, and prompt plus remaining output
// within the model's context.
struct StageRequest {
  transfer::Credentials key;
  std::vector<int32_t> token_ids;  // the prompt and what earlier attempts have emitted
  int32_t output_index = 0;        // of the next token: the number emitted already
  engine::SamplingParams sampling;

  int32_t prompt_tokens() const { return static_cast<int32_t>(token_ids.size()); }
  int32_t remaining_tokens() const { return sampling.max_tokens - output_index; }
};

// One token of the answer, with its place.
struct OutputToken {
  int32_t index = 0;
  engine::SampledToken token{};
  bool has_logprob = false;  // the request asked for it
  engine::FinishReason finish = engine::FinishReason::kNone;
};

inline int32_t BlocksFor(int32_t tokens, int32_t block_tokens) {
  return (tokens + block_tokens - 1) / block_tokens;
}

}  // namespace trivium::worker
