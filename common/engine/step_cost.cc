#include "common/engine/step_cost.h"

#include <algorithm>
#include <cmath>

namespace trivium::engine {
namespace {

constexpr double kForgetting = 0.99;
constexpr double kLeastSeconds = 1e-6;
constexpr double kPriorVariance = 1.0;
// Where the load does not vary, forgetting would let the variance of unseen directions grow without
// end.
constexpr double kMostVariance = 1e3;
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

}  // namespace

void StepCost::Observe(int64_t rows, int64_t keys, double seconds) {
  if (rows < 0 || keys < 0 || !std::isfinite(seconds) || seconds < 0) return;
  // Relative errors count, so that short steps are fitted as well as long ones and a step that was
  // held up by something else hardly matters.
  const Vector x = Features(rows, keys, 1.0 / std::max(seconds, kLeastSeconds));
  std::lock_guard lock(mutex_);
  if (observations_++ == 0) {
    for (size_t i = 0; i < 3; ++i) covariance_[i][i] = kPriorVariance;
  }
  Vector px;
  for (size_t i = 0; i < 3; ++i) px[i] = Dot(covariance_[i], x);
  const double gain = 1.0 / (kForgetting + Dot(x, px));
  const double error = 1.0 - Dot(weights_, x);
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

StepCost::Coefficients StepCost::coefficients() const {
  std::lock_guard lock(mutex_);
  return {weights_[0], weights_[1] * kRowScale, weights_[2] * kKeyScale, observations_};
}

}  // namespace trivium::engine
