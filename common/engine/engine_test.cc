#include "common/engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "common/engine/counting_ops.h"
#include "common/engine/generate.h"
#include "common/engine/naive_forward.h"
#include "common/engine/test_setup.h"

namespace trivium::engine {
namespace {

using kernels::Isa;
using kernels::Numerics;
using kernels::WeightType;

// Sanitizers make a step 20 times slower: they get the same tests with fewer repetitions.
#if defined(TRIVIUM_TSAN) || defined(__SANITIZE_ADDRESS__)
constexpr bool kSlow = true;
#else
constexpr bool kSlow = false;
#endif

Logits Row(const StepResult& result, int row, int32_t vocab) {
  const auto from = result.logits.begin() + int64_t{row} * vocab;
  return {from, from + vocab};
}

// How the engine computes, and on which weights.
struct Path {
  Isa isa;
  Numerics numerics;
  int threads;
  WeightType linear_type;
};

class EngineTest : public testing::TestWithParam<Path> {
 protected:
  bool invariant() const { return GetParam().numerics == Numerics::kBatchInvariant; }
  TestEngine Make() const {
    const Path& path = GetParam();
    return MakeTestEngine({.isa = path.isa, .numerics = path.numerics, .threads = path.threads},
                          512, nullptr, path.linear_type);
  }
  // Paths that round activations, to bfloat16 or to the integers that go with 4-bit weights.
  bool rounds() const {
    const Path& path = GetParam();
    return path.isa == Isa::kAmx ||
           (path.isa != Isa::kReference && path.linear_type != WeightType::kF32);
  }
  double tolerance() const { return rounds() ? 4e-2 : 1e-3; }
  double cut_tolerance() const { return rounds() ? 4e-2 : 1e-4; }

  void ExpectSame(const Logits& actual, const Logits& expected) const {
    ASSERT_EQ(actual.size(), expected.size());
    if (invariant()) {
      EXPECT_EQ(actual, expected);
    } else {
      EXPECT_LE(Distance(actual, expected), cut_tolerance());
    }
  }
};

TEST_P(EngineTest, EqualsTheNaiveForwardPassAndStoresItsKeysAndValues) {
  TestEngine test = Make();
  std::mt19937 random(11);
  Prompt prompt = RandomPrompts(random, test, 1, 1).front();
  prompt.ids = RandomIds(random, 45, test.config().vocab);
  prompt.table = {7, 100, 3};
  const NaiveResult naive = NaiveForward(test.engine->model(), prompt.ids);
  const SequenceRange range = prompt.Whole(LogitsWanted::kAll);
  const StepResult result = test.engine->Step({&range, 1});
  ASSERT_EQ(result.first_row[0], 0);
  ASSERT_EQ(result.logits.size(), prompt.ids.size() * static_cast<size_t>(test.config().vocab));
  for (size_t t = 0; t < prompt.ids.size(); ++t) {
    EXPECT_LE(Distance(Row(result, static_cast<int>(t), test.config().vocab), naive.logits[t]),
              tolerance());
  }
  const auto bits = KvBits(*test.storage, prompt);
  size_t at = 0;
  for (size_t layer = 0; layer < naive.k.size(); ++layer) {
    for (const auto* rows : {&naive.k[layer], &naive.v[layer]}) {
      for (const std::vector<double>& row : *rows) {
        std::vector<float> stored;
        for (size_t i = 0; i < row.size(); ++i) stored.push_back(kernels::HalfToFloat(bits[at++]));
        EXPECT_LE(Distance(stored, row), tolerance()) << "layer " << layer;
      }
    }
  }
  EXPECT_EQ(at, bits.size());
}

TEST(Engine, RotatesAsTheFileAsks) {
  std::vector<Logits> last_logits;
  for (const char* scaling : {"", "linear", "yarn", "llama3", "longrope"}) {
    SCOPED_TRACE(scaling);
    // kFast may round more than the rotations differ.
    TestEngine test = MakeTestEngine(
        {.isa = kernels::BestIsa(), .numerics = kernels::Numerics::kBatchInvariant, .threads = 2},
        LoadTinyModel({.layers = 2, .rope_scaling = scaling}));
    Prompt prompt;
    for (int32_t i = 0; i < 75; ++i) prompt.ids.push_back(100 + i % 7);
    prompt.table = {7, 100, 3, 1, 9};
    const NaiveResult naive = NaiveForward(test.engine->model(), prompt.ids);
    const SequenceRange range = prompt.Whole(LogitsWanted::kLast);
    const StepResult result = test.engine->Step({&range, 1});
    EXPECT_LE(Distance(result.logits, naive.logits.back()), 1e-3);
    for (const Logits& other : last_logits) EXPECT_GT(Distance(result.logits, other), 1e-2);
    last_logits.emplace_back(result.logits.begin(), result.logits.end());
  }
}

TEST_P(EngineTest, CutsIntoChunksChangeNothing) {
  TestEngine test = Make();
  std::mt19937 random(12);
  for (int round = 0; round < (kSlow ? 3 : 20); ++round) {
    SCOPED_TRACE(round);
    const Prompt prompt = RandomPrompts(random, test, 1, 90).front();
    const Logits whole = RunWhole(*test.engine, prompt);
    const auto kv = KvBits(*test.storage, prompt);
    std::fill_n(test.storage->layer(0), test.storage->bytes() / 2, uint16_t{0});
    ExpectSame(RunCut(*test.engine, prompt, RandomCuts(random, prompt.ids.size(), round)), whole);
    if (invariant()) {
      EXPECT_EQ(KvBits(*test.storage, prompt), kv);
    }
  }
}

TEST_P(EngineTest, APackedBatchEqualsEachPromptAlone) {
  TestEngine test = Make();
  std::mt19937 random(13);
  const auto prompts = RandomPrompts(random, test, 32, 60);
  std::vector<Logits> alone;
  for (const Prompt& prompt : prompts) alone.push_back(RunWhole(*test.engine, prompt));
  std::vector<SequenceRange> batch;
  for (size_t i = 0; i < prompts.size(); ++i) {
    constexpr LogitsWanted kKinds[] = {LogitsWanted::kLast, LogitsWanted::kAll,
                                       LogitsWanted::kNone};
    batch.push_back(prompts[i].Whole(kKinds[i % 3]));
  }
  const StepResult result = test.engine->Step(batch);
  int rows = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    SCOPED_TRACE(i);
    const int length = static_cast<int>(prompts[i].ids.size());
    const int wanted = i % 3 == 0 ? 1 : i % 3 == 1 ? length : 0;
    ASSERT_EQ(result.first_row[i], wanted == 0 ? -1 : rows);
    rows += wanted;
    if (wanted > 0) ExpectSame(Row(result, rows - 1, test.config().vocab), alone[i]);
  }
  EXPECT_EQ(result.logits.size(),
            static_cast<size_t>(rows) * static_cast<size_t>(test.config().vocab));
}

// Long prefixes in different states: single tokens, chunks and whole prompts share one step.
TEST_P(EngineTest, DecodeRowsShareAStepWithPrompts) {
  TestEngine test = Make();
  std::mt19937 random(14);
  const auto prompts = RandomPrompts(random, test, 16, 70);
  std::vector<Logits> alone;
  for (const Prompt& prompt : prompts) alone.push_back(RunWhole(*test.engine, prompt));
  std::fill_n(test.storage->layer(0), test.storage->bytes() / 2, uint16_t{0});
  std::vector<SequenceRange> batch;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const size_t length = prompts[i].ids.size();
    const size_t done = i % 3 == 0 ? length - 1 : i % 3 == 1 ? length / 2 : 0;
    if (done > 0) {
      const SequenceRange prefix = prompts[i].Range(0, done, LogitsWanted::kNone);
      test.engine->Step({&prefix, 1});
    }
    batch.push_back(prompts[i].Range(done, length - done, LogitsWanted::kLast));
  }
  const StepResult result = test.engine->Step(batch);
  for (size_t i = 0; i < prompts.size(); ++i) {
    SCOPED_TRACE(i);
    ExpectSame(Row(result, static_cast<int>(i), test.config().vocab), alone[i]);
  }
}

TEST_P(EngineTest, OneSequenceNeverTouchesAnother) {
  TestEngine test = Make();
  std::mt19937 random(15);
  auto prompts = RandomPrompts(random, test, 8, 50);
  const auto run = [&] {
    std::vector<SequenceRange> batch;
    for (const Prompt& prompt : prompts) batch.push_back(prompt.Whole(LogitsWanted::kLast));
    const StepResult result = test.engine->Step(batch);
    std::pair<Logits, std::vector<std::vector<uint16_t>>> seen;
    seen.first.assign(result.logits.begin(), result.logits.end());
    for (const Prompt& prompt : prompts) seen.second.push_back(KvBits(*test.storage, prompt));
    return seen;
  };
  const auto before = run();
  const size_t changed = 3;
  int32_t& id = prompts[changed].ids[prompts[changed].ids.size() / 2];
  id = (id + 1) % test.config().vocab;
  const auto after = run();
  const auto vocab = static_cast<size_t>(test.config().vocab);
  for (size_t i = 0; i < prompts.size(); ++i) {
    const auto from = static_cast<std::ptrdiff_t>(i * vocab),
               to = from + static_cast<std::ptrdiff_t>(vocab);
    const bool same = std::equal(before.first.begin() + from, before.first.begin() + to,
                                 after.first.begin() + from);
    EXPECT_EQ(same, i != changed) << i;
    EXPECT_EQ(before.second[i] == after.second[i], i != changed) << i;
  }
}

TEST_P(EngineTest, WhereBlocksLieChangesNoBit) {
  TestEngine test = Make();
  std::mt19937 random(16);
  Prompt prompt = RandomPrompts(random, test, 1, 1).front();
  prompt.ids = RandomIds(random, 70, test.config().vocab);
  prompt.table = {0, 1, 2, 3, 4};
  const Logits first = RunWhole(*test.engine, prompt);
  const auto kv = KvBits(*test.storage, prompt);
  prompt.table = {400, 9, 77, 5, 123};
  EXPECT_EQ(RunWhole(*test.engine, prompt), first);
  EXPECT_EQ(KvBits(*test.storage, prompt), kv);
}

// Rows that are given stand for tokens: the embeddings of some, given behind other ids, make the
// same answer, in whatever chunks and company.
TEST_P(EngineTest, GivenRowsStandForTheTokensWhoseEmbeddingsTheyAre) {
  TestEngine test = Make();
  std::mt19937 random(18);
  const auto prompts = RandomPrompts(random, test, 2, 60);
  Prompt pictured = prompts[0];
  pictured.ids = RandomIds(random, 60, test.config().vocab);
  pictured.table.clear();
  for (int32_t block = 100; pictured.table.size() < 4; --block) {
    if (std::ranges::count(prompts[1].table, block) == 0) pictured.table.push_back(block);
  }
  const Logits whole = RunWhole(*test.engine, pictured);
  const auto kv = KvBits(*test.storage, pictured);

  const int64_t hidden = test.config().hidden;
  const std::vector<int32_t> ids = pictured.ids;
  std::vector<float> embedded(ids.size() * static_cast<size_t>(hidden));
  kernels::MakeOps({.isa = Isa::kReference})
      ->EmbedRows(test.engine->model().embedding, ids, embedded.data());
  const auto rows = [&](int32_t begin, int32_t end) {
    return GivenRows{begin,
                     std::span(embedded).subspan(static_cast<size_t>(begin * hidden),
                                                 static_cast<size_t>((end - begin) * hidden))};
  };
  const std::vector<GivenRows> given = {rows(0, 5), rows(17, 18), rows(30, 60)};
  for (const GivenRows& one : given) {
    std::fill_n(pictured.ids.begin() + one.first, std::ssize(one.rows) / hidden, 0);
  }
  std::fill_n(test.storage->layer(0), test.storage->bytes() / 2, uint16_t{0});
  StepResult last;
  for (const auto& [begin, end] : {std::pair{0, 33}, {33, 34}, {34, 60}}) {
    const auto inside = GivenIn(given, begin, end, hidden);
    SequenceRange range = pictured.Range(static_cast<size_t>(begin),
                                         static_cast<size_t>(end - begin), LogitsWanted::kLast);
    range.given = inside;
    const SequenceRange other = prompts[1].Whole(LogitsWanted::kLast);
    const std::vector<SequenceRange> batch = {other, range};
    last = test.engine->Step(batch);
  }
  ExpectSame(Row(last, 1, test.config().vocab), whole);
  if (invariant()) EXPECT_EQ(KvBits(*test.storage, pictured), kv);
}

std::vector<Path> Paths() {
  std::vector<Path> paths;
  for (Isa isa : kernels::SupportedIsas()) {
    for (Numerics numerics : {Numerics::kFast, Numerics::kBatchInvariant}) {
      for (WeightType type : {WeightType::kF32, WeightType::kQ4_1}) {
        if (!kSlow) paths.push_back({isa, numerics, 1, type});
        paths.push_back({isa, numerics, 2, type});
      }
    }
  }
  return paths;
}

std::string PathName(const testing::TestParamInfo<Path>& info) {
  const Path& path = info.param;
  return fmt::format("{}_{}_{}_{}", kernels::IsaName(path.isa),
                     path.numerics == Numerics::kFast ? "fast" : "invariant",
                     kernels::WeightTypeName(path.linear_type), path.threads);
}

INSTANTIATE_TEST_SUITE_P(Paths, EngineTest, testing::ValuesIn(Paths()), PathName);

TEST(EngineThreadsTest, ThreadCountChangesNoBitUnderBatchInvariant) {
  for (Isa isa : kernels::SupportedIsas()) {
    Logits expected;
    for (int threads : {1, 2, 3}) {
      TestEngine test =
          MakeTestEngine({.isa = isa, .numerics = Numerics::kBatchInvariant, .threads = threads});
      std::mt19937 random(17);
      const Prompt prompt = RandomPrompts(random, test, 1, 200).front();
      const Logits logits = RunWhole(*test.engine, prompt);
      if (threads == 1) expected = logits;
      EXPECT_EQ(logits, expected) << kernels::IsaName(isa) << ", " << threads << " threads";
    }
  }
}

class EngineWorkTest : public testing::Test {
 protected:
  EngineWorkTest() {
    test_ = MakeTestEngine({}, 512, [this](std::unique_ptr<kernels::Ops> ops) {
      return std::make_unique<CountingOps>(std::move(ops), record_);
    });
  }
  std::shared_ptr<OpsRecord> record_ = std::make_shared<OpsRecord>();
  TestEngine test_;
};

// No padding: matrices see the rows of the batch and, after the last layer's keys and values, only
// the rows whose logits are wanted.
TEST_F(EngineWorkTest, MatricesSeeExactlyTheRowsOfTheBatch) {
  std::mt19937 random(18);
  const auto prompts = RandomPrompts(random, test_, 5, 40);
  std::vector<SequenceRange> batch;
  int rows = 0, logit_rows = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const bool wants_all = i == 1, wants_none = i == 2;
    batch.push_back(prompts[i].Whole(wants_all    ? LogitsWanted::kAll
                                     : wants_none ? LogitsWanted::kNone
                                                  : LogitsWanted::kLast));
    const int length = static_cast<int>(prompts[i].ids.size());
    rows += length;
    logit_rows += wants_all ? length : wants_none ? 0 : 1;
  }
  test_.engine->Step(batch);
  const auto layers = static_cast<size_t>(test_.config().layers);
  EXPECT_EQ(record_->embedded, std::vector<int>{rows});
  EXPECT_EQ(record_->stored_rows, std::vector<int>(layers, rows));
  ASSERT_EQ(record_->attention_rows.size(), layers);
  ASSERT_EQ(record_->gemms.size(), 7 * layers + 1);
  for (size_t layer = 0; layer < layers; ++layer) {
    const bool last = layer + 1 == layers;
    EXPECT_EQ(record_->attention_rows[layer], last ? logit_rows : rows);
    for (size_t i = 0; i < 7; ++i) {
      const bool is_kv = i < 2;
      EXPECT_EQ(record_->gemms[layer * 7 + i].rows, last && !is_kv ? logit_rows : rows);
    }
  }
  EXPECT_EQ(record_->gemms.back().rows, logit_rows);
  EXPECT_EQ(record_->gemms.back().outputs, test_.config().vocab);
}

TEST_F(EngineWorkTest, NothingIsComputedForLogitsThatNobodyWants) {
  std::mt19937 random(19);
  const Prompt prompt = RandomPrompts(random, test_, 1, 40).front();
  const SequenceRange range = prompt.Whole(LogitsWanted::kNone);
  const StepResult result = test_.engine->Step({&range, 1});
  EXPECT_TRUE(result.logits.empty());
  EXPECT_EQ(result.first_row[0], -1);
  const auto layers = static_cast<size_t>(test_.config().layers);
  EXPECT_EQ(record_->gemms.size(), 7 * (layers - 1) + 2);
  EXPECT_EQ(record_->attention_rows.size(), layers - 1);
}

TEST_F(EngineWorkTest, SmallerStepsReuseTheBuffersOfTheLargest) {
  std::mt19937 random(20);
  const auto prompts = RandomPrompts(random, test_, 12, 60);
  std::vector<SequenceRange> batch;
  for (const Prompt& prompt : prompts) batch.push_back(prompt.Whole(LogitsWanted::kAll));
  record_->Clear();
  test_.engine->Step(batch);
  const auto buffers = record_->buffers;
  for (size_t count : {12, 7, 1, 12}) {
    record_->Clear();
    test_.engine->Step(std::span(batch).first(count));
    EXPECT_EQ(record_->buffers, buffers) << count;
  }
}

TEST_F(EngineWorkTest, AnEmptyBatchDoesNothing) {
  const StepResult result = test_.engine->Step({}, [](int) { FAIL() << "no layer was done"; });
  EXPECT_TRUE(result.logits.empty());
  EXPECT_TRUE(result.first_row.empty());
  EXPECT_TRUE(record_->gemms.empty());
}

// When layer L is reported, its keys and values are already the final ones, and no later layer is
// begun.
TEST(EngineLayerDoneTest, ReportsEachLayerInOrderAndComplete) {
  TestEngine reference = MakeTestEngine({});
  TestEngine test = MakeTestEngine({});
  std::mt19937 random(21);
  const auto prompts = RandomPrompts(random, test, 6, 50);
  std::vector<SequenceRange> batch;
  for (const Prompt& prompt : prompts) batch.push_back(prompt.Whole(LogitsWanted::kLast));
  reference.engine->Step(batch);
  const int layers = test.config().layers;
  int expected_layer = 0;
  test.engine->Step(batch, [&](int layer) {
    ASSERT_EQ(layer, expected_layer++);
    for (const Prompt& prompt : prompts) {
      EXPECT_EQ(KvBits(*test.storage, prompt, layer, layer),
                KvBits(*reference.storage, prompt, layer, layer));
      const auto later = KvBits(*test.storage, prompt, layer + 1, layers - 1);
      EXPECT_TRUE(std::all_of(later.begin(), later.end(), [](uint16_t bits) { return bits == 0; }));
    }
  });
  EXPECT_EQ(expected_layer, layers);
}

class EngineDeathTest : public testing::Test {
 protected:
  void Run(const std::vector<int32_t>& ids, int32_t position, const std::vector<int32_t>& table,
           const std::vector<GivenRows>& given = {}) {
    const SequenceRange range{
        .tokens = ids, .position = position, .block_table = table, .given = given};
    test_.engine->Step({&range, 1});
  }
  TestEngine test_ = MakeTestEngine({}, 4);
};

TEST_F(EngineDeathTest, BrokenPreconditionsEndTheProcess) {
  EXPECT_DEATH(Run({}, 0, {0}), "positions");
  EXPECT_DEATH(Run({1}, -1, {0}), "positions");
  EXPECT_DEATH(Run({1}, test_.config().context, {0}), "positions");
  EXPECT_DEATH(Run({1, 2}, 15, {0}), "1 blocks for 17 positions");
  EXPECT_DEATH(Run({1}, 0, {4}), "block 4 of 4");
  EXPECT_DEATH(Run({1}, 0, {-1}), "block -1 of 4");
  EXPECT_DEATH(Run({test_.config().vocab}, 0, {0}), "token");
  EXPECT_DEATH(Run({-1}, 0, {0}), "token -1");
  const std::vector<float> rows(static_cast<size_t>(test_.config().hidden) * 2);
  EXPECT_DEATH(Run({1, 2}, 0, {0}, {{.first = 1, .rows = rows}}), "values given from token 1 on");
}

}  // namespace
}  // namespace trivium::engine
