// Attention over sequences that begin with the same pages: the same bits as without sharing, but
// where what is shared goes to tiles, and each key and value read once for all who share it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/attention_batch.h"
#include "kernels/test_util.h"

namespace trivium::kernels {
namespace {

using Sequences = std::vector<Batch::Sequence>;

std::vector<SequenceSpan> Unshared(std::vector<SequenceSpan> spans) {
  for (SequenceSpan& span : spans) span.shared_tokens = 0;
  return spans;
}

int64_t BytesOf(const Dims& dims, int64_t tokens) { return tokens * dims.groups * dims.dim * 4; }

// `count` sequences over one prefix of whole blocks, each with `suffix` keys of its own.
Sequences Fan(int count, int prefix_blocks, int suffix, int block_tokens = 16) {
  Sequences all;
  for (int i = 0; i < count; ++i) {
    all.push_back({prefix_blocks * block_tokens + suffix, 1, i == 0 ? 0 : prefix_blocks});
  }
  return all;
}

// Three levels with an uneven fan-out, borders inside tiles and chunks, rows that are no single
// tokens, and strangers before, between and behind.
Sequences Tree() {
  return {{40, 1},      {700, 1},     {701, 1, 43}, {690, 2, 43},  {333, 1, 20},
          {325, 2, 20}, {340, 1, 20}, {1200, 1, 6}, {97, 1, 6},    {98, 1, 6},
          {520, 17},    {530, 1, 31}, {531, 2, 31}, {1100, 1, 33}, {300, 1}};
}

class SharedPrefixTest : public testing::TestWithParam<OpsOptions> {
 protected:
  static bool InBfloat() {
    return GetParam().isa == Isa::kAmx && GetParam().numerics == Numerics::kFast;
  }
  SharedPrefixTest() : ops_(MakeOps(GetParam())), random_(SeededRandom()) {}
  std::unique_ptr<Ops> ops_;
  std::mt19937 random_;
};

TEST_P(SharedPrefixTest, IsExactAndChangesNoBit) {
  for (const Dims dims : {Dims{9, 3, 64, 16}, {4, 4, 32, 16}, {8, 1, 20, 16}, {2, 2, 72, 16}}) {
    // Scores of some tenths, and of ±80 and more, where a merge could overflow.
    for (const auto& [deviation, window] :
         {std::pair{2.0f, 0}, {30.0f, 0}, {2.0f, 40}, {2.0f, 330}}) {
      Batch batch(random_, dims, Tree(), deviation);
      batch.SetWindow(window);
      batch.AllowBfloat(InBfloat());
      const auto together = batch.Run(*ops_);
      batch.CheckExact(together);
      if (HasFatalFailure()) return;
      const auto apart = batch.Run(*ops_, Unshared(batch.spans()));
      if (InBfloat()) {
        batch.CheckExact(apart);
        continue;
      }
      EXPECT_TRUE(apart == together);
      for (const SequenceSpan& span : Unshared(batch.spans())) {
        const auto alone = batch.Run(*ops_, {&span, 1});
        const int64_t width = batch.row_elems(), begin = span.row_begin * width;
        EXPECT_TRUE(std::equal(alone.out.begin() + begin,
                               alone.out.begin() + begin + span.row_count * width,
                               together.out.begin() + begin))
            << "row " << span.row_begin;
      }
    }
  }
}

TEST_P(SharedPrefixTest, PagesOfAnySize) {
  for (const int block_tokens : {1, 4, 12, 64, 300}) {
    const Dims dims{4, 2, 16, block_tokens};
    Batch batch(random_, dims, Fan(5, 600 / block_tokens, 17, block_tokens));
    const auto together = batch.Run(*ops_);
    batch.CheckExact(together);
    if (HasFatalFailure()) return;
    EXPECT_TRUE(batch.Run(*ops_, Unshared(batch.spans())) == together) << block_tokens;
    batch.SetWindow(100);
    batch.CheckExact(batch.Run(*ops_));
  }
}

// A loop over sequences reads the prefix once for each of them.
TEST_P(SharedPrefixTest, ReadsThePrefixOnce) {
  const Dims dims{9, 3, 64, 16};
  for (const auto& [count, blocks, suffix] :
       {std::tuple{1, 64, 32}, {2, 64, 1}, {16, 64, 32}, {32, 19, 33}, {64, 5, 300}}) {
    Batch batch(random_, dims, Fan(count, blocks, suffix));
    const int64_t prefix = blocks * 16;
    EXPECT_EQ(batch.Run(*ops_).kv_bytes_read, BytesOf(dims, prefix + count * suffix)) << count;
    EXPECT_EQ(batch.Run(*ops_, Unshared(batch.spans())).kv_bytes_read,
              BytesOf(dims, count * (prefix + suffix)))
        << count;
  }
}

// Of what all see in part, that part once, and nothing that lies before it.
TEST_P(SharedPrefixTest, ReadsTheSeenPartOfThePrefixOnce) {
  const Dims dims{9, 3, 64, 16};
  constexpr int kPrefix = 64 * 16, kSuffix = 40, kCount = 16;
  Batch batch(random_, dims, Fan(kCount, kPrefix / 16, kSuffix));
  for (const int window : {kSuffix - 5, kSuffix + 1, kSuffix + 300, 5000}) {
    batch.SetWindow(window);
    const int own = std::min(window, kSuffix), common = std::clamp(window - kSuffix, 0, kPrefix);
    EXPECT_EQ(batch.Run(*ops_).kv_bytes_read, BytesOf(dims, common + kCount * own)) << window;
  }
}

TEST_P(SharedPrefixTest, ReadsEachNodeOfATreeOnce) {
  const Dims dims{6, 2, 64, 16};
  int64_t unique = 0;
  for (const Batch::Sequence& s : Tree()) unique += s.keys - s.shared_blocks * 16;
  // The span of 17 rows makes two blocks of rows, of which the second shares with what follows; on
  // tiles one.
  if (!InBfloat()) unique += 519;
  Batch batch(random_, dims, Tree());
  const int64_t read = batch.Run(*ops_).kv_bytes_read;
  if (!InBfloat()) {
    EXPECT_EQ(read, BytesOf(dims, unique));
    return;
  }
  // What is common to rows on tiles and to others is read by both where it is no whole chunk.
  int64_t again = 0;
  for (const Batch::Sequence& s : Tree()) again += s.shared_blocks * 16 % 256;
  EXPECT_GE(read, BytesOf(dims, unique));
  EXPECT_LE(read, BytesOf(dims, unique + again));
}

// However many share, and whatever shares the step, the attention of long prompts included.
TEST_P(SharedPrefixTest, LargeGroupsBesideOthers) {
  Sequences sequences = Fan(150, 4, 5);
  sequences.push_back({2 * 256 + 70, 70});
  for (const auto& s : Fan(20, 17, 40)) sequences.push_back(s);
  const Dims dims{3, 1, 24, 16};
  Batch batch(random_, dims, sequences);
  const auto together = batch.Run(*ops_);
  EXPECT_TRUE(batch.Run(*ops_, Unshared(batch.spans())) == together);
  OpsOptions other = GetParam();
  other.threads = 5;
  EXPECT_TRUE(batch.Run(*MakeOps(other)) == together);
}

// Prefix and suffix attended by calls of their own and joined by their lse, in either order.
TEST_P(SharedPrefixTest, EqualsTheMergeOfItsParts) {
  constexpr int kCount = 6, kPrefix = 320, kSuffix = 41, kHeads = 4, kDim = 64;
  Batch batch(random_, {kHeads, 2, kDim, 16}, Fan(kCount, kPrefix / 16, kSuffix), 25.0f);
  const auto whole = batch.Run(*ops_);
  if (InBfloat()) {  // the parts share nothing
    batch.AllowBfloat(true);
    return batch.CheckExact(whole);
  }
  const auto part = [&](int first_page, int keys) {
    Batch view = batch;
    auto spans = Unshared(batch.spans());
    for (int i = 0; i < kCount; ++i) {
      spans[i].block_table += first_page;
      view.SetPosition(i, keys - 1);
    }
    return view.Run(*ops_, spans);
  };
  const auto a = part(0, kPrefix), b = part(kPrefix / 16, kSuffix);
  for (int i = 0; i < kCount * kHeads; ++i) {
    const double max = std::max(a.lse[i], b.lse[i]);
    const double wa = std::exp(a.lse[i] - max), wb = std::exp(b.lse[i] - max);
    EXPECT_NEAR(whole.lse[i], max + std::log(wa + wb), 1e-5 * std::max(1.0, std::abs(max)));
    for (int d = 0; d < kDim; ++d) {
      const double merged = (wa * a.out[i * kDim + d] + wb * b.out[i * kDim + d]) / (wa + wb);
      EXPECT_NEAR(whole.out[i * kDim + d], merged, 3e-5);
    }
  }
}

// The reference shares nothing; the exact sums of the batch are the oracle.
std::vector<OpsOptions> SharingOptions() {
  auto all = AllOptions();
  std::erase_if(all, [](const OpsOptions& options) { return options.isa == Isa::kReference; });
  return all;
}

INSTANTIATE_TEST_SUITE_P(Paths, SharedPrefixTest, testing::ValuesIn(SharingOptions()),
                         [](const auto& param_info) { return OptionsName(param_info.param); });

}  // namespace
}  // namespace trivium::kernels
