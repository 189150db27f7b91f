// What a step costs on this machine: seconds = a + b * rows + c * keys, fitted online by recursive
// least squares that forgets old steps (each new one takes 1 % of their weight). Thread-safety: all
// methods, any thread.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>

namespace trivium::engine {

class StepCost {
 public:
  struct Coefficients {
    double a = 0;  // seconds a step
    double b = 0;  // seconds a row
    double c = 0;  // seconds a (row, visible key) pair
    int64_t observations = 0;
  };

  // `rows`: rows of the step; `keys`: sum over the rows of the keys that each row sees.
  // Negative counts and times that are negative or not finite are ignored.
  void Observe(int64_t rows, int64_t keys, double seconds);
  // Seconds, never negative; 0 before the first observation.
  double Predict(int64_t rows, int64_t keys) const;
  // The same and two standard deviations: of what steps vary by, and of what is not known because
  // no step of late was like it. Infinite before the first observation.
  double PredictAtMost(int64_t rows, int64_t keys) const;
  Coefficients coefficients() const;

 private:
  using Vector = std::array<double, 3>;

  mutable std::mutex mutex_;
  Vector weights_{};                    // of the scaled features
  std::array<Vector, 3> covariance_{};  // of the weights, in units of variance_
  double variance_ = 0;                 // of a step's time, relative to it
  int64_t observations_ = 0;
};

// Keys seen by the rows of a causal range: row i of it sees position + i + 1.
inline int64_t KeysOfRange(int64_t position, int64_t rows) {
  return rows * position + rows * (rows + 1) / 2;
}

}  // namespace trivium::engine
