// Test support: the "model" of simulated workers, a hash of all ids so far, and of the seed where
// the temperature is not 0. Pure functions; safe from any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trivium/v1/stage.pb.h"

namespace trivium::router {

struct SimOptions {
  int prefill_workers = 2, decode_workers = 2;
  int32_t decode_blocks = 64, prefill_blocks = 64;
  // Decode admits on it, grows and preempts itself when no block is left; 0: admits in full.
  int32_t expected_output_tokens = 0;
  int32_t vocab = 320, end_id = 2;
  std::string numerics_class = "batch_invariant/test";
  int32_t cached_tokens = 0;  // that prefill says it held of every prompt
};

inline int32_t HashToken(const SimOptions& options, const std::vector<int32_t>& ids,
                         const v1::StageSampling& sampling, int32_t choice = 0) {
  uint64_t hash = 1469598103934665603ull;
  if (sampling.temperature() > 0) hash ^= (sampling.seed() + choice) * 0x9e3779b97f4a7c15ull;
  for (const int32_t id : ids) hash = (hash ^ static_cast<uint64_t>(id)) * 1099511628211ull;
  hash ^= hash >> 29;
  // Control tokens come first in the vocabulary; the end of the text is rare.
  if (hash % 53 == 0) return options.end_id;
  return 3 + static_cast<int32_t>((hash >> 8) % static_cast<uint64_t>(options.vocab - 3));
}

inline std::string FinishOf(const SimOptions& options, int32_t id, int32_t index,
                            const v1::StageSampling& sampling) {
  if (id == options.end_id && !sampling.ignore_eos()) return "stop";
  return index + 1 == sampling.max_tokens() ? "length" : "";
}

// What the whole answer to `ids` has to be.
struct SimAnswer {
  std::vector<int32_t> ids;
  std::string finish_reason;
};
inline SimAnswer ExpectedAnswer(const SimOptions& options, std::vector<int32_t> ids,
                                const v1::StageSampling& sampling) {
  SimAnswer answer;
  while (answer.finish_reason.empty()) {
    const int32_t id = HashToken(options, ids, sampling);
    answer.finish_reason = FinishOf(options, id, static_cast<int32_t>(answer.ids.size()), sampling);
    answer.ids.push_back(id);
    ids.push_back(id);
  }
  return answer;
}

// What prefill says of the token at `index` of a prompt.
inline v1::StageToken SimPromptToken(const SimOptions& options, const std::vector<int32_t>& prompt,
                                     int32_t index, int32_t alternatives) {
  v1::StageToken token;
  token.set_index(index);
  token.set_id(prompt[static_cast<size_t>(index)]);
  if (index == 0) return token;
  const int32_t hash = HashToken(options, {prompt.begin(), prompt.begin() + index + 1}, {});
  token.set_logprob(-static_cast<float>(hash));
  for (int32_t i = 0; i < alternatives; ++i) token.add_top()->set_id((hash + i) % options.vocab);
  return token;
}

}  // namespace trivium::router
