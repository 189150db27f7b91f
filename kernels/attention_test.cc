// Attention of every path against sums over all keys in float64, and what must not change its bits.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/test_util.h"

namespace trivium::kernels {
namespace {

struct Dims {
  int heads, groups, dim, block_tokens;
};

// A batch of sequences with random pages; each has keys 0 … last and queries at its last positions.
class Batch {
 public:
  struct Sequence {
    int keys;
    int rows;
  };

  Batch(std::mt19937& random, Dims dims, const std::vector<Sequence>& sequences)
      : dims_(dims), layout_{dims.block_tokens, dims.groups, dims.dim} {
    int pages = 3;
    for (const Sequence& s : sequences) pages += s.keys / dims.block_tokens + 1;
    std::vector<int32_t> free(pages);
    std::iota(free.begin(), free.end(), 0);
    std::shuffle(free.begin(), free.end(), random);
    kv_.resize(pages * layout_.PageElems(), 0x7e00);  // NaN wherever nothing is stored
    for (const Sequence& s : sequences) {
      tables_.emplace_back();
      for (int b = 0; b < s.keys; b += dims.block_tokens) {
        tables_.back().push_back(free.back());
        free.pop_back();
      }
      spans_.push_back({static_cast<int>(positions_.size()), s.rows, nullptr});
      for (int p = s.keys - s.rows; p < s.keys; ++p) positions_.push_back(p);
      for (int p = 0; p < s.keys; ++p) FillKey(random, static_cast<int>(tables_.size()) - 1, p);
    }
    for (size_t i = 0; i < spans_.size(); ++i) spans_[i].block_table = tables_[i].data();
    q_ =
        RandomFloats(random, static_cast<int64_t>(positions_.size()) * dims.heads * dims.dim, 2.0f);
  }

  void FillKey(std::mt19937& random, int sequence, int p) {
    const auto values = RandomFloats(random, 2 * layout_.RowElems());
    for (int64_t i = 0; i < layout_.RowElems(); ++i) {
      Key(sequence, p)[i] = FloatToHalf(values[i]);
      Value(sequence, p)[i] = FloatToHalf(values[layout_.RowElems() + i]);
    }
  }
  uint16_t* Key(int sequence, int p) {
    return kv_.data() + tables_[sequence][p / dims_.block_tokens] * layout_.PageElems() +
           p % dims_.block_tokens * layout_.RowElems();
  }
  uint16_t* Value(int sequence, int p) {
    return Key(sequence, p) + dims_.block_tokens * layout_.RowElems();
  }

  struct Result {
    std::vector<float> out, lse;
    bool operator==(const Result&) const = default;
  };

  void SetPosition(int row, int position) { positions_[row] = position; }
  int rows() const { return static_cast<int>(positions_.size()); }
  int64_t row_elems() const { return int64_t{dims_.heads} * dims_.dim; }
  const std::vector<SequenceSpan>& spans() const { return spans_; }

  Result Run(Ops& ops) const { return Run(ops, spans_); }
  Result Run(Ops& ops, std::span<const SequenceSpan> spans) const {
    Result result{std::vector<float>(rows() * row_elems(), -7.0f),
                  std::vector<float>(rows() * dims_.heads, -7.0f)};
    AttentionArgs args{.q = q_.data(),
                       .positions = positions_.data(),
                       .spans = spans,
                       .kv_layer = kv_.data(),
                       .layout = layout_,
                       .heads = dims_.heads};
    args.scale = static_cast<float>(1 / std::sqrt(dims_.dim));
    args.out = result.out.data();
    args.lse = result.lse.data();
    ops.Attention(args);
    return result;
  }

  // Rounding of scores moves a weight by |score| * epsilon * dim; the rest is a mean of values.
  void CheckExact(const Result& result) {
    for (size_t s = 0; s < spans_.size(); ++s) {
      for (int r = spans_[s].row_begin; r < spans_[s].row_begin + spans_[s].row_count; ++r) {
        for (int h = 0; h < dims_.heads; ++h) CheckHead(static_cast<int>(s), r, h, result);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }

 private:
  void CheckHead(int s, int r, int h, const Result& result) {
    const int group = h / (dims_.heads / dims_.groups) * dims_.dim;
    const float* q = q_.data() + r * row_elems() + int64_t{h} * dims_.dim;
    const double scale = static_cast<float>(1 / std::sqrt(dims_.dim));
    std::vector<double> weights;
    double largest = -INFINITY, total = 0, score_size = 0;
    for (int p = 0; p <= positions_[r]; ++p) {
      double dot = 0, size = 0;
      for (int d = 0; d < dims_.dim; ++d) {
        const double product = double{q[d]} * HalfToFloat(Key(s, p)[group + d]) * scale;
        dot += product;
        size += std::abs(product);
      }
      weights.push_back(dot);
      largest = std::max(largest, dot);
      score_size = std::max(score_size, size);
    }
    for (double& w : weights) total += w = std::exp(w - largest);
    const double relative = 0x1p-23 * (score_size * 2 + 2 * std::sqrt(weights.size()) + 8);
    ASSERT_NEAR(result.lse[r * dims_.heads + h], largest + std::log(total),
                relative + std::abs(largest) * 0x1p-22);
    for (int d = 0; d < dims_.dim; ++d) {
      double exact = 0, size = 0;
      for (int p = 0; p <= positions_[r]; ++p) {
        const double product = weights[p] / total * HalfToFloat(Value(s, p)[group + d]);
        exact += product;
        size += std::abs(product);
      }
      ASSERT_NEAR(result.out[r * row_elems() + h * dims_.dim + d], exact, 2 * relative * size)
          << "sequence " << s << " row " << r << " head " << h;
    }
  }

  Dims dims_;
  KvLayout layout_;
  std::vector<uint16_t> kv_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<SequenceSpan> spans_;
  std::vector<int32_t> positions_;
  std::vector<float> q_;
};

class AttentionTest : public testing::TestWithParam<OpsOptions> {
 protected:
  AttentionTest() : ops_(MakeOps(GetParam())), random_(SeededRandom()) {}
  std::unique_ptr<Ops> ops_;
  std::mt19937 random_;
};

TEST_P(AttentionTest, AgreesWithExactSums) {
  for (const Dims dims :
       {Dims{9, 3, 64, 16}, {4, 4, 32, 16}, {8, 1, 20, 4}, {2, 1, 72, 16}, {5, 1, 128, 32}}) {
    Batch batch(random_, dims, {{1, 1}, {17, 17}, {33, 1}, {40, 19}, {300, 20}, {520, 1}, {15, 2}});
    batch.CheckExact(batch.Run(*ops_));
    if (HasFatalFailure()) return;
  }
}

TEST_P(AttentionTest, LongDecodeAlone) {
  for (const int keys : {255, 256, 257, 1500}) {
    Batch batch(random_, {9, 3, 64, 16}, {{keys, 1}});
    batch.CheckExact(batch.Run(*ops_));
  }
}

// Rows of one call, cut into calls in any way, must be the same bits; spans are cut in place.
TEST_P(AttentionTest, CutsDoNotChangeBits) {
  const int rows = GetParam().isa == Isa::kReference ? 100 : 600;  // the oracle is slow
  Batch batch(random_, {6, 2, 64, 16}, {{rows, rows}, {40, 3}});
  const auto whole = batch.Run(*ops_);
  for (const int cut : {1, 7, 16, 64, 256}) {
    std::vector<SequenceSpan> spans;
    for (const SequenceSpan& span : batch.spans()) {
      for (int r = 0; r < span.row_count; r += cut) {
        spans.push_back({span.row_begin + r, std::min(cut, span.row_count - r), span.block_table});
      }
    }
    EXPECT_TRUE(batch.Run(*ops_, spans) == whole) << "in one call, cut " << cut;
    if (cut < 64) continue;
    Batch::Result pieces{std::vector<float>(whole.out.size()),
                         std::vector<float>(whole.lse.size())};
    for (const SequenceSpan& span : spans) {
      const auto one = batch.Run(*ops_, {&span, 1});
      const auto copy = [&](const std::vector<float>& from, std::vector<float>& to, int64_t width) {
        std::copy_n(from.begin() + span.row_begin * width, span.row_count * width,
                    to.begin() + span.row_begin * width);
      };
      copy(one.out, pieces.out, batch.row_elems());
      copy(one.lse, pieces.lse, 6);
    }
    EXPECT_TRUE(pieces == whole) << "call by call, cut " << cut;
  }
}

TEST_P(AttentionTest, ThreadsDoNotChangeBits) {
  Batch batch(random_, {9, 3, 64, 16}, {{900, 2}, {1, 1}, {300, 40}});
  OpsOptions other = GetParam();
  for (other.threads = 1; other.threads <= 5; other.threads += 2) {
    EXPECT_TRUE(batch.Run(*MakeOps(other)) == batch.Run(*ops_)) << other.threads;
  }
}

TEST_P(AttentionTest, SequencesAreIsolated) {
  Batch batch(random_, {6, 2, 64, 16}, {{50, 5}, {300, 20}, {70, 1}});
  const auto before = batch.Run(*ops_);
  for (int p = 0; p < 300; ++p) {
    for (int64_t i = 0; i < 2 * 64; ++i) {
      batch.Key(1, p)[i] = 0x7e00;
      batch.Value(1, p)[i] = 0x7c00;
    }
  }
  const auto after = batch.Run(*ops_);
  const int64_t width = batch.row_elems();
  const auto same = [&](int row_begin, int row_end) {
    return std::equal(before.out.begin() + row_begin * width, before.out.begin() + row_end * width,
                      after.out.begin() + row_begin * width);
  };
  EXPECT_TRUE(same(0, 5));
  EXPECT_TRUE(same(25, 26));
  EXPECT_FALSE(same(5, 25));
}

// Head sizes that fill no vector: what one call leaves in the workspaces, the next must not meet.
TEST_P(AttentionTest, NoNumbersOfOneCallReachTheNext) {
  Batch broken(random_, {3, 1, 12, 16}, {{200, 40}});
  for (int p = 0; p < 200; ++p) {
    for (int64_t i = 0; i < 12; ++i) broken.Key(0, p)[i] = broken.Value(0, p)[i] = 0x7e00;
  }
  Batch sound(random_, {3, 1, 12, 16}, {{100, 1}});
  const auto expected = sound.Run(*MakeOps(GetParam()));
  sound.CheckExact(expected);
  EXPECT_TRUE(std::isnan(broken.Run(*ops_).out[0]));
  EXPECT_TRUE(sound.Run(*ops_) == expected);
}

// A key that comes later than a row, infinite or not, leaves the row's bits alone.
TEST_P(AttentionTest, LaterKeysAreNotSeen) {
  Batch batch(random_, {3, 1, 64, 16}, {{64, 64}});
  const auto before = batch.Run(*ops_);
  for (int64_t i = 0; i < 64; ++i) batch.Key(0, 37)[i] = batch.Value(0, 37)[i] = 0x7c00;
  const auto after = batch.Run(*ops_);
  const int64_t seen = 37 * batch.row_elems();
  EXPECT_TRUE(std::equal(before.out.begin(), before.out.begin() + seen, after.out.begin()));
  EXPECT_FALSE(std::isfinite(after.out[seen]));
}

// Two sets of keys attended apart and joined by their lse are the attention over both.
TEST_P(AttentionTest, HalvesMergeByTheirLse) {
  constexpr int kKeys = 96, kFirst = 32;
  Batch whole(random_, {4, 2, 64, 16}, {{kKeys, 1}});
  const SequenceSpan all = whole.spans()[0];
  const auto expected = whole.Run(*ops_);
  const auto part = [&](int first_page, int keys) {
    SequenceSpan span = all;
    span.block_table += first_page;
    Batch view = whole;
    view.SetPosition(0, keys - 1);
    return view.Run(*ops_, {&span, 1});
  };
  const auto a = part(0, kFirst), b = part(kFirst / 16, kKeys - kFirst);
  for (int h = 0; h < 4; ++h) {
    const double total = std::exp(double{expected.lse[h]});
    const double wa = std::exp(double{a.lse[h]}) / total, wb = std::exp(double{b.lse[h]}) / total;
    EXPECT_NEAR(wa + wb, 1.0, 1e-5);
    for (int d = 0; d < 64; ++d) {
      EXPECT_NEAR(wa * a.out[h * 64 + d] + wb * b.out[h * 64 + d], expected.out[h * 64 + d], 1e-5);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, AttentionTest, testing::ValuesIn(AllOptions()),
                         [](const auto& param_info) { return OptionsName(param_info.param); });

}  // namespace
}  // namespace trivium::kernels
