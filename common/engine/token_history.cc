#include "common/engine/token_history.h"

#include <algorithm>

#include "common/base/status.h"

namespace trivium::engine {

TokenHistory::TokenHistory(const SamplingParams& params, std::span<const int32_t> ids,
                           int32_t output_tokens)
    : is_counting_(params.has_penalties()) {
  if (!is_counting_) return;
  const auto outputs = static_cast<size_t>(output_tokens);
  TRIVIUM_CHECK(outputs <= ids.size(), "{} output tokens of {}", outputs, ids.size());
  std::vector<int32_t> sorted(ids.begin(), ids.end());
  std::sort(sorted.begin(), sorted.end());
  for (int32_t id : sorted) {
    if (counts_.empty() || counts_.back().id != id) counts_.push_back({id, 0});
  }
  for (int32_t id : ids.last(outputs)) Add(id);
}

void TokenHistory::Add(int32_t id) {
  if (!is_counting_) return;
  auto place =
      std::lower_bound(counts_.begin(), counts_.end(), id,
                       [](const Count& count, int32_t wanted) { return count.id < wanted; });
  if (place == counts_.end() || place->id != id) place = counts_.insert(place, {id, 0});
  ++place->in_output;
}

}  // namespace trivium::engine
