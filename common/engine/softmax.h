// Probabilities from logits by fixed double-precision arithmetic: equal bits give equal bits on
// every machine. Stateless; safe from any thread.
//
// A logit of minus infinity or NaN has no weight; one above FLT_MAX counts as FLT_MAX.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace trivium::engine {

inline constexpr float kMasked = -std::numeric_limits<float>::infinity();

// A token that can be drawn.
struct Candidate {
  float logit;  // finite
  int32_t id;
};

// The highest logit; a NaN never is. kMasked when there is none.
float Highest(std::span<const float> logits);

// Softmax without its division: 1 for the highest logit.
class Softmax {
 public:
  Softmax(float highest, float temperature);

  // Natural log of a weight, before that is cut to 0 far down.
  double Exponent(float logit) const { return (static_cast<double>(logit) - highest_) * inverse_; }
  std::vector<double> Weights(std::span<const float> logits) const;
  std::vector<double> Weights(const std::vector<Candidate>& candidates) const;

 private:
  double highest_;
  double inverse_;
};

double Sum(const std::vector<double>& weights);

}  // namespace trivium::engine
