// A row of a matrix product, alone or in any company, cut or whole, with any number of threads:
// under kBatchInvariant always the same bits.
#include <gtest/gtest.h>

#include <cstring>

#include "kernels/test_util.h"

namespace trivium::kernels {
namespace {

constexpr int kRows = 150;

class InvarianceTest : public testing::TestWithParam<OpsOptions> {
 protected:
  std::vector<float> Matmul(Ops& ops, const WeightView& view, const float* x, int rows) {
    std::vector<float> y(rows * view.rows);
    ops.Matmul(*ops.Pack(view), x, rows, y.data());
    return y;
  }
};

TEST_P(InvarianceTest, RowsOfAMatmulDoNotSeeEachOther) {
  auto random = SeededRandom();
  const auto ops = MakeOps(GetParam());
  for (const WeightType type : AllWeightTypes()) {
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{192, 576}, {33, 1536}}) {
      if (k % BlockElems(type) != 0) continue;
      const auto bytes = RandomWeights(random, type, n, k);
      const WeightView view{type, bytes.data(), n, k};
      const auto x = RandomFloats(random, kRows * k);
      const auto whole = Matmul(*ops, view, x.data(), kRows);
      for (const auto& [begin, rows] : {std::pair{0, 1},
                                        {7, 1},
                                        {149, 1},
                                        {1, 2},
                                        {3, 5},
                                        {8, 16},
                                        {50, 17},
                                        {2, 64},
                                        {11, 100},
                                        {1, 149}}) {
        const auto part = Matmul(*ops, view, x.data() + begin * k, rows);
        EXPECT_EQ(std::memcmp(part.data(), whole.data() + begin * n, part.size() * sizeof(float)),
                  0)
            << WeightTypeName(type) << " rows " << begin << " + " << rows;
      }
      OpsOptions other = GetParam();
      other.threads = 5;
      EXPECT_EQ(Matmul(*MakeOps(other), view, x.data(), kRows), whole);
    }
  }
}

// Matrices of odd numbers of panels beside each other, of one form of activations and of several.
TEST_P(InvarianceTest, ProductsOfTheSameRowsAreThoseOfEach) {
  auto random = SeededRandom(2);
  const auto ops = MakeOps(GetParam());
  constexpr int64_t kCols = 512, kOutputs[] = {200, 72, 33};
  const auto x = RandomFloats(random, kRows * kCols);
  for (const WeightType type : AllWeightTypes()) {
    for (const WeightType second : {type, WeightType::kQ4_0, WeightType::kF16}) {
      const WeightType types[] = {type, second, type};
      std::vector<std::vector<uint8_t>> bytes;
      std::vector<std::unique_ptr<Matrix>> matrices;
      for (int i = 0; i < 3; ++i) {
        bytes.push_back(RandomWeights(random, types[i], kOutputs[i], kCols));
        matrices.push_back(ops->Pack({types[i], bytes[i].data(), kOutputs[i], kCols}));
      }
      for (const int rows : {1, 4, 5}) {
        std::vector<std::vector<float>> y, expected;
        std::vector<Product> products;
        for (int i = 0; i < 3; ++i) {
          y.emplace_back(rows * kOutputs[i]);
          expected.emplace_back(rows * kOutputs[i]);
          products.push_back({matrices[i].get(), y[i].data()});
          ops->Matmul(*matrices[i], x.data(), rows, expected[i].data());
        }
        ops->MatmulAll(products, x.data(), rows);
        EXPECT_EQ(y, expected) << WeightTypeName(type) << " and " << WeightTypeName(second);
      }
    }
  }
}

TEST_P(InvarianceTest, GatedProductsAreThoseOfEach) {
  auto random = SeededRandom(3);
  const auto ops = MakeOps(GetParam());
  constexpr int64_t kCols = 512, kOutputs = 332;  // the last panel is not full
  const auto x = RandomFloats(random, kRows * kCols);
  for (const WeightType type : AllWeightTypes()) {
    const auto gate_bytes = RandomWeights(random, type, kOutputs, kCols);
    const auto up_bytes = RandomWeights(random, type, kOutputs, kCols);
    const auto gate = ops->Pack({type, gate_bytes.data(), kOutputs, kCols});
    const auto up = ops->Pack({type, up_bytes.data(), kOutputs, kCols});
    for (const int rows : {1, 3, 4, 7}) {
      for (const auto activation : {Activation::kSilu, Activation::kGeluTanh}) {
        std::vector<float> y(rows * kOutputs), z(y.size()), expected(y.size()), factor(y.size());
        ops->Matmul(*gate, x.data(), rows, expected.data());
        ops->Matmul(*up, x.data(), rows, factor.data());
        ops->ActivateMul(activation, expected.data(), factor.data(), rows * kOutputs);
        ops->MatmulGated(activation, {gate.get(), y.data()}, {up.get(), z.data()}, x.data(), rows);
        EXPECT_EQ(y, expected) << WeightTypeName(type) << " rows " << rows;
      }
    }
  }
}

TEST_P(InvarianceTest, RowsOfTheOthersDoNotSeeEachOther) {
  auto random = SeededRandom(1);
  const auto ops = MakeOps(GetParam());
  constexpr int kDim = 579;
  const auto x = RandomFloats(random, kRows * kDim), w = RandomFloats(random, kRows * kDim);
  auto norm = x, silu = x, gelu = x;
  ops->RmsNorm(x.data(), w.data(), 1e-5f, kRows, kDim, norm.data());
  ops->ActivateMul(Activation::kSilu, silu.data(), w.data(), kRows * kDim);
  ops->ActivateMul(Activation::kGeluTanh, gelu.data(), w.data(), kRows * kDim);
  for (const int row : {0, 1, 77, 149}) {
    const auto same = [&](const std::vector<float>& one, const std::vector<float>& all) {
      return std::equal(one.begin(), one.end(), all.begin() + row * kDim);
    };
    std::vector<float> one(kDim);
    ops->RmsNorm(x.data() + row * kDim, w.data(), 1e-5f, 1, kDim, one.data());
    EXPECT_TRUE(same(one, norm));
    for (const auto activation : {Activation::kSilu, Activation::kGeluTanh}) {
      one.assign(x.begin() + row * kDim, x.begin() + (row + 1) * kDim);
      ops->ActivateMul(activation, one.data(), w.data() + row * kDim, kDim);
      EXPECT_TRUE(same(one, activation == Activation::kSilu ? silu : gelu));
    }
  }
}

std::vector<OpsOptions> InvariantOptions() {
  std::vector<OpsOptions> some;
  for (const OpsOptions& options : AllOptions()) {
    if (options.numerics == Numerics::kBatchInvariant) some.push_back(options);
  }
  return some;
}

INSTANTIATE_TEST_SUITE_P(Paths, InvarianceTest, testing::ValuesIn(InvariantOptions()),
                         [](const auto& param_info) { return OptionsName(param_info.param); });

}  // namespace
}  // namespace trivium::kernels
