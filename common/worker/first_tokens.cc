#include "common/worker/first_tokens.h"

#include <utility>

namespace trivium::worker {

std::vector<OutputToken> SampleFirst(const StageRequest& request, std::span<const float> logits,
                                     std::span<const int32_t> end_ids) {
  const engine::TokenHistory history(request.sampling, request.token_ids, request.output_index);
  std::vector<OutputToken> tokens;
  for (int32_t choice = 0; choice < request.choices; ++choice) {
    const engine::SamplingParams params = request.SamplingOf(choice);
    OutputToken token{
        .choice = choice,
        .index = request.output_index,
        .token = engine::Sample(logits, params, request.output_index, end_ids, history),
        .has_logprob = params.logprobs >= 0};
    token.finish = engine::FinishAfter(token.token.id, params, token.index, end_ids);
    tokens.push_back(std::move(token));
  }
  return tokens;
}

}  // namespace trivium::worker
