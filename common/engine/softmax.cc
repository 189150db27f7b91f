#include "common/engine/softmax.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cfloat>
#include <numeric>

namespace trivium::engine {
namespace {

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

}  // namespace

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

Softmax::Softmax(float highest, float temperature)
    : highest_(static_cast<double>(std::min(highest, FLT_MAX))),
      inverse_(1.0 / static_cast<double>(temperature)) {}

std::vector<double> Softmax::Weights(std::span<const float> logits) const {
  std::vector<double> weights(logits.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    weights[i] = logits[i] > kMasked ? Exponent(std::min(logits[i], FLT_MAX)) : -1e300;
  }
  ExpAll(weights.data(), weights.size());
  return weights;
}

std::vector<double> Softmax::Weights(const std::vector<Candidate>& candidates) const {
  std::vector<double> weights(candidates.size());
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = Exponent(candidates[i].logit);
  ExpAll(weights.data(), weights.size());
  return weights;
}

double Sum(const std::vector<double>& weights) {
  return std::accumulate(weights.begin(), weights.end(), 0.0);
}

}  // namespace trivium::engine
