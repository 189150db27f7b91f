#include "common/engine/step_cost.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace trivium::engine {
namespace {

constexpr double kForgetting = 0.99;
constexpr double kLeastSeconds = 1e-6;
constexpr double kPriorVariance = 1.0;
// Where the load does not vary, forgetting would let the variance of unseen directions grow without
// end.
constexpr double kMostVariance = 1e3;
// Deviation of a step's time, relative to it: what is assumed at first, and at least.
constexpr double kPriorError = 0.2;
constexpr double kLeastError = 0.03;
// The weight of each new step in it, and the most that one may count: some are held up by something
// else.
constexpr double kErrorGain = 0.03;
constexpr double kMostError = 1.0;
constexpr double kDeviations = 2.0;
// Features of about the same size keep the recursion well conditioned.
constexpr double kRowScale = 1e-2;
constexpr double kKeyScale = 1e-5;

std::array<double, 3> Features(int64_t rows, int64_t keys, double scale = 1.0) {
  return {scale, static_cast<double>(rows) * kRowScale * scale,
          static_cast<double>(keys) * kKeyScale * scale};
}

double Dot(const std::array<double, 3>& a, const std::array<double, 3>& b) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

std::array<double, 3> Times(const std::array<std::array<double, 3>, 3>& matrix,
                            const std::array<double, 3>& x) {
  return {Dot(matrix[0], x), Dot(matrix[1], x), Dot(matrix[2], x)};
}

}  // namespace

void StepCost::Observe(int64_t rows, int64_t keys, double seconds) {
  if (rows < 0 || keys < 0 || !std::isfinite(seconds) || seconds < 0) return;
  // Relative errors count, so that short steps are fitted as well as long ones and a step that was
  // held up by something else hardly matters.
  const Vector x = Features(rows, keys, 1.0 / std::max(seconds, kLeastSeconds));
  std::lock_guard lock(mutex_);
  if (observations_++ == 0) {
    for (size_t i = 0; i < 3; ++i) covariance_[i][i] = kPriorVariance;
    variance_ = kPriorError * kPriorError;
  }
  const Vector px = Times(covariance_, x);
  const double gain = 1.0 / (kForgetting + Dot(x, px));
  const double error = 1.0 - Dot(weights_, x);
  // What is not known yet is no noise.
  const double noise = error * error / (1.0 + Dot(x, px));
  variance_ += kErrorGain * (std::clamp(noise, kLeastError * kLeastError, kMostError) - variance_);
  const double trace = covariance_[0][0] + covariance_[1][1] + covariance_[2][2];
  const double forget = trace < kMostVariance ? 1.0 / kForgetting : 1.0;
  for (size_t i = 0; i < 3; ++i) {
    weights_[i] += gain * px[i] * error;
    for (size_t j = 0; j < 3; ++j) {
      covariance_[i][j] = (covariance_[i][j] - gain * px[i] * px[j]) * forget;
    }
  }
}

double StepCost::Predict(int64_t rows, int64_t keys) const {
  std::lock_guard lock(mutex_);
  return std::max(0.0, Dot(weights_, Features(rows, keys)));
}

double StepCost::PredictAtMost(int64_t rows, int64_t keys) const {
  std::lock_guard lock(mutex_);
  if (observations_ == 0) return std::numeric_limits<double>::infinity();
  const Vector x = Features(rows, keys);
  const double mean = std::max(0.0, Dot(weights_, x));
  return mean + kDeviations * std::sqrt(variance_ * (mean * mean + Dot(x, Times(covariance_, x))));
}

StepCost::Coefficients StepCost::coefficients() const {
  std::lock_guard lock(mutex_);
  return {weights_[0], weights_[1] * kRowScale, weights_[2] * kKeyScale, observations_};
}

}  // namespace trivium::engine
