// The encoders' operations of every path, against float64 formulas and the reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/dot.h"
#include "kernels/encoder_ops.h"
#include "kernels/test_util.h"

namespace trivium::kernels {
namespace {

constexpr double kEpsilon = 0x1p-23;

class EncoderTest : public testing::TestWithParam<OpsOptions> {
 protected:
  EncoderTest() : ops_(MakeOps(GetParam())), random_(SeededRandom()) {}
  EncoderOps& encoder() { return ops_->encoder(); }
  std::unique_ptr<Ops> ops_;
  std::mt19937 random_;
};

TEST_P(EncoderTest, LayerNorm) {
  for (const int dim : {1, 5, 8, 72, 768, 771}) {
    const int rows = 70;
    auto x = RandomFloats(random_, rows * dim, 3.0f);
    for (float& v : x) v += 2.0f;
    const auto w = RandomFloats(random_, dim), b = RandomFloats(random_, dim);
    std::vector<float> out(x.size()), in_place = x;
    encoder().LayerNorm(x.data(), w.data(), b.data(), 1e-6f, rows, dim, out.data());
    encoder().LayerNorm(in_place.data(), w.data(), b.data(), 1e-6f, rows, dim, in_place.data());
    EXPECT_EQ(out, in_place);
    for (int r = 0; r < rows; ++r) {
      double mean = 0, variance = 0, size = 0;
      for (int i = 0; i < dim; ++i) mean += x[r * dim + i] / dim;
      for (int i = 0; i < dim; ++i) variance += std::pow(x[r * dim + i] - mean, 2) / dim;
      for (int i = 0; i < dim; ++i) size = std::max(size, std::abs(double{x[r * dim + i]}));
      const double scale = 1 / std::sqrt(variance + 1e-6);
      for (int i = 0; i < dim; ++i) {
        const double exact = (x[r * dim + i] - mean) * scale * w[i] + b[i];
        // What the mean loses, dim / 8 roundings of the largest element, is stretched by the scale.
        const double tolerance =
            kEpsilon * (std::abs(w[i]) * scale * size * (4 + dim / 16.0) + std::abs(exact) * 4);
        ASSERT_NEAR(out[r * dim + i], exact, tolerance) << "row " << r << " element " << i;
      }
    }
  }
}

TEST_P(EncoderTest, AddBias) {
  const int rows = 300, dim = 77;
  auto x = RandomFloats(random_, rows * dim);
  const auto bias = RandomFloats(random_, dim), before = x;
  encoder().AddBias(x.data(), bias.data(), rows, dim);
  for (int i = 0; i < rows * dim; ++i) ASSERT_EQ(x[i], before[i] + bias[i % dim]);
}

double Exact(Activation activation, double x) {
  switch (activation) {
    case Activation::kGelu:
      return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    case Activation::kGeluTanh:
      return x / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kQuickGelu:
      return x / (1 + std::exp(-1.702 * x));
    default:
      return x / (1 + std::exp(-x));
  }
}

TEST_P(EncoderTest, Activations) {
  for (const Activation activation :
       {Activation::kGelu, Activation::kGeluTanh, Activation::kQuickGelu, Activation::kSilu}) {
    for (const int64_t count : {1, 7, 8, 100003}) {
      auto x = RandomFloats(random_, count, 3.0f);
      const auto before = x;
      encoder().Activate(activation, x.data(), count);
      for (int64_t i = 0; i < count; ++i) {
        const double exact = Exact(activation, before[i]);
        // The argument of the exponential is rounded too, and so is 1 + erf near -1.
        const double tolerance =
            kEpsilon * (std::abs(exact) * (8 + std::abs(before[i] * 20.0)) + std::abs(before[i]));
        ASSERT_NEAR(x[i], exact, tolerance) << before[i];
      }
    }
    std::vector<float> ends{-1e20f, -60.0f, 0.0f, 60.0f, 1e20f, NAN};
    encoder().Activate(activation, ends.data(), static_cast<int64_t>(ends.size()));
    EXPECT_NEAR(ends[0], 0, 1e-6);
    EXPECT_NEAR(ends[1], 0, 1e-6);
    EXPECT_EQ(ends[2], 0.0f);
    EXPECT_EQ(ends[3], 60.0f);
    EXPECT_EQ(ends[4], 1e20f);
    EXPECT_TRUE(std::isnan(ends[5]));
  }
}

struct Heads {
  int heads, dim;
};

TEST_P(EncoderTest, FullAttention) {
  for (const auto& [heads, dim] : {Heads{3, 8}, {2, 72}, {1, 5}, {12, 64}}) {
    const std::vector<RowSpan> spans{{60, 37}, {0, 1}, {1, 59}};
    const int rows = 97;
    const int64_t elems = int64_t{rows} * heads * dim;
    const auto q = RandomFloats(random_, elems), k = RandomFloats(random_, elems),
               v = RandomFloats(random_, elems);
    FullAttentionArgs args{q.data(), k.data(), v.data(), spans, heads, dim};
    args.scale = static_cast<float>(1 / std::sqrt(dim));
    std::vector<float> out(elems), expected(elems);
    args.out = out.data();
    encoder().FullAttention(args);
    args.out = expected.data();
    MakeOps({})->encoder().FullAttention(args);
    for (int64_t i = 0; i < elems; ++i) {
      // Scores have some tens of roundings, which the exponential turns into a relative error.
      ASSERT_NEAR(out[i], expected[i], 4 * kEpsilon * (20 + dim)) << heads << " x " << dim;
    }
  }
}

TEST_P(EncoderTest, AttentionOfARowIsTheSameBitsInAnyCompany) {
  if (GetParam().numerics != Numerics::kBatchInvariant) return;
  const int heads = 4, dim = 24, rows = 130;
  const int64_t width = heads * dim;
  const auto q = RandomFloats(random_, rows * width), k = RandomFloats(random_, rows * width),
             v = RandomFloats(random_, rows * width);
  const std::vector<RowSpan> all{{0, 70}, {70, 60}}, alone{{0, 60}};
  std::vector<float> packed(rows * width), single(60 * width);
  FullAttentionArgs args{q.data(), k.data(), v.data(), all, heads, dim, 0.2f, packed.data()};
  encoder().FullAttention(args);
  FullAttentionArgs second{
      q.data() + 70 * width, k.data() + 70 * width, v.data() + 70 * width, alone, heads, dim, 0.2f,
      single.data()};
  encoder().FullAttention(second);
  EXPECT_EQ(single, std::vector<float>(packed.begin() + 70 * width, packed.end()));
}

TEST_P(EncoderTest, RotateHalves) {
  const int rows = 50, heads = 3, dim = 20, half = dim / 2;
  const auto before = RandomFloats(random_, rows * heads * dim);
  std::vector<float> cosines(rows * half), sines(rows * half);
  for (int i = 0; i < rows * half; ++i) {
    cosines[i] = static_cast<float>(std::cos(0.1 * i));
    sines[i] = static_cast<float>(std::sin(0.1 * i));
  }
  auto x = before;
  encoder().RotateHalves({x.data(), rows, heads, dim, cosines.data(), sines.data()});
  for (int i = 0; i < rows * heads * dim; ++i) {
    const int d = i % dim, at = i / (heads * dim) * half + d % half;
    const double other = d < half ? -before[i + half] : before[i - half];
    const double exact = double{before[i]} * cosines[at] + other * sines[at];
    ASSERT_NEAR(x[i], exact, 2 * kEpsilon * (std::abs(before[i]) + std::abs(other)));
  }
}

TEST(DotTest, IsTheSumOfProducts) {
  std::mt19937 random = SeededRandom();
  for (const int count : {0, 1, 7, 8, 31, 32, 33, 384, 771}) {
    const auto a = RandomFloats(random, count), b = RandomFloats(random, count);
    double exact = 0, size = 0;
    for (int i = 0; i < count; ++i) exact += double{a[i]} * b[i];
    for (int i = 0; i < count; ++i) size += std::abs(double{a[i]} * b[i]);
    EXPECT_NEAR(BestDot()(a.data(), b.data(), count), exact, kEpsilon * size * 8) << count;
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, EncoderTest, testing::ValuesIn(AllOptions()),
                         [](const auto& param_info) { return OptionsName(param_info.param); });

}  // namespace
}  // namespace trivium::kernels
