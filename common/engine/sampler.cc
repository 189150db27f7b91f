#include "common/engine/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cfloat>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "common/engine/random.h"

namespace trivium::engine {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

struct Candidate {
  float logit;
  int32_t id;
};

// A strict order: most likely first, ties by the lower id.
bool MoreLikely(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

bool Contains(std::span<const int32_t> ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

constexpr std::array<double, 12> InverseFactorials() {
  std::array<double, 12> result{};
  double factorial = 1;
  for (size_t i = 0; i < result.size(); ++i) {
    if (i > 0) factorial *= static_cast<double>(i);
    result[i] = 1 / factorial;
  }
  return result;
}

// e^x for x <= 0 by fixed arithmetic: libm's result may differ from machine to machine, and with it
// a token. Below -700, where a double nears its smallest, it is 0. Free of branches, so that loops
// vectorise.
double Exp(double x) {
  constexpr std::array<double, 12> kTaylor = InverseFactorials();
  constexpr double kLog2e = 1.4426950408889634074;
  constexpr double kLn2High = 6.93147180369123816490e-01;
  constexpr double kLn2Low = 1.90821492927058770002e-10;
  constexpr double kRounder = 0x1.8p52;  // adding it leaves the rounded integer in the low bits
  const double clamped = x > -700.0 ? x : -700.0;
  const double shifted = clamped * kLog2e + kRounder;
  const double n = shifted - kRounder;
  const double r = (clamped - n * kLn2High) - n * kLn2Low;
  double sum = kTaylor.back();
  for (int i = static_cast<int>(kTaylor.size()) - 2; i >= 0; --i) sum = sum * r + kTaylor[i];
  const uint64_t power = (std::bit_cast<uint64_t>(shifted) << 52) + (uint64_t{1023} << 52);
  return x > -700.0 ? sum * std::bit_cast<double>(power) : 0.0;
}

// A function of its own over a plain array: so the compiler vectorises it.
[[gnu::noinline]] void ExpAll(double* values, size_t count) {
  for (size_t i = 0; i < count; ++i) values[i] = Exp(values[i]);
}

// The highest logit; a NaN never is. kMasked when there is none.
float Highest(std::span<const float> logits) {
  constexpr size_t kLanes = 8;
  std::array<float, kLanes> lanes;
  lanes.fill(kMasked);
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) {
      lanes[j] = logits[i + j] > lanes[j] ? logits[i + j] : lanes[j];
    }
  }
  float highest = *std::max_element(lanes.begin(), lanes.end());
  for (; i < logits.size(); ++i) highest = logits[i] > highest ? logits[i] : highest;
  return highest;
}

int32_t Greedy(std::span<const float> logits) {
  const auto found = std::find(logits.begin(), logits.end(), Highest(logits));
  return found == logits.end() ? 0 : static_cast<int32_t>(found - logits.begin());
}

// The tokens that can be drawn and whose logit is at least `least`, by id.
std::vector<Candidate> Candidates(std::span<const float> logits, float least) {
  std::vector<Candidate> candidates;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] >= least && logits[i] > kMasked) {
      candidates.push_back({std::min(logits[i], FLT_MAX), static_cast<int32_t>(i)});
    }
  }
  return candidates;
}

// The `count` most likely move to the front, in order.
void SortFront(std::vector<Candidate>& candidates, size_t count) {
  const auto middle = candidates.begin() + static_cast<std::ptrdiff_t>(count);
  if (count < candidates.size()) {
    std::nth_element(candidates.begin(), middle, candidates.end(), MoreLikely);
  }
  std::sort(candidates.begin(), middle, MoreLikely);
}

// The `count` most likely, most likely first. Of the highest logits of as many stretches as there
// are, the count-th is reached by at least `count` tokens: few others pass it, so that little is
// left to sort.
std::vector<Candidate> TopK(std::span<const float> logits, size_t count) {
  constexpr size_t kStretch = 64;
  float least = kMasked;
  if (count > 0 && count <= logits.size() / kStretch) {
    std::vector<float> highest;
    for (size_t i = 0; i + kStretch <= logits.size(); i += kStretch) {
      highest.push_back(Highest(logits.subspan(i, kStretch)));
    }
    const auto nth = highest.begin() + static_cast<std::ptrdiff_t>(count - 1);
    std::nth_element(highest.begin(), nth, highest.end(), std::greater<>());
    least = *nth;
  }
  std::vector<Candidate> candidates = Candidates(logits, least);
  count = std::min(count, candidates.size());
  SortFront(candidates, count);
  candidates.resize(count);
  return candidates;
}

// Softmax without its division: 1 for the highest logit.
class Softmax {
 public:
  Softmax(float highest, float temperature)
      : highest_(static_cast<double>(std::min(highest, FLT_MAX))),
        inverse_(1.0 / static_cast<double>(temperature)) {}

  double Weight(float logit) const { return Exp(Exponent(logit)); }
  // 0 for what can't be drawn.
  std::vector<double> Weights(std::span<const float> logits) const {
    std::vector<double> weights(logits.size());
    for (size_t i = 0; i < weights.size(); ++i) {
      weights[i] = logits[i] > kMasked ? Exponent(std::min(logits[i], FLT_MAX)) : -1e300;
    }
    ExpAll(weights.data(), weights.size());
    return weights;
  }
  std::vector<double> Weights(const std::vector<Candidate>& candidates) const {
    std::vector<double> weights(candidates.size());
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = Weight(candidates[i].logit);
    return weights;
  }

 private:
  double Exponent(float logit) const { return (static_cast<double>(logit) - highest_) * inverse_; }

  double highest_;
  double inverse_;
};

double Sum(const std::vector<double>& weights) {
  return std::accumulate(weights.begin(), weights.end(), 0.0);
}

// Keeps the fewest of the most likely whose weights reach `wanted`. Sorts ever more of the front:
// the mark is usually reached long before the end.
void CutAtWeight(std::vector<Candidate>& candidates, const Softmax& softmax, double wanted) {
  for (size_t sorted = std::min<size_t>(64, candidates.size());;
       sorted = std::min(sorted * 8, candidates.size())) {
    SortFront(candidates, sorted);
    double reached = 0;
    for (size_t i = 0; i < sorted; ++i) {
      reached += softmax.Weight(candidates[i].logit);
      if (reached < wanted) continue;
      candidates.resize(i + 1);
      return;
    }
    if (sorted == candidates.size()) return;
  }
}

std::vector<Candidate> TopP(std::span<const float> logits, const Softmax& softmax, float top_p) {
  const std::vector<double> weights = softmax.Weights(logits);
  const double total = Sum(weights);
  // All tokens lighter than this share together less than what top_p leaves out: none of them is
  // kept.
  const double lightest =
      0.5 * (1.0 - static_cast<double>(top_p)) * total / static_cast<double>(logits.size());
  std::vector<Candidate> candidates;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] < lightest || weights[i] == 0) continue;
    candidates.push_back({std::min(logits[i], FLT_MAX), static_cast<int32_t>(i)});
  }
  CutAtWeight(candidates, softmax, static_cast<double>(top_p) * total);
  return candidates;
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
  const auto top_k = static_cast<size_t>(params.top_k);
  const bool cuts_k = top_k > 0 && top_k < logits.size();
  if (!cuts_k && params.top_p >= 1) {
    return static_cast<int32_t>(DrawPlace(softmax.Weights(logits), params, output_index));
  }
  std::vector<Candidate> kept = cuts_k ? TopK(logits, top_k) : TopP(logits, softmax, params.top_p);
  if (cuts_k && params.top_p < 1) {
    CutAtWeight(kept, softmax, static_cast<double>(params.top_p) * Sum(softmax.Weights(kept)));
  }
  if (kept.empty()) return 0;
  std::sort(kept.begin(), kept.end(),
            [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  return kept[DrawPlace(softmax.Weights(kept), params, output_index)].id;
}

void AddLogprobs(std::span<const float> logits, int32_t count, SampledToken* token) {
  const float highest = Highest(logits);
  const double log_total = std::log(Sum(Softmax(highest, 1).Weights(logits)));
  const auto logprob = [&](float logit) {
    return static_cast<float>(static_cast<double>(logit) - std::min(highest, FLT_MAX) - log_total);
  };
  token->logprob = logprob(logits[static_cast<size_t>(token->id)]);
  for (const Candidate& candidate : TopK(logits, static_cast<size_t>(count))) {
    token->top.emplace_back(candidate.id, logprob(candidate.logit));
  }
}

int32_t Choose(std::span<const float> logits, const SamplingParams& params, int32_t output_index) {
  return params.temperature > 0 ? Draw(logits, params, output_index) : Greedy(logits);
}

// The logits without the tokens that would end the request.
std::vector<float> WithoutEnds(std::span<const float> logits, const SamplingParams& params,
                               std::span<const int32_t> end_ids) {
  std::vector<float> masked(logits.begin(), logits.end());
  for (std::span<const int32_t> ids : {end_ids, std::span<const int32_t>(params.stop_token_ids)}) {
    for (int32_t id : ids) {
      if (id >= 0 && static_cast<size_t>(id) < masked.size())
        masked[static_cast<size_t>(id)] = kMasked;
    }
  }
  return masked;
}

}  // namespace

absl::Status Validate(const SamplingParams& params, int32_t vocab) {
  // Written so that a NaN fails each test.
  if (!(params.temperature >= 0 && params.temperature <= 100)) {
    return InvalidArgument("sampling.temperature is {}, must be 0 … 100", params.temperature);
  }
  if (params.top_k < 0) return InvalidArgument("sampling.top_k is {}, must be >= 0", params.top_k);
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    return InvalidArgument("sampling.top_p is {}, must be above 0 and at most 1", params.top_p);
  }
  if (params.max_tokens < 1) {
    return InvalidArgument("sampling.max_tokens is {}, must be >= 1", params.max_tokens);
  }
  if (params.min_tokens < 0 || params.min_tokens > params.max_tokens) {
    return InvalidArgument("sampling.min_tokens is {}, must be 0 … max_tokens ({})",
                           params.min_tokens, params.max_tokens);
  }
  if (params.logprobs < -1 || params.logprobs > kMaxLogprobs) {
    return InvalidArgument("sampling.logprobs is {}, must be -1 … {}", params.logprobs,
                           kMaxLogprobs);
  }
  if (params.stop_token_ids.size() > kMaxStopTokens) {
    return InvalidArgument("sampling.stop_token_ids has {} entries, at most {}",
                           params.stop_token_ids.size(), kMaxStopTokens);
  }
  for (size_t i = 0; i < params.stop_token_ids.size(); ++i) {
    const int32_t id = params.stop_token_ids[i];
    if (id >= 0 && id < vocab) continue;
    return InvalidArgument("sampling.stop_token_ids[{}] is {}, must be 0 … {}", i, id, vocab - 1);
  }
  return absl::OkStatus();
}

SampledToken Sample(std::span<const float> logits, const SamplingParams& params,
                    int32_t output_index, std::span<const int32_t> end_ids) {
  TRIVIUM_CHECK(!logits.empty(), "no logits to sample from");
  SampledToken token;
  if (output_index < params.min_tokens) {
    token.id = Choose(WithoutEnds(logits, params, end_ids), params, output_index);
  } else {
    token.id = Choose(logits, params, output_index);
  }
  if (params.logprobs >= 0) AddLogprobs(logits, params.logprobs, &token);
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
