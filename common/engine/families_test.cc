// Every family of models that the table of architectures has: against the naive forward pass, and
// in batches and chunks against each prompt alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "common/engine/counting_ops.h"
#include "common/engine/experts.h"
#include "common/engine/naive_forward.h"
#include "common/engine/test_setup.h"

namespace trivium::engine {
namespace {

using kernels::Isa;
using kernels::Numerics;

struct Family {
  std::string name;
  Isa isa;
  Numerics numerics;
};

class FamiliesTest : public testing::TestWithParam<Family> {
 protected:
  static TestEngine Make(int threads = 2) {
    const auto& [name, isa, numerics] = GetParam();
    return MakeTestEngine({.isa = isa, .numerics = numerics, .threads = threads},
                          LoadTinyModel(model::TinyModelOf(name)));
  }
};

TEST_P(FamiliesTest, EqualsTheNaiveForwardPassAndStoresItsKeysAndValues) {
  TestEngine test = Make();
  std::mt19937 random(31);
  Prompt prompt;
  prompt.ids = RandomIds(random, 60, test.config().vocab);
  prompt.table = {7, 100, 3, 50};
  const NaiveResult naive = NaiveForward(test.engine->model(), prompt.ids);
  const SequenceRange range = prompt.Whole(LogitsWanted::kAll);
  const StepResult result = test.engine->Step({&range, 1});
  // AMX rounds to bfloat16 where rows are many.
  const double tolerance = GetParam().isa == Isa::kAmx ? 4e-2 : 1e-3;
  const auto vocab = static_cast<size_t>(test.config().vocab);
  for (size_t t = 0; t < prompt.ids.size(); ++t) {
    ASSERT_LE(Distance(result.logits.subspan(t * vocab, vocab), naive.logits[t]), tolerance) << t;
  }
  const auto bits = KvBits(*test.storage, prompt);
  size_t at = 0;
  for (size_t layer = 0; layer < naive.k.size(); ++layer) {
    for (const auto* rows : {&naive.k[layer], &naive.v[layer]}) {
      for (const std::vector<double>& row : *rows) {
        std::vector<float> stored;
        for (size_t i = 0; i < row.size(); ++i) stored.push_back(kernels::HalfToFloat(bits[at++]));
        ASSERT_LE(Distance(stored, row), tolerance) << "layer " << layer;
      }
    }
  }
  EXPECT_EQ(at, bits.size());
}

class InvariantFamiliesTest : public FamiliesTest {};

TEST_P(InvariantFamiliesTest, ChunksAndSingleTokensChangeNoBit) {
  TestEngine test = Make();
  std::mt19937 random(32);
  for (int round = 0; round < 4; ++round) {
    const Prompt prompt = RandomPrompts(random, test, 1, 90).front();
    const Logits whole = RunWhole(*test.engine, prompt);
    const auto kv = KvBits(*test.storage, prompt);
    std::fill_n(test.storage->layer(0), test.storage->bytes() / 2, uint16_t{0});
    const auto cuts = RandomCuts(random, prompt.ids.size(), round);
    EXPECT_EQ(RunCut(*test.engine, prompt, cuts), whole) << round;
    EXPECT_EQ(KvBits(*test.storage, prompt), kv) << round;
  }
}

TEST_P(InvariantFamiliesTest, APackedBatchEqualsEachPromptAloneBitForBit) {
  TestEngine test = Make(), other = Make(1);
  std::mt19937 random(33);
  const auto prompts = RandomPrompts(random, test, 12, 60);
  std::vector<Logits> alone;
  for (const Prompt& prompt : prompts) alone.push_back(RunWhole(*other.engine, prompt));
  std::vector<SequenceRange> batch;
  for (size_t i = 0; i < prompts.size(); ++i) {
    // Some decode their last token beside the whole prompts of others.
    const size_t done = i % 3 == 0 ? prompts[i].ids.size() - 1 : 0;
    if (done > 0) {
      const SequenceRange prefix = prompts[i].Range(0, done, LogitsWanted::kNone);
      test.engine->Step({&prefix, 1});
    }
    batch.push_back(prompts[i].Range(done, prompts[i].ids.size() - done, LogitsWanted::kLast));
  }
  const StepResult result = test.engine->Step(batch);
  const auto vocab = static_cast<size_t>(test.config().vocab);
  for (size_t i = 0; i < prompts.size(); ++i) {
    const auto row = result.logits.subspan(i * vocab, vocab);
    EXPECT_EQ(Logits(row.begin(), row.end()), alone[i]) << i;
  }
}

std::vector<Family> Families(std::initializer_list<std::pair<Isa, Numerics>> paths) {
  std::vector<Family> families;
  for (const char* name : {"qwen2", "qwen3", "gemma3", "mixtral", "qwen2moe", "qwen3moe"}) {
    for (const auto& [isa, numerics] : paths) families.push_back({name, isa, numerics});
  }
  return families;
}

std::string FamilyName(const testing::TestParamInfo<Family>& family) {
  const auto& [name, isa, numerics] = family.param;
  return fmt::format("{}_{}_{}", name, kernels::IsaName(isa),
                     numerics == Numerics::kFast ? "fast" : "invariant");
}

INSTANTIATE_TEST_SUITE_P(Every, FamiliesTest,
                         testing::ValuesIn(Families({{Isa::kReference, Numerics::kFast},
                                                     {kernels::BestIsa(), Numerics::kFast}})),
                         FamilyName);
INSTANTIATE_TEST_SUITE_P(
    Every, InvariantFamiliesTest,
    testing::ValuesIn(Families({{kernels::BestIsa(), Numerics::kBatchInvariant}})), FamilyName);

// One product an expert, with the rows that chose it, and none for an expert without rows.
TEST(ExpertsTest, EachExpertIsReadOnceWithItsOwnRows) {
  const auto record = std::make_shared<OpsRecord>();
  model::TinyModelOptions options = model::TinyModelOf("qwen3moe");
  options.ffn = 96;  // unlike any other size
  TestEngine test = MakeTestEngine({}, LoadTinyModel(options), 64, [&](auto ops) {
    return std::make_unique<CountingOps>(std::move(ops), record);
  });
  std::mt19937 random(34);
  Prompt prompt;
  prompt.ids = RandomIds(random, 30, test.config().vocab);
  prompt.table = {0, 1};
  for (const size_t count : {30, 1}) {
    record->Clear();
    const SequenceRange range = prompt.Range(0, count, LogitsWanted::kAll);
    const int64_t bytes = test.engine->Step({&range, 1}).expert_bytes_read;
    int products = 0, rows = 0;
    for (const OpsRecord::Gemm& gemm : record->gemms) {
      if (gemm.outputs != options.ffn || gemm.inputs != options.hidden) continue;
      ++products;
      rows += gemm.rows;
      EXPECT_GT(gemm.rows, 0);
    }
    const auto used = static_cast<int>(count) * options.experts_used * options.layers;
    EXPECT_EQ(rows, 2 * used) << "gate and up";
    EXPECT_LE(products, 2 * std::min(used, options.experts * options.layers));
    const int64_t expert_bytes = int64_t{3} * options.ffn * options.hidden * 4;
    EXPECT_EQ(bytes, products / 2 * expert_bytes);
  }
}

TEST(ExpertsTest, WeightsAreTheSoftmaxOfTheLikeliest) {
  const std::vector<float> scores = {0.5f, 2.0f, -1.0f, 2.0f, 1.0f};
  std::vector<double> weights(scores.size());
  double total = 0;
  for (const float score : scores) total += std::exp(static_cast<double>(score));
  WeighExperts(scores, {.count = 5, .used = 3, .normalised = false}, weights);
  for (const size_t i : {1, 3, 4}) {
    EXPECT_NEAR(weights[i], std::exp(static_cast<double>(scores[i])) / total, 1e-12);
  }
  EXPECT_EQ(weights[0] + weights[2], 0);
  WeighExperts(scores, {.count = 5, .used = 3, .normalised = true}, weights);
  EXPECT_NEAR(weights[1] + weights[3] + weights[4], 1, 1e-12);
  EXPECT_NEAR(weights[1] / weights[4], std::exp(1.0), 1e-12);
  WeighExperts(scores, {.count = 5, .used = 1, .normalised = true}, weights);
  EXPECT_EQ(weights, (std::vector<double>{0, 1, 0, 0, 0})) << "the first among equals";
  const std::vector<float> nan(5, NAN);
  WeighExperts(nan, {.count = 5, .used = 2, .normalised = true}, weights);
  EXPECT_TRUE(std::isnan(weights[0]) && std::isnan(weights[1])) << "what is no number shows";
}

}  // namespace
}  // namespace trivium::engine
