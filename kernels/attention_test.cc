// Attention of every path against sums over all keys in float64, and what must not change its bits.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/attention_batch.h"
#include "kernels/test_util.h"

namespace trivium::kernels {
namespace {

class AttentionTest : public testing::TestWithParam<OpsOptions> {
 protected:
  AttentionTest() : ops_(MakeOps(GetParam())), random_(SeededRandom()) {}
  void CheckCuts(int rows, int window);
  // Many rows are attended in bfloat16; then cuts and company change bits, within the tolerance.
  static bool InBfloat() {
    return GetParam().isa == Isa::kAmx && GetParam().numerics == Numerics::kFast;
  }
  void ExpectSame(Batch batch, const Batch::Result& result, const Batch::Result& expected) {
    if (!InBfloat()) {
      EXPECT_TRUE(result == expected);
      return;
    }
    batch.AllowBfloat(true);
    batch.CheckExact(result);
  }
  std::unique_ptr<Ops> ops_;
  std::mt19937 random_;
};

TEST_P(AttentionTest, AgreesWithExactSums) {
  for (const Dims dims : {Dims{9, 3, 64, 16},
                          {4, 4, 32, 16},
                          {8, 1, 20, 4},
                          {2, 1, 72, 16},
                          {5, 1, 128, 32},
                          {4, 1, 256, 16}}) {
    Batch batch(random_, dims,
                {{1, 1}, {17, 17}, {33, 1}, {40, 19}, {300, 20}, {520, 1}, {15, 2}, {290, 90}});
    batch.AllowBfloat(InBfloat());
    batch.CheckExact(batch.Run(*ops_));
    if (HasFatalFailure()) return;
  }
}

// Other kinds of keys and values, in heads that fill vectors and words, and in such that don't.
TEST_P(AttentionTest, KvTypesAreExactAndChangeNoBitInCompany) {
  for (const KvType type : {KvType::kBF16, KvType::kInt8}) {
    for (const Dims dims : {Dims{9, 3, 64, 16, type}, {4, 2, 20, 4, type}, {3, 1, 7, 16, type}}) {
      Batch batch(random_, dims, {{1, 1}, {40, 19}, {300, 20}, {520, 1}, {321, 1, 16}});
      batch.AllowBfloat(InBfloat());
      const auto together = batch.Run(*ops_);
      batch.CheckExact(together);
      ASSERT_FALSE(HasFatalFailure()) << KvTypeName(type) << " head size " << dims.dim;
      std::vector<SequenceSpan> apart = batch.spans();
      for (SequenceSpan& span : apart) span.shared_tokens = 0;
      ExpectSame(batch, batch.Run(*ops_, apart), together);
    }
  }
}

// Windows shorter, equal and longer than tiles, pages and chunks; every row reads its own keys
// only.
TEST_P(AttentionTest, WindowsOfAnyLength) {
  for (const Dims dims : {Dims{6, 2, 64, 16}, {5, 1, 20, 4}, {1, 1, 256, 16}}) {
    Batch batch(random_, dims, {{1, 1}, {40, 40}, {290, 20}, {513, 1}, {800, 2}});
    batch.AllowBfloat(InBfloat());
    for (const int window : {1, 31, 32, 33, 256, 257, 900}) {
      batch.SetWindow(window);
      batch.CheckExact(batch.Run(*ops_));
      ASSERT_FALSE(HasFatalFailure()) << "window " << window;
    }
    batch.SetWindow(800);
    const auto all_seen = batch.Run(*ops_);
    batch.SetWindow(0);
    EXPECT_TRUE(batch.Run(*ops_) == all_seen);
  }
}

TEST_P(AttentionTest, KeysOutsideTheWindowAreNotRead) {
  Batch batch(random_, {2, 1, 64, 16}, {{700, 1}});
  for (const int window : {1, 32, 100, 256, 300}) {
    batch.SetWindow(window);
    const auto before = batch.Run(*ops_);
    const int shares = GetParam().isa == Isa::kReference ? 2 : 1;  // its heads read for themselves
    EXPECT_EQ(before.kv_bytes_read, window * 64 * 4 * shares);
    Batch spoilt = batch;
    for (int p = 0; p < 700 - window; ++p) {
      for (int64_t i = 0; i < 64; ++i) spoilt.Key(0, p)[i] = spoilt.Value(0, p)[i] = 0x7e00;
    }
    EXPECT_TRUE(spoilt.Run(*ops_) == before) << window;
  }
}

TEST_P(AttentionTest, SoftcapBoundsScores) {
  for (const float deviation : {0.01f, 2.0f, 60.0f}) {
    Batch batch(random_, {6, 2, 64, 16}, {{300, 40}, {33, 1}}, deviation);
    for (const float softcap : {1.0f, 50.0f}) {
      batch.SetSoftcap(softcap);
      batch.CheckExact(batch.Run(*ops_));
      ASSERT_FALSE(HasFatalFailure()) << "softcap " << softcap << " deviation " << deviation;
    }
    batch.SetWindow(77);
    batch.CheckExact(batch.Run(*ops_));
  }
}

TEST_P(AttentionTest, LongDecodeAlone) {
  for (const int keys : {255, 256, 257, 1500}) {
    Batch batch(random_, {9, 3, 64, 16}, {{keys, 1}});
    batch.CheckExact(batch.Run(*ops_));
  }
}

// Rows of one call, cut into calls in any way, must be the same bits; spans are cut in place.
void AttentionTest::CheckCuts(int rows, int window) {
  Batch batch(random_, {6, 2, 64, 16}, {{rows, rows}, {40, 3}});
  batch.SetWindow(window);
  const auto whole = batch.Run(*ops_);
  for (const int cut : {1, 7, 16, 64, 256}) {
    std::vector<SequenceSpan> spans;
    for (const SequenceSpan& span : batch.spans()) {
      for (int r = 0; r < span.row_count; r += cut) {
        spans.push_back({span.row_begin + r, std::min(cut, span.row_count - r), span.block_table});
      }
    }
    SCOPED_TRACE(testing::Message() << "cut " << cut);
    if (!InBfloat() || cut == 16) ExpectSame(batch, batch.Run(*ops_, spans), whole);
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
    if (!InBfloat() || cut == 64) ExpectSame(batch, pieces, whole);
  }
}

TEST_P(AttentionTest, CutsDoNotChangeBits) {
  const int rows = GetParam().isa == Isa::kReference ? 100 : 600;  // the oracle is slow
  for (const int window : {0, 70, 300}) CheckCuts(rows, window);
}

TEST_P(AttentionTest, ThreadsDoNotChangeBits) {
  Batch batch(random_, {9, 3, 64, 16}, {{900, 2}, {1, 1}, {300, 40}});
  for (const int window : {0, 260}) {
    batch.SetWindow(window);
    OpsOptions other = GetParam();
    for (other.threads = 1; other.threads <= 5; other.threads += 2) {
      EXPECT_TRUE(batch.Run(*MakeOps(other)) == batch.Run(*ops_)) << other.threads;
    }
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
  // A value alone, which those rows see whose keys are in order.
  Batch other(random_, {3, 1, 64, 16}, {{64, 64}});
  const auto sound = other.Run(*ops_);
  other.Value(0, 37)[0] = 0x7c00;
  const auto broken = other.Run(*ops_);
  EXPECT_TRUE(std::equal(sound.out.begin(), sound.out.begin() + seen, broken.out.begin()));
  for (int64_t at = seen; at < 64 * other.row_elems(); at += 64) {
    EXPECT_FALSE(std::isfinite(broken.out[at])) << at;
  }
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
