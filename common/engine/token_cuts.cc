#include "common/engine/token_cuts.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <functional>

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

// The first `count` by `before` move to the front, in order.
template <typename Before>
void SortFront(std::vector<Candidate>& candidates, size_t count, const Before& before) {
  const auto middle = candidates.begin() + static_cast<std::ptrdiff_t>(count);
  if (count < candidates.size()) {
    std::nth_element(candidates.begin(), middle, candidates.end(), before);
  }
  std::sort(candidates.begin(), middle, before);
}

// Keeps the fewest first ones by `before` whose weights reach `wanted`. Sorts ever more of the
// front: the mark is usually reached long before the end.
template <typename Before>
void CutAtWeight(std::vector<Candidate>& candidates, const Softmax& softmax, double wanted,
                 const Before& before) {
  for (size_t sorted = std::min<size_t>(64, candidates.size());;
       sorted = std::min(sorted * 8, candidates.size())) {
    SortFront(candidates, sorted, before);
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

// The tokens of at least `lightest`, which is above 0 only where a cut by weight comes first.
std::vector<Candidate> Weighty(std::span<const float> logits, const std::vector<double>& weights,
                               double lightest) {
  std::vector<Candidate> candidates;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] < lightest || weights[i] == 0) continue;
    candidates.push_back({std::min(logits[i], FLT_MAX), static_cast<int32_t>(i)});
  }
  return candidates;
}

// Locally typical sampling (Meister et al., 2022): the tokens whose information content lies
// nearest to the distribution's entropy. With weights w = e^x and their sum Z, a token's content is
// log Z - x and the entropy log Z - (sum of w·x) / Z: the distance needs no logarithm.
void CutTypical(std::vector<Candidate>& candidates, const Softmax& softmax, float typical_p) {
  double total = 0, moment = 0;
  for (const Candidate& candidate : candidates) {
    const double weight = softmax.Weight(candidate.logit);
    total += weight;
    moment += weight * softmax.Exponent(candidate.logit);
  }
  const double mean = moment / total;
  const auto distance = [&](const Candidate& candidate) {
    return std::abs(softmax.Exponent(candidate.logit) - mean);
  };
  CutAtWeight(candidates, softmax, static_cast<double>(typical_p) * total,
              [&](const Candidate& a, const Candidate& b) {
                const double from_a = distance(a), from_b = distance(b);
                return from_a != from_b ? from_a < from_b : MoreLikely(a, b);
              });
}

void CutLight(std::vector<Candidate>& candidates, const Softmax& softmax, float min_p) {
  const auto likeliest = std::min_element(candidates.begin(), candidates.end(), MoreLikely);
  if (likeliest == candidates.end()) return;
  const double least = static_cast<double>(min_p) * softmax.Weight(likeliest->logit);
  std::erase_if(candidates, [&](const Candidate& candidate) {
    return softmax.Weight(candidate.logit) < least;
  });
}

bool CutsByCount(const SamplingParams& params, size_t vocab) {
  return params.top_k > 0 && static_cast<size_t>(params.top_k) < vocab;
}

// What is worth looking at, and the weight that top_p has to reach a share of.
struct Shortlist {
  std::vector<Candidate> candidates;
  double total = 0;
};

Shortlist ShortlistByCount(std::span<const float> logits, const Softmax& softmax,
                           const SamplingParams& params) {
  Shortlist list;
  list.candidates = CutsByCount(params, logits.size())
                        ? TopK(logits, static_cast<size_t>(params.top_k))
                        : Candidates(logits, kMasked);
  if (params.typical_p < 1 && !list.candidates.empty()) {
    CutTypical(list.candidates, softmax, params.typical_p);
  }
  list.total = Sum(softmax.Weights(list.candidates));
  return list;
}

// For top_p and min_p alone, which both leave light tokens out.
Shortlist ShortlistByWeight(std::span<const float> logits, const Softmax& softmax,
                            const SamplingParams& params) {
  const std::vector<double> weights = softmax.Weights(logits);
  Shortlist list;
  list.total = Sum(weights);
  // All tokens lighter than this share together less than what top_p leaves out: none of them is
  // kept.
  const double lightest = 0.5 * (1.0 - static_cast<double>(params.top_p)) * list.total /
                          static_cast<double>(logits.size());
  list.candidates = Weighty(logits, weights, std::max(lightest, static_cast<double>(params.min_p)));
  return list;
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
  SortFront(candidates, count, MoreLikely);
  candidates.resize(count);
  return candidates;
}

bool HasCuts(const SamplingParams& params, size_t vocab) {
  return CutsByCount(params, vocab) || params.typical_p < 1 || params.top_p < 1 || params.min_p > 0;
}

std::vector<Candidate> KeepByCuts(std::span<const float> logits, const Softmax& softmax,
                                  const SamplingParams& params) {
  const bool by_weight_alone = !CutsByCount(params, logits.size()) && params.typical_p >= 1;
  Shortlist list = by_weight_alone ? ShortlistByWeight(logits, softmax, params)
                                   : ShortlistByCount(logits, softmax, params);
  std::vector<Candidate> kept = std::move(list.candidates);
  if (params.top_p < 1) {
    CutAtWeight(kept, softmax, static_cast<double>(params.top_p) * list.total, MoreLikely);
  }
  if (params.min_p > 0) CutLight(kept, softmax, params.min_p);
  std::sort(kept.begin(), kept.end(),
            [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  return kept;
}

}  // namespace trivium::engine
