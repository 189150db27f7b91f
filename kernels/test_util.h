// Helpers of the tests of kernels/: seeded random data, and every way in which Ops can be made.
// Test code only; not thread-safe.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "kernels/random_weights.h"

namespace trivium::kernels {

inline constexpr uint32_t kSeed = 20240611;

// One generator a test; prints its seed so that a failure can be repeated.
inline std::mt19937 SeededRandom(uint32_t salt = 0) {
  std::printf("seed %u + %u\n", kSeed, salt);
  return std::mt19937(kSeed + salt);
}

inline std::vector<float> RandomFloats(std::mt19937& random, int64_t count,
                                       float deviation = 1.0f) {
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> values(count);
  for (float& v : values) v = normal(random);
  return values;
}

// Weights of any type, as bytes of the file, with values of about the size of a model's.
inline std::vector<uint8_t> RandomWeights(std::mt19937& random, WeightType type, int64_t rows,
                                          int64_t cols) {
  std::vector<uint8_t> bytes(rows * RowBytes(type, cols));
  std::uniform_real_distribution<float> sigma(0.005f, 0.1f);
  for (size_t i = 0; i < bytes.size(); i += BlockBytes(type)) {
    FillRandomBlock(random, type, sigma(random) * (random() % 2 == 0 ? 1.0f : -1.0f), &bytes[i]);
  }
  return bytes;
}

inline std::vector<float> Dequantise(WeightType type, const std::vector<uint8_t>& bytes,
                                     int64_t rows, int64_t cols) {
  std::vector<float> values(rows * cols);
  for (int64_t r = 0; r < rows; ++r) {
    DequantizeRow(type, bytes.data() + r * RowBytes(type, cols), cols, values.data() + r * cols);
  }
  return values;
}

inline std::vector<OpsOptions> AllOptions() {
  std::vector<OpsOptions> all;
  for (const Isa isa : SupportedIsas()) {
    for (const Numerics numerics : {Numerics::kFast, Numerics::kBatchInvariant}) {
      for (const int threads : {1, 2}) all.push_back({isa, numerics, threads});
    }
  }
  return all;
}

inline std::string OptionsName(const OpsOptions& options) {
  return std::string(IsaName(options.isa)) +
         (options.numerics == Numerics::kFast ? "_fast_" : "_invariant_") +
         std::to_string(options.threads);
}

}  // namespace trivium::kernels
