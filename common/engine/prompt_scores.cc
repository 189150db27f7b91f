#include "common/engine/prompt_scores.h"

namespace trivium::engine {

std::vector<SampledToken> ScorePrompt(std::span<const int32_t> prompt, int32_t begin,
                                      std::span<const float> logits, int32_t vocab, int32_t top) {
  const auto width = static_cast<size_t>(vocab);
  const auto first = static_cast<size_t>(begin);
  std::vector<SampledToken> scores;
  if (begin == 0 && !prompt.empty()) scores.push_back({.id = prompt[0]});
  for (size_t row = 0; row < logits.size() / width && first + row + 1 < prompt.size(); ++row) {
    scores.push_back(Score(logits.subspan(row * width, width), prompt[first + row + 1], top));
  }
  return scores;
}

}  // namespace trivium::engine
