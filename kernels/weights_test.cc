// The meaning of the weight formats, bit for bit, and the conversions to and from float16.
#include "kernels/weights.h"

#include <gtest/gtest.h>
#include <immintrin.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <set>
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

struct Hashed {
  WeightType type;
  std::vector<int> halves;  // where a block keeps its float16 numbers
  bool extreme;
  uint64_t hash;
};

const Hashed kHashed[] = {
#include "kernels/weights_hashes.inc"
};

class SplitMix {
 public:
  explicit SplitMix(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
  }

 private:
  uint64_t state_;
};

// The rules of weights_golden.py.
std::vector<uint8_t> HashedBlocks(const Hashed& hashed, int blocks) {
  constexpr uint16_t kHalves[] = {0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF,
                                  0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF};
  constexpr uint8_t kFills[] = {0x00, 0xFF, 0x80, 0x7F, 0x0F, 0xF0, 0x55, 0xAA, 0x3F, 0xC0};
  SplitMix random(static_cast<uint64_t>(hashed.type));
  const auto size = static_cast<size_t>(BlockBytes(hashed.type));
  std::vector<uint8_t> bytes(size * blocks);
  for (int b = 0; b < blocks; ++b) {
    uint8_t* block = &bytes[b * size];
    for (size_t i = 0; i < size; ++i) {
      const auto byte = static_cast<uint8_t>(random.Next());
      block[i] = hashed.extreme && b % 3 == 0 ? kFills[b / 3 % std::size(kFills)] : byte;
    }
    for (const int at : hashed.halves) {
      const uint64_t draw = random.Next();
      const auto half = static_cast<uint16_t>(hashed.extreme ? kHalves[draw % std::size(kHalves)]
                                                             : draw & 0xBFFFu);
      std::memcpy(block + at, &half, sizeof(half));
    }
  }
  return bytes;
}

// FNV-1a over the words: one different bit is always another hash.
uint64_t Hash(const std::vector<float>& values) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const float value : values) {
    hash = (hash ^ std::bit_cast<uint32_t>(value)) * 0x100000001B3u;
  }
  return hash;
}

TEST(WeightsTest, RandomAndExtremeBlocksHashAsThoseOfThePublicPackage) {
  constexpr int kBlocks = 96;
  std::set<WeightType> seen;
  for (const Hashed& hashed : kHashed) {
    const auto bytes = HashedBlocks(hashed, kBlocks);
    std::vector<float> values(kBlocks * BlockElems(hashed.type));
    DequantizeRow(hashed.type, bytes.data(), static_cast<int64_t>(values.size()), values.data());
    EXPECT_EQ(Hash(values), hashed.hash)
        << WeightTypeName(hashed.type) << (hashed.extreme ? " extreme" : " random");
    seen.insert(hashed.type);
  }
  for (const WeightType type : AllWeightTypes()) {
    EXPECT_TRUE(BlockElems(type) == 1 || seen.contains(type)) << WeightTypeName(type);
  }
}

TEST(WeightsTest, RowsOfSeveralBlocksAreBlocksInOrder) {
  auto random = SeededRandom();
  for (const WeightType type : AllWeightTypes()) {
    const int64_t elems = BlockElems(type);
    const auto bytes = RandomWeights(random, type, 1, 3 * elems);
    std::vector<float> whole(3 * elems), block(elems);
    DequantizeRow(type, bytes.data(), 3 * elems, whole.data());
    for (int64_t b = 0; b < 3; ++b) {
      DequantizeRow(type, bytes.data() + b * BlockBytes(type), elems, block.data());
      EXPECT_EQ(std::memcmp(whole.data() + elems * b, block.data(), elems * sizeof(float)), 0);
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
  const KvRowShape shape = {.kv_heads = 1, .head_dim = static_cast<int>(values.size())};
  Avx2Kernels().store_kv_row(shape, values.data(), halfs.data());
  for (size_t i = 0; i < values.size(); ++i)
    ASSERT_EQ(halfs[i], FloatToHalf(values[i])) << values[i];
}

}  // namespace
}  // namespace trivium::kernels
