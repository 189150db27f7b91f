// The end of a prompt, at whichever stage computes it. Pure functions; safe from any thread.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "common/worker/types.h"

namespace trivium::worker {

// The next token of each choice, in order, from the logits [vocab] of the last row.
std::vector<OutputToken> SampleFirst(const StageRequest& request, std::span<const float> logits,
                                     std::span<const int32_t> end_ids);

// Some choice has not ended with its first token.
inline bool GoesOn(std::span<const OutputToken> first) {
  return std::any_of(first.begin(), first.end(), [](const OutputToken& token) {
    return token.finish == engine::FinishReason::kNone;
  });
}

}  // namespace trivium::worker
