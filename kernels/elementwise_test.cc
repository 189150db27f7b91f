// The operations that treat rows or elements alone, of every path, against float64 formulas.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/kv_row.h"
#include "kernels/test_util.h"

namespace trivium::kernels {
namespace {

constexpr double kEpsilon = 0x1p-23;

class ElementwiseTest : public testing::TestWithParam<OpsOptions> {
 protected:
  ElementwiseTest() : ops_(MakeOps(GetParam())), random_(SeededRandom()) {}
  std::unique_ptr<Ops> ops_;
  std::mt19937 random_;
};

TEST_P(ElementwiseTest, SaysWhatItIs) {
  EXPECT_EQ(ops_->isa(), GetParam().isa);
  EXPECT_EQ(ops_->numerics(), GetParam().numerics);
  EXPECT_EQ(ops_->threads(), GetParam().threads);
}

TEST_P(ElementwiseTest, RmsNorm) {
  for (const int dim : {1, 5, 8, 24, 64, 576, 579}) {
    for (const int rows : {1, 3, 100}) {
      const auto x = RandomFloats(random_, rows * dim, 3.0f), w = RandomFloats(random_, dim);
      std::vector<float> out(rows * dim), in_place = x;
      ops_->RmsNorm(x.data(), w.data(), 1e-5f, rows, dim, out.data());
      ops_->RmsNorm(in_place.data(), w.data(), 1e-5f, rows, dim, in_place.data());
      EXPECT_EQ(out, in_place);
      for (int r = 0; r < rows; ++r) {
        double sum = 0;
        for (int i = 0; i < dim; ++i) sum += double{x[r * dim + i]} * x[r * dim + i];
        for (int i = 0; i < dim; ++i) {
          const double exact = x[r * dim + i] / std::sqrt(sum / dim + 1e-5) * w[i];
          // The sum of squares has relative error below dim / 16 roundings, halved by the root.
          ASSERT_NEAR(out[r * dim + i], exact, std::abs(exact) * kEpsilon * (4 + dim / 32.0));
        }
      }
    }
  }
}

// The elements of pair i of n, and which of the two element d is.
std::pair<int, int> PairOf(RopePairs pairs, int d, int n) {
  if (pairs == RopePairs::kAdjacent) return {d / 2, d % 2};
  return {d % n, d / n};
}

TEST_P(ElementwiseTest, Rope) {
  for (const auto& [dim, rope_dim] : {std::pair{64, 64}, {64, 32}, {10, 6}, {8, 0}, {24, 20}}) {
    // The same positions again and again: nothing kept for other frequencies or another scale may
    // be used.
    for (const auto& [base, scale, pairs] : {std::tuple{1e5, 1.0, RopePairs::kAdjacent},
                                             {1e5, 1.19, RopePairs::kAdjacent},
                                             {500.0, 1.19, RopePairs::kHalves},
                                             {1e5, 1.0, RopePairs::kHalves},
                                             {500.0, 1.19, RopePairs::kAdjacent}}) {
      std::vector<double> frequencies;
      for (int i = 0; i < rope_dim / 2; ++i) {
        frequencies.push_back(std::pow(base, -2.0 * i / rope_dim) / (i % 3 + 1));
      }
      RopeArgs args{.pairs = pairs,
                    .rows = 40,
                    .heads = 3,
                    .head_dim = dim,
                    .frequencies = frequencies,
                    .scale = scale};
      std::vector<int32_t> positions(args.rows);
      for (int r = 0; r < args.rows; ++r) positions[r] = r * 211;
      positions[7] = 200000;  // past what is kept in the table
      const auto x = RandomFloats(random_, int64_t{args.rows} * args.heads * dim);
      auto out = x;
      args.x = out.data();
      args.positions = positions.data();
      ops_->Rope(args);
      for (size_t i = 0; i < x.size(); ++i) {
        const int d = static_cast<int>(i) % dim;
        const auto row = i / (args.heads * dim);
        double exact = x[i];
        double size = 0;
        if (d < rope_dim) {
          const auto [pair, place] = PairOf(pairs, d, rope_dim / 2);
          const int apart = pairs == RopePairs::kAdjacent ? 1 : rope_dim / 2;
          const double angle = positions[row] * frequencies[pair];
          const double other = place == 0 ? -x[i + apart] : x[i - apart];
          exact = scale * (x[i] * std::cos(angle) + other * std::sin(angle));
          size = scale * (std::abs(x[i]) + std::abs(other));
        }
        // Products are rounded once each; the angle itself is exact to double precision.
        ASSERT_NEAR(out[i], exact, 2 * kEpsilon * size) << "row " << row << " element " << d;
      }
    }
  }
}

double Activated(Activation activation, double x) {
  if (activation == Activation::kSilu) return x / (1 + std::exp(-x));
  // (1 + tanh(y)) / 2, exact where tanh(y) is close to -1.
  return x / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

// How much a rounding of the exponent's argument changes the result, in roundings.
double ActivationRoundings(Activation activation, double x) {
  if (activation == Activation::kSilu) return 6;
  return 6 + 4 * std::sqrt(2 / M_PI) * std::abs(x + 0.044715 * x * x * x);
}

TEST_P(ElementwiseTest, ActivateMul) {
  for (const int64_t count : {1, 7, 8, 1536, 100003}) {
    for (const auto activation : {Activation::kSilu, Activation::kGeluTanh}) {
      auto gate = RandomFloats(random_, count, 4.0f);
      const auto up = RandomFloats(random_, count), before = gate;
      ops_->ActivateMul(activation, gate.data(), up.data(), count);
      for (int64_t i = 0; i < count; ++i) {
        const double exact = Activated(activation, before[i]) * up[i];
        const double roundings = ActivationRoundings(activation, before[i]);
        ASSERT_NEAR(gate[i], exact, std::abs(exact) * roundings * kEpsilon + 1e-36) << before[i];
      }
    }
  }
}

TEST_P(ElementwiseTest, ActivateMulAtTheEnds) {
  for (const auto activation : {Activation::kSilu, Activation::kGeluTanh}) {
    std::vector<float> gate{-1e12f, -200.0f, -88.0f, -0.0f, 0.0f, 88.0f, 200.0f, 1e12f, NAN};
    const std::vector<float> up(gate.size(), 1.0f);
    ops_->ActivateMul(activation, gate.data(), up.data(), static_cast<int64_t>(gate.size()));
    for (int i = 0; i < 3; ++i) EXPECT_LE(std::abs(gate[i]), 1e-7f) << i;
    EXPECT_EQ(gate[3], 0.0f);
    EXPECT_EQ(gate[4], 0.0f);
    EXPECT_EQ(gate[5], 88.0f);
    EXPECT_EQ(gate[6], 200.0f);
    EXPECT_EQ(gate[7], 1e12f);
    EXPECT_TRUE(std::isnan(gate[8]));
  }
}

TEST_P(ElementwiseTest, Add) {
  for (const int64_t count : {1, 9, 70001}) {
    auto x = RandomFloats(random_, count);
    const auto y = RandomFloats(random_, count), before = x;
    ops_->Add(x.data(), y.data(), count);
    for (int64_t i = 0; i < count; ++i) ASSERT_EQ(x[i], before[i] + y[i]);
  }
}

TEST_P(ElementwiseTest, Scale) {
  for (const int64_t count : {1, 9, 70001}) {
    auto x = RandomFloats(random_, count);
    const auto before = x;
    ops_->Scale(x.data(), 25.298221f, count);
    for (int64_t i = 0; i < count; ++i) ASSERT_EQ(x[i], before[i] * 25.298221f);
  }
}

TEST_P(ElementwiseTest, SoftCap) {
  for (const int64_t count : {1, 9, 70001}) {
    auto x = RandomFloats(random_, count, 20.0f);
    const auto before = x;
    ops_->SoftCap(x.data(), 30.0f, count);
    for (int64_t i = 0; i < count; ++i) {
      ASSERT_NEAR(x[i], 30 * std::tanh(before[i] / 30.0), 30 * 4 * kEpsilon) << before[i];
    }
  }
}

TEST_P(ElementwiseTest, EmbedRowsIsTheExactRow) {
  for (const WeightType type : AllWeightTypes()) {
    const int64_t cols = BlockElems(type) == 256 ? 768 : 576;
    const auto bytes = RandomWeights(random_, type, 50, cols);
    const auto values = Dequantise(type, bytes, 50, cols);
    std::vector<int32_t> ids(100);
    for (int32_t& id : ids) id = static_cast<int32_t>(random_() % 50);
    std::vector<float> out(ids.size() * cols);
    ops_->EmbedRows({type, bytes.data(), 50, cols}, ids, out.data());
    for (size_t i = 0; i < out.size(); ++i) {
      ASSERT_EQ(out[i], values[ids[i / cols] * cols + i % cols]);
    }
  }
}

TEST_P(ElementwiseTest, StoreKvWritesItsSlotsOnly) {
  const KvLayout layout{.block_tokens = 4, .kv_heads = 3, .head_dim = 10};
  const int64_t elems = layout.RowElems();
  std::vector<uint16_t> pages(20 * layout.PageWords(), 0xabcd);
  const std::vector<int32_t> table0{7, 2, 19}, table1{0, 11};
  const std::vector<int32_t> positions{3, 4, 5, 9, 6};
  const SequenceSpan spans[] = {{0, 4, table0.data()}, {4, 1, table1.data()}};
  const auto k = RandomFloats(random_, 5 * elems), v = RandomFloats(random_, 5 * elems);
  ops_->StoreKv({k.data(), v.data(), positions.data(), spans, pages.data(), layout});
  const std::pair<int, int> where[] = {{7, 3}, {2, 0}, {2, 1}, {19, 1}, {11, 2}};  // page, slot
  auto expected = std::vector<uint16_t>(pages.size(), 0xabcd);
  for (int row = 0; row < 5; ++row) {
    const auto [page, slot] = where[row];
    for (int64_t i = 0; i < elems; ++i) {
      const int64_t at = page * layout.PageWords() + slot * elems + i;
      expected[at] = FloatToHalf(k[row * elems + i]);
      expected[at + layout.block_tokens * elems] = FloatToHalf(v[row * elems + i]);
    }
  }
  EXPECT_EQ(pages, expected);
}

// bfloat16 to the last bit; integers within half a step of a scale that fits the largest.
TEST_P(ElementwiseTest, StoreKvRoundsAsItsTypeSays) {
  const int32_t table = 0, position = 1;
  const SequenceSpan span{0, 1, &table};
  for (const int dim : {64, 7}) {
    for (const KvType type : {KvType::kBF16, KvType::kInt8}) {
      const KvLayout layout{.block_tokens = 2, .kv_heads = 3, .head_dim = dim, .type = type};
      auto x = RandomFloats(random_, layout.RowElems());
      std::fill_n(x.begin() + dim, dim, 0.0f);
      std::vector<uint16_t> page(layout.PageWords(), 0xabcd), row(layout.RowWords(), 0xabcd);
      ops_->StoreKv({x.data(), x.data(), &position, {&span, 1}, page.data(), layout});
      StoreKvRow(layout, x.data(), row.data());
      const uint16_t* key = page.data() + layout.RowWords();
      EXPECT_TRUE(std::equal(row.begin(), row.end(), key)) << KvTypeName(type) << " " << dim;
      EXPECT_TRUE(std::equal(row.begin(), row.end(), key + 2 * layout.RowWords()));
      EXPECT_EQ(page[0], 0xabcd);
      std::vector<float> loaded(dim);
      for (int head = 0; head < 3; ++head) {
        LoadKvHead(layout, key, head, loaded.data());
        float largest = 0;
        for (int d = 0; d < dim; ++d) largest = std::max(largest, std::abs(x[head * dim + d]));
        for (int d = 0; d < dim; ++d) {
          const float value = x[head * dim + d];
          const float step = type == KvType::kInt8 ? largest / 127 * 0.502f : std::abs(value) / 256;
          ASSERT_NEAR(loaded[d], value, step) << KvTypeName(type) << " head " << head;
        }
      }
    }
  }
}

// A number that is not finite must not turn into one that is.
TEST_P(ElementwiseTest, StoreKvKeepsWhatIsNotFinite) {
  const int32_t table = 0, position = 0;
  const SequenceSpan span{0, 1, &table};
  for (const KvType type : {KvType::kF16, KvType::kBF16, KvType::kInt8}) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      const KvLayout layout{.block_tokens = 1, .kv_heads = 2, .head_dim = 16, .type = type};
      std::vector<float> x(32, 1.0f), loaded(16);
      x[5] = bad;
      std::vector<uint16_t> page(layout.PageWords());
      ops_->StoreKv({x.data(), x.data(), &position, {&span, 1}, page.data(), layout});
      LoadKvHead(layout, page.data(), 0, loaded.data());
      EXPECT_FALSE(std::isfinite(loaded[5])) << KvTypeName(type);
      LoadKvHead(layout, page.data(), 1, loaded.data());
      EXPECT_NEAR(loaded[5], 1.0f, 0.005f);
    }
  }
}

TEST(KvTypeTest, NamesComeBack) {
  for (const KvType type : {KvType::kF16, KvType::kBF16, KvType::kInt8}) {
    KvType parsed = KvType::kF16;
    EXPECT_TRUE(ParseKvType(KvTypeName(type), &parsed));
    EXPECT_EQ(parsed, type);
  }
  KvType untouched = KvType::kInt8;
  EXPECT_FALSE(ParseKvType("int4", &untouched));
  EXPECT_EQ(untouched, KvType::kInt8);
}

INSTANTIATE_TEST_SUITE_P(Paths, ElementwiseTest, testing::ValuesIn(AllOptions()),
                         [](const auto& param_info) { return OptionsName(param_info.param); });

TEST(IsaTest, NamesComeBack) {
  for (const Isa isa : {Isa::kReference, Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
    Isa parsed = Isa::kReference;
    EXPECT_TRUE(ParseIsa(IsaName(isa), &parsed));
    EXPECT_EQ(parsed, isa);
  }
  Isa untouched = Isa::kAmx;
  EXPECT_FALSE(ParseIsa("avx3", &untouched));
  EXPECT_EQ(untouched, Isa::kAmx);
}

TEST(IsaTest, UnsupportedPathsAreRefused) {
  const auto supported = SupportedIsas();
  EXPECT_EQ(supported.front(), Isa::kReference);
  EXPECT_EQ(supported.back(), BestIsa());
  for (const Isa isa : {Isa::kReference, Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
    const bool can = std::find(supported.begin(), supported.end(), isa) != supported.end();
    EXPECT_EQ(MakeOps({.isa = isa}) != nullptr, can) << IsaName(isa);
  }
}

}  // namespace
}  // namespace trivium::kernels
