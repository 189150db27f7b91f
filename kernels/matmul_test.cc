// Matrix products of every path against float64 sums over the exactly dequantised weights.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/test_util.h"

namespace trivium::kernels {
namespace {

constexpr double kEpsilon = 0x1p-23;

struct Shape {
  int64_t n, k;
};

std::vector<WeightType> BlockTypes() {
  std::vector<WeightType> types;
  for (const WeightType type : AllWeightTypes()) {
    if (BlockElems(type) > 1) types.push_back(type);
  }
  return types;
}

// The integers that activations are rounded to beside such weights: in blocks that matter, and in
// those whose largest activation is below the root mean square of the largest of all blocks.
struct Levels {
  double most = 0;  // 0: not rounded
  double least = 0;
};

Levels LevelsOf(WeightType type) {
  switch (type) {
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16:
      return {};
    case WeightType::kQ4_0:
    case WeightType::kQ4_1:
    case WeightType::kQ2_K:
    case WeightType::kQ3_K:
    case WeightType::kQ4_K:
      return {127 * 128, 127};
    default:
      return {127 * 256, 127 * 256};
  }
}

float LargestOfBlock(const float* x, int64_t begin, int64_t k) {
  float limit = 0;
  for (int64_t i = begin; i < std::min(k, begin + 32); ++i) limit = std::max(limit, std::abs(x[i]));
  return limit;
}

double MeanSquareOfLargest(const float* x, int64_t k) {
  double squares = 0;
  for (int64_t b = 0; b < k; b += 32) squares += std::pow(LargestOfBlock(x, b, k), 2);
  return squares * 32 / static_cast<double>(k);
}

// What rounding may cost one output: activations to integers (half a step of their block, for
// quantised weights) or to bfloat16 (large batches of the amx path), and
// float32 sums.
struct Bound {
  double worst = 0;     // no output may be farther off
  double variance = 0;  // of the error, if roundings are independent
};

Bound ErrorBound(const float* x, const float* w, int64_t k, Levels levels, bool bfloat) {
  Bound bound;
  double total = 0;
  const double mean = MeanSquareOfLargest(x, k);
  for (int64_t b = 0; b < k; b += 32) {
    const float limit = LargestOfBlock(x, b, k);
    // Where rounding of the mean decides, either is right.
    const double used = double{limit} * limit > mean * (1 + 1e-5) ? levels.most : levels.least;
    for (int64_t i = b; i < std::min(k, b + 32); ++i) {
      const double product = std::abs(double{x[i]} * w[i]);
      double error = 0;
      if (used > 0) error = limit / used * 0.501 * std::abs(w[i]);
      if (bfloat) error = std::max(error, product * 0x1p-7);
      total += product + error;
      bound.worst += error;
      bound.variance += error * error / 3;
    }
  }
  // Minima and offsets are summed apart from the products; 16 covers their size in these tests.
  bound.worst += 16 * total * kEpsilon * std::sqrt(static_cast<double>(k));
  bound.variance += std::pow(16 * total * kEpsilon, 2);
  return bound;
}

class MatmulTest : public testing::TestWithParam<OpsOptions> {
 protected:
  // The first rows of one input, as many as each count says.
  void Check(WeightType type, Shape shape, std::initializer_list<int> row_counts,
             std::mt19937& random) {
    SCOPED_TRACE(testing::Message() << WeightTypeName(type) << " " << shape.k << "->" << shape.n);
    const int most_rows = std::max(row_counts);
    const auto ops = MakeOps(GetParam());
    const auto bytes = RandomWeights(random, type, shape.n, shape.k);
    const auto weights = Dequantise(type, bytes, shape.n, shape.k);
    const auto x = RandomFloats(random, most_rows * shape.k);
    const auto expected = ExactSums(type, shape, weights, x);
    const auto matrix = ops->Pack({type, bytes.data(), shape.n, shape.k});
    for (const int rows : row_counts) {
      SCOPED_TRACE(testing::Message() << "rows " << rows);
      std::vector<float> y(rows * shape.n + 1, -77.0f);
      ops->Matmul(*matrix, x.data(), rows, y.data());
      ASSERT_EQ(y.back(), -77.0f) << "wrote past the end";
      y.pop_back();
      CheckErrors(y, expected);
    }
  }

 private:
  struct Expected {
    double sum;
    Bound bound;
  };

  // [row][output] for all rows of x.
  static std::vector<Expected> ExactSums(WeightType type, Shape shape,
                                         const std::vector<float>& weights,
                                         const std::vector<float>& x) {
    const Levels levels = GetParam().isa == Isa::kReference ? Levels{} : LevelsOf(type);
    const bool bfloat = GetParam().isa == Isa::kAmx && GetParam().numerics == Numerics::kFast;
    std::vector<Expected> expected;
    for (auto a = x.begin(); a != x.end(); a += shape.k) {
      for (auto w = weights.begin(); w != weights.end(); w += shape.k) {
        double sum = 0;
        for (int64_t i = 0; i < shape.k; ++i) sum += double{a[i]} * w[i];
        expected.push_back({sum, ErrorBound(&*a, &*w, shape.k, levels, bfloat)});
      }
    }
    return expected;
  }

  static void CheckErrors(const std::vector<float>& y, const std::vector<Expected>& expected) {
    double squares = 0, expected_squares = 0;
    for (size_t i = 0; i < y.size(); ++i) {
      const double error = y[i] - expected[i].sum;
      ASSERT_LE(std::abs(error), expected[i].bound.worst) << "value " << i;
      squares += error * error;
      expected_squares += expected[i].bound.variance;
    }
    if (y.size() >= 500) {
      EXPECT_LE(squares, 1.3 * expected_squares);
    }
  }
};

TEST_P(MatmulTest, AgreesWithExactSums) {
  auto random = SeededRandom();
  for (const WeightType type : AllWeightTypes()) {
    for (const Shape shape : {Shape{1, 32}, {7, 64}, {192, 96}, {33, 576}, {64, 1536}, {9, 256}}) {
      if (shape.k % BlockElems(type) != 0) continue;
      Check(type, shape, {1, 2, 3, 5, 16, 17, 64, 100}, random);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(MatmulTest, AgreesOnModelShapes) {
  auto random = SeededRandom(1);
  Check(WeightType::kQ4_1, {1536, 576}, {17}, random);
  Check(WeightType::kQ4_1, {576, 1536}, {17}, random);
  Check(WeightType::kQ8_0, {1536, 576}, {3}, random);
  Check(WeightType::kQ4_1, {40, 1536}, {400}, random);  // more rows than stay in a cache
}

TEST_P(MatmulTest, FloatTypesTakeAnyInputCount) {
  auto random = SeededRandom(2);
  for (const WeightType type : {WeightType::kF32, WeightType::kF16, WeightType::kBF16}) {
    for (const int64_t k : {1, 7, 33}) Check(type, {19, k}, {9}, random);
  }
}

// Several products of one x, and one gated by another, are what each gives by itself.
TEST_P(MatmulTest, ManyRowsShareTheirProducts) {
  auto random = SeededRandom(6);
  const auto ops = MakeOps(GetParam());
  constexpr int64_t kCols = 512, kOutputs = 332;  // the last panel is not full
  constexpr int kMostRows = 1100;                 // more than stay in a cache
  const auto x = RandomFloats(random, kMostRows * kCols);
  for (const WeightType type : AllWeightTypes()) {
    const bool all = type == WeightType::kQ4_1 && GetParam().isa != Isa::kReference;
    const auto gate_bytes = RandomWeights(random, type, kOutputs, kCols);
    const auto up_bytes = RandomWeights(random, type, kOutputs, kCols);
    const auto gate = ops->Pack({type, gate_bytes.data(), kOutputs, kCols});
    const auto up = ops->Pack({type, up_bytes.data(), kOutputs, kCols});
    for (const int rows : {5, 16, 40, all ? kMostRows : 70}) {
      std::vector<float> y(rows * kOutputs), z(y.size()), expected(y.size()), factor(y.size());
      ops->Matmul(*gate, x.data(), rows, expected.data());
      ops->Matmul(*up, x.data(), rows, factor.data());
      const Product products[] = {{gate.get(), y.data()}, {up.get(), z.data()}};
      ops->MatmulAll(products, x.data(), rows);
      EXPECT_TRUE(y == expected && z == factor) << WeightTypeName(type) << " rows " << rows;
      ops->MatmulGated(Activation::kSilu, products[0], products[1], x.data(), rows);
      ops->ActivateMul(Activation::kSilu, expected.data(), factor.data(), rows * kOutputs);
      for (size_t i = 0; i < y.size(); ++i) {
        ASSERT_NEAR(y[i], expected[i], 1e-5 * std::abs(expected[i]) + 1e-30)
            << WeightTypeName(type) << " rows " << rows << " value " << i;
      }
    }
  }
}

// What goes from the gated products into the next one is what both give by themselves.
TEST_P(MatmulTest, GatedRowsGoDown) {
  auto random = SeededRandom(7);
  const auto ops = MakeOps(GetParam());
  constexpr int64_t kMostCols = 2304, kInner = 256, kOutputs = 40;
  constexpr int kMostRows = 300;  // with as many inputs more than stay in a cache
  const auto x = RandomFloats(random, kMostRows * kMostCols);
  const auto pack = [&](WeightType type, int64_t n, int64_t k, std::vector<uint8_t>& bytes) {
    bytes = RandomWeights(random, type, n, k);
    return ops->Pack({type, bytes.data(), n, k});
  };
  for (const WeightType type : AllWeightTypes()) {
    std::vector<uint8_t> bytes[3];
    const bool all = type == WeightType::kQ4_1 && GetParam().isa != Isa::kReference;
    const int64_t cols = all ? kMostCols : 256;
    const auto gate = pack(WeightType::kQ4_1, kInner, cols, bytes[0]);
    const auto up = pack(WeightType::kQ4_1, kInner, cols, bytes[1]);
    const auto down = pack(type, kOutputs, kInner, bytes[2]);
    for (const int rows : {1, 5, 16, 40, all ? kMostRows : 70}) {
      std::vector<float> a(rows * kInner), b(a.size()), y(rows * kOutputs), expected(y.size());
      const Product products[] = {{gate.get(), a.data()}, {up.get(), b.data()}};
      ops->MatmulGated(Activation::kSilu, products[0], products[1], x.data(), rows);
      ops->Matmul(*down, a.data(), rows, expected.data());
      ops->MatmulGatedDown(Activation::kSilu, products[0], products[1], {down.get(), y.data()},
                           x.data(), rows);
      EXPECT_EQ(y, expected) << WeightTypeName(type) << " rows " << rows;
    }
  }
}

// Integers with 127 in every block survive the rounding of activations, so nothing but float32 sums
// is left.
TEST_P(MatmulTest, IsExactOnIntegers) {
  auto random = SeededRandom(3);
  const auto ops = MakeOps(GetParam());
  constexpr int64_t kN = 24, kK = 768;
  constexpr int kRows = 70;
  std::vector<float> x(kRows * kK);
  for (float& v : x) v = static_cast<float>(static_cast<int>(random() % 255) - 127);
  for (size_t i = 0; i < x.size(); i += 32) x[i + random() % 32] = 127.0f;
  for (const WeightType type : BlockTypes()) {
    auto bytes = RandomWeights(random, type, kN, kK);
    for (size_t i = 0; i < bytes.size(); i += BlockBytes(type)) {
      SetScale(type, 1.0f, &bytes[i]);
      // The extremes, among them -128, which no encoder writes.
      if (type == WeightType::kQ8_0) bytes[i + 2 + random() % 32] = 0x80;
    }
    const auto weights = Dequantise(type, bytes, kN, kK);
    const auto matrix = ops->Pack({type, bytes.data(), kN, kK});
    const int rows =
        GetParam().isa == Isa::kAmx && GetParam().numerics == Numerics::kFast ? 1 : kRows;
    std::vector<float> y(rows * kN);
    ops->Matmul(*matrix, x.data(), rows, y.data());
    for (int64_t i = 0; i < rows * kN; ++i) {
      double exact = 0;
      for (int64_t k = 0; k < kK; ++k)
        exact += double{x[i / kN * kK + k]} * weights[i % kN * kK + k];
      ASSERT_EQ(y[i], exact) << WeightTypeName(type) << " " << i;
    }
  }
}

TEST_P(MatmulTest, ExtremeIntegersDoNotOverflow) {
  const auto ops = MakeOps(GetParam());
  constexpr int64_t kK = 1536;
  const std::vector<float> x(kK, -3.0f);
  for (const uint8_t fill : {uint8_t{0x80}, uint8_t{0x7f}, uint8_t{0xff}, uint8_t{0x00}}) {
    for (const WeightType type : BlockTypes()) {
      std::vector<uint8_t> bytes(RowBytes(type, kK), fill);
      for (size_t i = 0; i < bytes.size(); i += BlockBytes(type)) SetScale(type, 1.0f, &bytes[i]);
      const auto weights = Dequantise(type, bytes, 1, kK);
      double exact = 0;
      for (const float w : weights) exact -= 3.0 * w;
      float y = 0;
      ops->Matmul(*ops->Pack({type, bytes.data(), 1, kK}), x.data(), 1, &y);
      EXPECT_NEAR(y, exact, std::abs(exact) * 1e-5 + 1e-2)
          << WeightTypeName(type) << " " << int{fill};
    }
  }
}

TEST_P(MatmulTest, NonFiniteActivationsStayVisibleInTheirRowOnly) {
  auto random = SeededRandom(4);
  const auto ops = MakeOps(GetParam());
  for (const WeightType type : AllWeightTypes()) {
    const auto bytes = RandomWeights(random, type, 16, 256);
    const auto matrix = ops->Pack({type, bytes.data(), 16, 256});
    for (const float bad : {NAN, INFINITY}) {
      for (const int rows : {3, 7}) {
        auto x = RandomFloats(random, rows * 256);
        x[256 + 40] = bad;
        std::vector<float> y(rows * 16);
        ops->Matmul(*matrix, x.data(), rows, y.data());
        for (int i = 0; i < rows * 16; ++i) {
          EXPECT_EQ(std::isfinite(y[i]), i / 16 != 1)
              << WeightTypeName(type) << " " << bad << " row " << i / 16 << " of " << rows;
        }
      }
    }
  }
}

TEST_P(MatmulTest, ZeroAndTinyRows) {
  auto random = SeededRandom(5);
  const auto ops = MakeOps(GetParam());
  const auto bytes = RandomWeights(random, WeightType::kQ4_1, 8, 32);
  const auto matrix = ops->Pack({WeightType::kQ4_1, bytes.data(), 8, 32});
  for (const float value : {0.0f, 1e-44f, 1e-38f}) {
    const std::vector<float> x(32, value);
    std::vector<float> y(8, 1.0f);
    ops->Matmul(*matrix, x.data(), 1, y.data());
    for (const float v : y) EXPECT_LE(std::abs(v), 32 * value + 1e-34f);
  }
}

// The reciprocal of such a block's scale is about the largest float or above it.
TEST_P(MatmulTest, TinyRowsKeepTheirSign) {
  const auto ops = MakeOps(GetParam());
  for (const WeightType type : BlockTypes()) {
    const int64_t k = BlockElems(type);
    std::vector<uint8_t> bytes(RowBytes(type, k), 0x77);
    SetScale(type, 1.0f, bytes.data());
    const auto weights = Dequantise(type, bytes, 1, k);
    const auto matrix = ops->Pack({type, bytes.data(), 1, k});
    for (const float value : {1.1e-35f, 2e-35f, 5e-35f, 1e-34f, 1e-32f}) {
      const std::vector<float> x(k, value);
      double exact = 0;
      for (const float w : weights) exact += double{value} * w;
      float y = 0;
      ops->Matmul(*matrix, x.data(), 1, &y);
      // Zero or the sum, never beyond.
      EXPECT_LE(std::abs(y - exact), 1.001 * std::abs(exact))
          << WeightTypeName(type) << " " << value;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, MatmulTest, testing::ValuesIn(AllOptions()),
                         [](const auto& param_info) { return OptionsName(param_info.param); });

}  // namespace
}  // namespace trivium::kernels
