#include "common/engine/sampler.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "common/engine/random.h"
#include "common/engine/softmax.h"
#include "common/engine/token_cuts.h"

namespace trivium::engine {
namespace {

bool Contains(std::span<const int32_t> ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

int32_t Greedy(std::span<const float> logits) {
  const auto found = std::find(logits.begin(), logits.end(), Highest(logits));
  return found == logits.end() ? 0 : static_cast<int32_t>(found - logits.begin());
}

// Where the running sum of the weights passes the draw; never a place of weight 0 unless all are.
size_t DrawPlace(const std::vector<double>& weights, const SamplingParams& params,
                 int32_t output_index) {
  const double aim = Uniform(params.seed, static_cast<uint64_t>(output_index)) * Sum(weights);
  double reached = 0;
  size_t drawn = 0;
  for (size_t i = 0; i < weights.size() && !(aim < reached); ++i) {
    if (weights[i] == 0) continue;
    drawn = i;
    reached += weights[i];
  }
  return drawn;
}

int32_t Draw(std::span<const float> logits, const SamplingParams& params, int32_t output_index) {
  const Softmax softmax(Highest(logits), params.temperature);
  if (!HasCuts(params, logits.size())) {
    return static_cast<int32_t>(DrawPlace(softmax.Weights(logits), params, output_index));
  }
  const std::vector<Candidate> kept = KeepByCuts(logits, softmax, params);
  return kept.empty() ? 0 : kept[DrawPlace(softmax.Weights(kept), params, output_index)].id;
}

int32_t Choose(std::span<const float> logits, const SamplingParams& params, int32_t output_index) {
  return params.temperature > 0 ? Draw(logits, params, output_index) : Greedy(logits);
}

// Neither edit makes a finite logit infinite: only a mask takes a token out altogether.
float Finite(double edited) {
  return static_cast<float>(std::clamp(edited, -double{FLT_MAX}, double{FLT_MAX}));
}

void Penalise(std::span<float> logits, const SamplingParams& params, const TokenHistory& history) {
  const auto repetition = static_cast<double>(params.repetition_penalty);
  for (const TokenHistory::Count& count : history.counts()) {
    float& logit = logits[static_cast<size_t>(count.id)];
    if (!std::isfinite(logit)) continue;
    double edited = static_cast<double>(logit);
    edited = edited > 0 ? edited / repetition : edited * repetition;
    if (count.in_output > 0) {
      edited -= count.in_output * static_cast<double>(params.frequency_penalty);
      edited -= static_cast<double>(params.presence_penalty);
    }
    logit = Finite(edited);
  }
}

void MaskAll(std::span<float> logits, std::span<const int32_t> ids) {
  for (int32_t id : ids) {
    if (id >= 0 && static_cast<size_t>(id) < logits.size())
      logits[static_cast<size_t>(id)] = kMasked;
  }
}

std::vector<float> Edited(std::span<const float> logits, const SamplingParams& params,
                          bool masks_ends, std::span<const int32_t> end_ids,
                          const TokenHistory& history) {
  std::vector<float> edited(logits.begin(), logits.end());
  Penalise(edited, params, history);
  for (const auto& [id, bias] : params.logit_bias) {
    float& logit = edited[static_cast<size_t>(id)];
    if (std::isfinite(logit))
      logit = Finite(static_cast<double>(logit) + static_cast<double>(bias));
  }
  if (masks_ends) {
    MaskAll(edited, end_ids);
    MaskAll(edited, params.stop_token_ids);
  }
  return edited;
}

}  // namespace

SampledToken Sample(std::span<const float> logits, const SamplingParams& params,
                    int32_t output_index, std::span<const int32_t> end_ids,
                    const TokenHistory& history) {
  TRIVIUM_CHECK(!logits.empty(), "no logits to sample from");
  TRIVIUM_CHECK(history.is_counting() || !params.has_penalties(), "penalties without a history");
  const bool masks_ends = output_index < params.min_tokens;
  const bool is_edited = masks_ends || history.is_counting() || !params.logit_bias.empty();
  const int32_t id =
      is_edited ? Choose(Edited(logits, params, masks_ends, end_ids, history), params, output_index)
                : Choose(logits, params, output_index);
  if (params.logprobs >= 0) return Score(logits, id, params.logprobs);
  return {.id = id};
}

SampledToken Score(std::span<const float> logits, int32_t id, int32_t top) {
  const float highest = Highest(logits);
  const double log_total = std::log(Sum(Softmax(highest, 1).Weights(logits)));
  const auto logprob = [&](float logit) {
    return static_cast<float>(static_cast<double>(logit) - std::min(highest, FLT_MAX) - log_total);
  };
  SampledToken token{.id = id, .logprob = logprob(logits[static_cast<size_t>(id)])};
  for (const Candidate& candidate : TopK(logits, static_cast<size_t>(top))) {
    token.top.emplace_back(candidate.id, logprob(candidate.logit));
  }
  return token;
}

FinishReason FinishAfter(int32_t id, const SamplingParams& params, int32_t output_index,
                         std::span<const int32_t> end_ids) {
  const bool ends =
      (!params.ignore_eos && Contains(end_ids, id)) || Contains(params.stop_token_ids, id);
  if (ends && output_index >= params.min_tokens) return FinishReason::kStop;
  return output_index + 1 >= params.max_tokens ? FinishReason::kLength : FinishReason::kNone;
}

}  // namespace trivium::engine
