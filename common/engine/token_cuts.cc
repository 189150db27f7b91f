#include "common/engine/token_cuts.h"

#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <functional>
#include <numeric>
#include <utility>

namespace trivium::engine {
namespace {

// A strict order: most likely first, ties by the lower id.
bool MoreLikely(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
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

// A token with its place in the order of a cut: low ranks stay.
struct Ranked {
  double rank;
  double weight;  // above 0
  Candidate token;
};

bool Before(const Ranked& a, const Ranked& b) {
  return a.rank != b.rank ? a.rank < b.rank : MoreLikely(a.token, b.token);
}

double Total(const std::vector<Ranked>& tokens) {
  return std::accumulate(tokens.begin(), tokens.end(), 0.0,
                         [](double sum, const Ranked& one) { return sum + one.weight; });
}

// Splits the range of ranks and decides all tokens but those of the part in which the weight
// reaches `wanted`. False: the ranks cannot be split.
bool Narrow(double wanted, std::vector<Ranked>* tokens, std::vector<Ranked>* kept,
            double* reached) {
  constexpr int kParts = 256;
  double low = tokens->front().rank, high = low;
  for (const Ranked& one : *tokens) {
    low = std::min(low, one.rank);
    high = std::max(high, one.rank);
  }
  const double scale = kParts / (high - low);
  if (!std::isfinite(scale)) return false;
  const auto part_of = [&](const Ranked& one) {
    return std::min(kParts - 1, static_cast<int>((one.rank - low) * scale));
  };
  std::array<double, kParts> weights{};
  for (const Ranked& one : *tokens) weights[static_cast<size_t>(part_of(one))] += one.weight;
  int open = 0;
  for (; open + 1 < kParts; ++open) {
    const double weight = weights[static_cast<size_t>(open)];
    if (*reached + weight >= wanted) break;
    *reached += weight;
  }
  size_t left = 0;
  for (const Ranked& one : *tokens) {
    const int part = part_of(one);
    if (part < open) kept->push_back(one);
    if (part == open) (*tokens)[left++] = one;
  }
  tokens->resize(left);
  return true;
}

// Keeps the fewest of the lowest ranks whose weights reach `wanted`. Sorts only the few around the
// mark.
void KeepLowest(double wanted, std::vector<Ranked>* tokens) {
  constexpr size_t kSorted = 128;
  std::vector<Ranked> kept;
  kept.reserve(tokens->size());
  double reached = 0;
  while (tokens->size() > kSorted && Narrow(wanted, tokens, &kept, &reached)) {
  }
  std::sort(tokens->begin(), tokens->end(), Before);
  for (const Ranked& one : *tokens) {
    kept.push_back(one);
    reached += one.weight;
    if (reached >= wanted) break;
  }
  *tokens = std::move(kept);
}

// Locally typical sampling (Meister et al., 2022): the tokens whose information content lies
// nearest to the distribution's entropy. With weights w = e^x and their sum Z, a token's content is
// log Z - x and the entropy log Z - (sum of w·x) / Z: the distance needs no logarithm.
void CutTypical(const Softmax& softmax, float typical_p, std::vector<Ranked>* tokens) {
  const double total = Total(*tokens);
  double moment = 0;
  for (const Ranked& one : *tokens) moment += one.weight * softmax.Exponent(one.token.logit);
  for (Ranked& one : *tokens) {
    one.rank = std::abs(softmax.Exponent(one.token.logit) - moment / total);
  }
  KeepLowest(static_cast<double>(typical_p) * total, tokens);
}

// `total`: of the weights that top_p is a share of.
void CutUnlikely(float top_p, double total, std::vector<Ranked>* tokens) {
  for (Ranked& one : *tokens) one.rank = -static_cast<double>(one.token.logit);
  KeepLowest(static_cast<double>(top_p) * total, tokens);
}

void CutLight(float min_p, std::vector<Ranked>* tokens) {
  double most = 0;
  for (const Ranked& one : *tokens) most = std::max(most, one.weight);
  std::erase_if(*tokens, [least = static_cast<double>(min_p) * most](const Ranked& one) {
    return one.weight < least;
  });
}

bool CutsByCount(const SamplingParams& params, size_t vocab) {
  return params.top_k > 0 && static_cast<size_t>(params.top_k) < vocab;
}

std::vector<Ranked> MostLikely(std::span<const float> logits, const Softmax& softmax,
                               size_t count) {
  const std::vector<Candidate> candidates = TopK(logits, count);
  const std::vector<double> weights = softmax.Weights(candidates);
  std::vector<Ranked> tokens;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] > 0) tokens.push_back({0, weights[i], candidates[i]});
  }
  return tokens;
}

std::vector<Ranked> AtLeast(std::span<const float> logits, const std::vector<double>& weights,
                            double lightest) {
  std::vector<Ranked> tokens;
  tokens.reserve(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] < lightest || weights[i] == 0) continue;
    tokens.push_back({0, weights[i], {std::min(logits[i], FLT_MAX), static_cast<int32_t>(i)}});
  }
  return tokens;
}

// Of a whole vocabulary only what can outlast top_p and min_p is worth a look, unless typical_p,
// which may prefer the light ones, comes before them.
double LightestKept(const SamplingParams& params, double total, size_t vocab) {
  if (params.typical_p < 1) return 0;
  // All tokens lighter than this share together less than what top_p leaves out.
  const double lightest =
      0.5 * (1.0 - static_cast<double>(params.top_p)) * total / static_cast<double>(vocab);
  return std::max(lightest, static_cast<double>(params.min_p));
}

}  // namespace

// Of the highest logits of as many stretches as there are, the count-th is reached by at least
// `count` tokens: few others pass it, so that little is left to sort.
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

bool HasCuts(const SamplingParams& params, size_t vocab) {
  return CutsByCount(params, vocab) || params.typical_p < 1 || params.top_p < 1 || params.min_p > 0;
}

std::vector<Candidate> KeepByCuts(std::span<const float> logits, const Softmax& softmax,
                                  const SamplingParams& params) {
  std::vector<Ranked> tokens;
  double total = 0;
  if (CutsByCount(params, logits.size())) {
    tokens = MostLikely(logits, softmax, static_cast<size_t>(params.top_k));
    total = Total(tokens);
  } else {
    const std::vector<double> weights = softmax.Weights(logits);
    total = Sum(weights);
    tokens = AtLeast(logits, weights, LightestKept(params, total, logits.size()));
  }
  if (params.typical_p < 1 && !tokens.empty()) {
    CutTypical(softmax, params.typical_p, &tokens);
    total = Total(tokens);
  }
  if (params.top_p < 1) CutUnlikely(params.top_p, total, &tokens);
  if (params.min_p > 0) CutLight(params.min_p, &tokens);
  std::vector<Candidate> kept;
  for (const Ranked& one : tokens) kept.push_back(one.token);
  std::sort(kept.begin(), kept.end(),
            [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  return kept;
}

}  // namespace trivium::engine
