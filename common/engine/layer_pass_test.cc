// Layered prefill: prompts that pass a group of layers in each step, beside a batch that passes
// all.
#include <gtest/gtest.h>

#include <algorithm>

#include "common/engine/counting_ops.h"
#include "common/engine/engine.h"
#include "common/engine/test_setup.h"

namespace trivium::engine {
namespace {

constexpr int kLayers = 6;

std::shared_ptr<const model::Model> DeepModel() {
  static const auto* model =
      new std::shared_ptr<const model::Model>(LoadTinyModel({.layers = kLayers}));
  return *model;
}

std::vector<SequenceRange> Wholes(std::span<const Prompt> prompts) {
  std::vector<SequenceRange> ranges;
  for (const Prompt& prompt : prompts) ranges.push_back(prompt.Whole(LogitsWanted::kLast));
  return ranges;
}

// Ascending ends of random groups of layers; the last is kLayers.
std::vector<int> RandomGroups(std::mt19937& random) {
  std::vector<int> ends;
  for (int layer = 1; layer < kLayers; ++layer) {
    if (random() % 2 == 0) ends.push_back(layer);
  }
  ends.push_back(kLayers);
  return ends;
}

class LayerPassTest : public testing::Test {
 protected:
  LayerPassTest() {
    const uint32_t seed = std::random_device()();
    std::printf("seed %u\n", seed);
    random_.seed(seed);
  }
  TestEngine Make(kernels::Isa isa, const OpsWrapper& wrap = nullptr) const {
    return MakeTestEngine(
        {.isa = isa, .numerics = kernels::Numerics::kBatchInvariant, .threads = 2}, DeepModel(),
        512, wrap);
  }
  // Answers that have begun: all but the last of their tokens are there.
  static std::vector<SequenceRange> Running(std::span<const Prompt> prompts, Engine& engine) {
    std::vector<SequenceRange> ranges;
    for (const Prompt& prompt : prompts) {
      const size_t last = prompt.ids.size() - 1;
      if (last > 0) {
        const SequenceRange before = prompt.Range(0, last, LogitsWanted::kNone);
        engine.Step({&before, 1});
      }
      ranges.push_back(prompt.Range(last, 1, LogitsWanted::kLast));
    }
    return ranges;
  }

  std::mt19937 random_;
};

std::vector<float> Copy(std::span<const float> values) { return {values.begin(), values.end()}; }

// Every layer sees all rows of the prompts at once, as in one step; the answers beside them are
// what they would be alone.
TEST_F(LayerPassTest, EqualsOneStepBitForBit) {
  for (const kernels::Isa isa : kernels::SupportedIsas()) {
    TestEngine test = Make(isa);
    for (int round = 0; round < 6; ++round) {
      SCOPED_TRACE(testing::Message() << kernels::IsaName(isa) << ", round " << round);
      const auto all = RandomPrompts(random_, test, 8, 70);
      const std::span<const Prompt> prompts = std::span(all).first(5);
      const auto batch = Running(std::span(all).subspan(5), *test.engine);
      const auto cohort = Wholes(prompts);
      const std::vector<float> answers = Copy(test.engine->Step(batch).logits);
      const std::vector<float> whole = Copy(test.engine->Step(cohort).logits);
      std::vector<std::vector<uint16_t>> kv;
      for (const Prompt& prompt : prompts) {
        kv.push_back(KvBits(*test.storage, prompt));
        for (const int32_t block : prompt.table) test.storage->Scrub({block});
      }

      std::vector<float> hidden, last;
      int layer = 0;
      for (const int end : RandomGroups(random_)) {
        const StepResult result = test.engine->Step(batch, {cohort, layer, end, &hidden}, nullptr);
        ASSERT_EQ(result.first_row.size(), batch.size() + cohort.size());
        EXPECT_EQ(Copy(result.logits.first(answers.size())), answers);
        last = Copy(result.logits.subspan(answers.size()));
        EXPECT_EQ(last.empty(), end < kLayers) << "logits before the last layer";
        EXPECT_EQ(result.first_row.back(), end < kLayers ? -1 : 7);
        layer = end;
      }
      EXPECT_EQ(last, whole);
      for (size_t i = 0; i < prompts.size(); ++i) {
        EXPECT_EQ(KvBits(*test.storage, prompts[i]), kv[i]) << i;
      }
    }
  }
}

// Prompts whose beginning is there, longer than one pass: chunks of tokens, each in groups of
// layers.
TEST_F(LayerPassTest, ChunksPassInGroupsToo) {
  TestEngine test = Make(kernels::BestIsa());
  Prompt prompt = RandomPrompts(random_, test, 1, 1).front();
  prompt.ids = RandomIds(random_, 90, test.config().vocab);
  prompt.table = {7, 100, 3, 1, 9, 200};
  const SequenceRange range = prompt.Whole(LogitsWanted::kLast);
  const std::vector<float> whole = Copy(test.engine->Step({&range, 1}).logits);
  std::vector<float> hidden, last;
  for (size_t begin = 0; begin < 90; begin += 48) {
    const SequenceRange chunk =
        prompt.Range(begin, std::min<size_t>(48, 90 - begin), LogitsWanted::kLast);
    for (int layer = 0; layer < kLayers; layer += 2) {
      last = Copy(test.engine->Step({}, {{&chunk, 1}, layer, layer + 2, &hidden}, nullptr).logits);
    }
  }
  EXPECT_EQ(last, whole);

  // A picture's rows in the place of its tokens.
  const auto hidden_size = static_cast<size_t>(test.config().hidden);
  std::vector<float> rows(20 * hidden_size);
  kernels::MakeOps({})->EmbedRows(test.engine->model().embedding,
                                  std::span(prompt.ids).subspan(40, 20), rows.data());
  std::fill_n(prompt.ids.begin() + 40, 20, 0);
  for (const auto& [begin, end, first, count] :
       {std::tuple(0, 48, 40, 8), std::tuple(48, 90, 0, 12)}) {
    const GivenRows given{first, std::span(rows).subspan(begin == 0 ? 0 : 8 * hidden_size,
                                                         static_cast<size_t>(count) * hidden_size)};
    SequenceRange chunk = prompt.Range(static_cast<size_t>(begin), static_cast<size_t>(end - begin),
                                       LogitsWanted::kLast);
    chunk.given = {&given, 1};
    for (int layer = 0; layer < kLayers; layer += 2) {
      last = Copy(test.engine->Step({}, {{&chunk, 1}, layer, layer + 2, &hidden}, nullptr).logits);
    }
  }
  EXPECT_EQ(last, whole);
}

// In its group the pass and the batch are one batch: one call of each operation a layer. In the
// other layers its rows do not exist, and the output matrix sees them once.
TEST_F(LayerPassTest, RowsAreComputedInTheirGroupAlone) {
  const auto record = std::make_shared<OpsRecord>();
  TestEngine test = Make(kernels::BestIsa(), [&](std::unique_ptr<kernels::Ops> ops) {
    return std::make_unique<CountingOps>(std::move(ops), record);
  });
  const auto all = RandomPrompts(random_, test, 5, 40);
  const std::span<const Prompt> prompts = std::span(all).first(3);
  const auto batch = Running(std::span(all).subspan(3), *test.engine);
  const auto cohort = Wholes(prompts);
  int rows = 0;
  for (const Prompt& prompt : prompts) rows += static_cast<int>(prompt.ids.size());
  std::vector<float> hidden;
  for (const auto& [begin, end] : {std::pair(0, 2), std::pair(2, 5), std::pair(5, kLayers)}) {
    record->Clear();
    std::vector<int> done, expected(kLayers, 2);
    test.engine->Step(batch, {cohort, begin, end, &hidden},
                      [&done](int layer) { done.push_back(layer); });
    for (int layer = begin; layer < end; ++layer) expected[static_cast<size_t>(layer)] += rows;
    EXPECT_EQ(record->stored_rows, expected);
    EXPECT_EQ(record->embedded, std::vector<int>{begin == 0 ? rows + 2 : 2});
    EXPECT_EQ(record->gemms.back().rows, end == kLayers ? 5 : 2) << "rows of the output matrix";
    EXPECT_EQ(done, (std::vector<int>{0, 1, 2, 3, 4, 5}));
    EXPECT_EQ(hidden.size(), static_cast<size_t>(rows * test.config().hidden));
  }
}

TEST_F(LayerPassTest, WithoutABatchOnlyTheGroupIsComputed) {
  const auto record = std::make_shared<OpsRecord>();
  TestEngine test = Make(kernels::BestIsa(), [&](std::unique_ptr<kernels::Ops> ops) {
    return std::make_unique<CountingOps>(std::move(ops), record);
  });
  const auto prompts = RandomPrompts(random_, test, 2, 40);
  std::vector<float> hidden;
  std::vector<int> done;
  test.engine->Step({}, {Wholes(prompts), 0, 2, &hidden},
                    [&done](int layer) { done.push_back(layer); });
  EXPECT_EQ(done, (std::vector<int>{0, 1}));
  EXPECT_EQ(record->stored_rows.size(), 2u);
}

using LayerPassDeathTest = LayerPassTest;

TEST_F(LayerPassDeathTest, BrokenPreconditionsEndTheProcess) {
  TestEngine test = Make(kernels::BestIsa());
  const auto prompts = RandomPrompts(random_, test, 2, 40);
  const auto cohort = Wholes(prompts);
  std::vector<float> hidden(3);
  EXPECT_DEATH(test.engine->Step({}, {cohort, 0, 2, nullptr}, nullptr), "have no place");
  EXPECT_DEATH(test.engine->Step({}, {cohort, 2, 2, &hidden}, nullptr), "layers 2 … 2 of 6");
  EXPECT_DEATH(test.engine->Step({}, {cohort, 2, 7, &hidden}, nullptr), "layers 2 … 7 of 6");
  EXPECT_DEATH(test.engine->Step({}, {cohort, 2, 4, &hidden}, nullptr), "3 values of");
  EXPECT_DEATH(test.engine->Step(cohort, {cohort, 0, 2, &hidden}, nullptr), "two ranges write");
}

}  // namespace
}  // namespace trivium::engine
