// How often each token stands in a request so far, for the penalties. It is counted from the ids
// alone, so that whoever continues a request elsewhere holds the same.
//
// Thread-safety: none; belongs to one request. Holds at most one entry for each distinct token of
// the request, so never more than its context.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/engine/sampling_params.h"

namespace trivium::engine {

class TokenHistory {
 public:
  // Counts nothing: for requests without penalties.
  TokenHistory() = default;
  // `ids`: the prompt and the `output_tokens` (0 … ids.size()) newest ones behind it. Counts
  // nothing, and costs nothing, where `params` has no penalties. O(n log n).
  TokenHistory(const SamplingParams& params, std::span<const int32_t> ids, int32_t output_tokens);

  void Add(int32_t id);  // the newest output token; O(distinct tokens), without a search over ids

  struct Count {
    int32_t id = 0;
    int32_t in_output = 0;  // 0: only in the prompt
  };
  std::span<const Count> counts() const { return counts_; }  // by id
  bool is_counting() const { return is_counting_; }

 private:
  bool is_counting_ = false;
  std::vector<Count> counts_;
};

}  // namespace trivium::engine
