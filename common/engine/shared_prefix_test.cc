// Sequences that share KV blocks: found in their tables, decoded to the same tokens as on copies of
// their own, with each shared block read once.
#include "common/engine/shared_prefix.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "common/engine/sampler.h"
#include "common/engine/test_setup.h"

namespace trivium::engine {
namespace {

using kernels::Isa;
using kernels::Numerics;
using kernels::SequenceSpan;

// Random tries: a table is a part of an earlier one and something new.
TEST(GroupBySharedPrefix, FindsEveryCommonPrefix) {
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    SCOPED_TRACE(round);
    std::vector<std::vector<int32_t>> tables(random() % 12);
    std::vector<int32_t> positions;
    std::vector<SequenceSpan> spans;
    int32_t next = 0;
    for (size_t i = 0; i < tables.size(); ++i) {
      if (i > 0) tables[i] = tables[random() % i];
      tables[i].resize(random() % (tables[i].size() + 1));
      while (tables[i].size() < 2 || random() % 3 > 0) tables[i].push_back(next++);
      const auto covered = static_cast<uint32_t>(tables[i].size()) * 4;
      positions.push_back(static_cast<int32_t>(random() % covered));
      spans.push_back({static_cast<int>(i), 1, tables[i].data()});
    }
    // Each distinct path of blocks that lie before the positions is a node of the trie.
    std::set<std::vector<int32_t>> nodes;
    size_t blocks = 0;
    for (size_t i = 0; i < tables.size(); ++i) {
      for (int32_t b = 1; b <= positions[i] / 4; ++b) {
        nodes.insert({tables[i].begin(), tables[i].begin() + b});
        ++blocks;
      }
    }
    GroupBySharedPrefix(positions, 4, spans);
    size_t shared = 0;
    std::set<int> rows;
    for (size_t i = 0; i < spans.size(); ++i) {
      rows.insert(spans[i].row_begin);
      const int32_t tokens = spans[i].shared_tokens;
      ASSERT_EQ(tokens % 4, 0);
      shared += static_cast<size_t>(tokens / 4);
      if (i == 0) continue;
      for (const SequenceSpan& span : {spans[i - 1], spans[i]}) {
        ASSERT_LE(tokens, positions[static_cast<size_t>(span.row_begin)]);
      }
      ASSERT_TRUE(std::equal(spans[i].block_table, spans[i].block_table + tokens / 4,
                             spans[i - 1].block_table));
    }
    EXPECT_EQ(rows.size(), tables.size());
    EXPECT_EQ(blocks - shared, nodes.size());
  }
}

constexpr int kBlock = 16;

// Sequences over a tree of prefixes, on blocks that they share or on copies of their own.
class Forest {
 public:
  // `parent`: the sequence whose first `shared` tokens this one has too, or -1.
  struct Node {
    int parent, shared, length;
  };

  Forest(TestEngine test, const std::vector<Node>& nodes, bool share) : test_(std::move(test)) {
    std::mt19937 random(23);
    for (const Node& node : nodes) {
      Prompt prompt;
      if (node.parent >= 0) {
        const Prompt& parent = prompts_[static_cast<size_t>(node.parent)];
        prompt.ids.assign(parent.ids.begin(), parent.ids.begin() + node.shared);
        if (share)
          prompt.table.assign(parent.table.begin(), parent.table.begin() + node.shared / kBlock);
      }
      const auto own = RandomIds(random, static_cast<size_t>(node.length) - prompt.ids.size(),
                                 test_.config().vocab);
      prompt.ids.insert(prompt.ids.end(), own.begin(), own.end());
      while (prompt.table.size() * kBlock < prompt.ids.size() + 20)
        prompt.table.push_back(next_block_++);
      const size_t done = share && node.parent >= 0 ? static_cast<size_t>(node.shared) : 0;
      const SequenceRange range =
          prompt.Range(done, prompt.ids.size() - done - 1, LogitsWanted::kNone);
      test_.engine->Step({&range, 1});
      prompts_.push_back(std::move(prompt));
    }
  }

  // Decodes greedily, all that are not in `left_out` together; the logits of the step.
  std::vector<float> Step(const std::set<size_t>& left_out = {}) {
    std::vector<SequenceRange> batch;
    std::vector<size_t> members;
    // Not in the order of the tree.
    for (size_t n = 0; n < prompts_.size(); ++n) {
      const size_t i = n * 7 % prompts_.size();
      if (left_out.contains(i)) continue;
      members.push_back(i);
      batch.push_back(prompts_[i].Range(prompts_[i].ids.size() - 1, 1, LogitsWanted::kLast));
    }
    const StepResult result = test_.engine->Step(batch);
    bytes_ = result.kv_bytes_read;
    const auto vocab = static_cast<size_t>(test_.config().vocab);
    std::vector<float> logits(result.logits.begin(), result.logits.end());
    for (size_t i = 0; i < members.size(); ++i) {
      prompts_[members[i]].ids.push_back(
          Sample(std::span(logits).subspan(i * vocab, vocab), {}, 0, {}).id);
    }
    return logits;
  }

  int64_t tokens_read() const {
    return bytes_ / (test_.config().layers * 4 * test_.storage->layout().RowElems());
  }
  const std::vector<Prompt>& prompts() const { return prompts_; }

 private:
  TestEngine test_;
  std::vector<Prompt> prompts_;
  int32_t next_block_ = 0;
  int64_t bytes_ = 0;
};

// Three levels, uneven; every border between sequences is at least as long as what pays off.
const std::vector<Forest::Node> kTree = {{-1, 0, 400},  {0, 272, 300}, {0, 272, 290},
                                         {1, 288, 350}, {1, 288, 297}, {0, 384, 410},
                                         {-1, 0, 90},   {6, 80, 95},   {-1, 0, 31}};

class SharedDecodeTest : public testing::TestWithParam<std::tuple<Isa, Numerics, int>> {
 protected:
  static TestEngine Make() {
    const auto [isa, numerics, threads] = GetParam();
    return MakeTestEngine({.isa = isa, .numerics = numerics, .threads = threads}, 512, nullptr,
                          kernels::WeightType::kQ4_1);
  }
};

TEST_P(SharedDecodeTest, TokensAreThoseOfCopies) {
  Forest shared(Make(), kTree, true), copies(Make(), kTree, false);
  for (int step = 0; step < 12; ++step) {
    // A sequence that leaves in the middle changes nothing for those who shared with it.
    std::set<size_t> left;
    if (step >= 5) left = {0, 4};
    const auto logits = shared.Step(left), expected = copies.Step(left);
    if (std::get<Numerics>(GetParam()) == Numerics::kBatchInvariant) {
      ASSERT_EQ(logits, expected);
    }
  }
  for (size_t i = 0; i < kTree.size(); ++i) {
    EXPECT_EQ(shared.prompts()[i].ids, copies.prompts()[i].ids) << i;
  }
}

TEST_P(SharedDecodeTest, SharedBlocksAreReadOnce) {
  Forest shared(Make(), kTree, true), copies(Make(), kTree, false);
  shared.Step();
  copies.Step();
  int64_t unique = 0, all = 0;
  for (const Forest::Node& node : kTree) {
    unique += node.length - node.shared;
    all += node.length;
  }
  EXPECT_EQ(shared.tokens_read(), unique);
  EXPECT_EQ(copies.tokens_read(), all);
}

std::vector<std::tuple<Isa, Numerics, int>> SharingPaths() {
  std::vector<std::tuple<Isa, Numerics, int>> paths;
  for (const Isa isa : kernels::SupportedIsas()) {
    if (isa == Isa::kReference) continue;  // shares nothing
    for (const Numerics numerics : {Numerics::kFast, Numerics::kBatchInvariant}) {
      for (const int threads : {1, 2}) paths.emplace_back(isa, numerics, threads);
    }
  }
  return paths;
}

std::string PathName(const testing::TestParamInfo<std::tuple<Isa, Numerics, int>>& info) {
  const auto [isa, numerics, threads] = info.param;
  return fmt::format("{}_{}_{}", kernels::IsaName(isa),
                     numerics == Numerics::kFast ? "fast" : "invariant", threads);
}

INSTANTIATE_TEST_SUITE_P(Paths, SharedDecodeTest, testing::ValuesIn(SharingPaths()), PathName);

TEST(SharedWriteDeathTest, NoRowWritesWhereAnotherRangeReads) {
  TestEngine test = MakeTestEngine({}, 8);
  const std::vector<int32_t> one = {1}, table = {3, 4}, same_last = {5, 4}, begins_there = {4, 6};
  const auto run = [&](const std::vector<int32_t>& other, int32_t position) {
    const SequenceRange batch[] = {{.tokens = one, .position = 20, .block_table = table},
                                   {.tokens = one, .position = position, .block_table = other}};
    test.engine->Step(batch);
  };
  EXPECT_DEATH(run(same_last, 25), "two ranges write to block 4");
  EXPECT_DEATH(run(begins_there, 16), "block 4 is shared and written");
  run({3, 6}, 16);  // shares what both have behind them
}

}  // namespace
}  // namespace trivium::engine
