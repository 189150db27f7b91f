// The meaning of the weight formats, bit for bit, and the conversions to and from float16.
#include "kernels/weights.h"

#include <gtest/gtest.h>
#include <immintrin.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu/kernel_table.h"
#include "kernels/test_util.h"

namespace trivium::kernels {
namespace {

struct Golden {
  WeightType type;
  std::vector<uint8_t> bytes;
  std::vector<uint32_t> bits;
};

const Golden kGolden[] = {
#include "kernels/weights_golden.inc"
};

TEST(WeightsTest, MatchesTheValuesOfThePublicPackage) {
  for (const Golden& golden : kGolden) {
    ASSERT_EQ(static_cast<int64_t>(golden.bytes.size()), RowBytes(golden.type, 32));
    std::vector<float> out(32);
    DequantizeRow(golden.type, golden.bytes.data(), 32, out.data());
    for (int i = 0; i < 32; ++i) {
      EXPECT_EQ(std::bit_cast<uint32_t>(out[i]), golden.bits[i])
          << WeightTypeName(golden.type) << " " << i;
    }
  }
}

TEST(WeightsTest, RowsOfSeveralBlocksAreBlocksInOrder) {
  auto random = SeededRandom();
  for (const WeightType type : {WeightType::kQ8_0, WeightType::kQ4_0, WeightType::kQ4_1}) {
    const auto bytes = RandomWeights(random, type, 1, 96);
    std::vector<float> whole(96), block(32);
    DequantizeRow(type, bytes.data(), 96, whole.data());
    for (int b = 0; b < 3; ++b) {
      DequantizeRow(type, bytes.data() + b * BlockBytes(type), 32, block.data());
      EXPECT_EQ(std::memcmp(whole.data() + 32 * b, block.data(), 32 * sizeof(float)), 0);
    }
  }
}

// The definition of binary16, term by term.
double HalfByDefinition(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return half & 0x8000 ? -magnitude : magnitude;
}

TEST(HalfTest, EveryHalfHasItsValueAndComesBack) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const auto half = static_cast<uint16_t>(h);
    const float value = HalfToFloat(half);
    if ((h & 0x7c00) == 0x7c00) {
      EXPECT_EQ(std::isnan(value), (h & 0x3ff) != 0);
      EXPECT_EQ(std::isinf(value), (h & 0x3ff) == 0);
      EXPECT_EQ(FloatToHalf(value), (h & 0x3ff) != 0 ? (h | 0x200) : h);
      continue;
    }
    ASSERT_EQ(value, HalfByDefinition(half)) << h;
    ASSERT_EQ(std::signbit(value), (h & 0x8000) != 0);
    ASSERT_EQ(FloatToHalf(value), half);
  }
}

// Between two neighbouring halves: below the middle down, above it up, the middle to the even one.
TEST(HalfTest, RoundsToNearestEven) {
  for (uint32_t h = 0; h < 0x7bff; ++h) {
    const double low = HalfByDefinition(static_cast<uint16_t>(h));
    const double high = HalfByDefinition(static_cast<uint16_t>(h + 1));
    const auto middle = static_cast<float>((low + high) / 2);  // exact in float32
    ASSERT_EQ(FloatToHalf(middle), h % 2 == 0 ? h : h + 1) << h;
    ASSERT_EQ(FloatToHalf(std::nextafterf(middle, 0.0f)), h);
    ASSERT_EQ(FloatToHalf(std::nextafterf(middle, 1e9f)), h + 1);
    ASSERT_EQ(FloatToHalf(-middle), (h % 2 == 0 ? h : h + 1) | 0x8000);
  }
}

TEST(HalfTest, LargeValuesBecomeInfinity) {
  EXPECT_EQ(FloatToHalf(65519.99f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(-1e38f), 0xfc00);
  EXPECT_EQ(FloatToHalf(INFINITY), 0x7c00);
  EXPECT_EQ(FloatToHalf(0x1p-25f), 0);
  EXPECT_EQ(FloatToHalf(0x1.8p-25f), 1);
  EXPECT_EQ(FloatToHalf(-0.0f), 0x8000);
}

TEST(HalfTest, TheVectorConversionAgrees) {
  if (SupportedIsas().size() < 2) GTEST_SKIP() << "needs AVX2";
  auto random = SeededRandom();
  std::vector<float> values;
  for (int i = 0; i < 200003; ++i)
    values.push_back(std::bit_cast<float>(static_cast<uint32_t>(random())));
  std::vector<uint16_t> halfs(values.size());
  Avx2Kernels().to_half(values.data(), static_cast<int64_t>(values.size()), halfs.data());
  for (size_t i = 0; i < values.size(); ++i)
    ASSERT_EQ(halfs[i], FloatToHalf(values[i])) << values[i];
}

}  // namespace
}  // namespace trivium::kernels
