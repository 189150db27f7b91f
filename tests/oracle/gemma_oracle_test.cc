// The real Gemma 3 270M against the float32 oracle, teacher-forced, and its tokenizer against
// SentencePiece's. Needs TRIVIUM_TEST_GEMMA: the path that `deploy/fetch-model gemma3-270m` prints.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <thread>

#include "common/engine/engine.h"
#include "common/kv/kv_storage.h"
#include "common/model/model.h"
#include "kernels/ops.h"
#include "tests/oracle/oracle_data.h"

namespace trivium::oracle {
namespace {

using engine::LogitsWanted;
using engine::SequenceRange;
using kernels::Isa;
using kernels::Numerics;

constexpr float kClearMargin = 0.25f;
constexpr double kMostMeanKl = 0.005;
constexpr double kMostWorstKl = 0.2;

const char* GemmaPath() { return std::getenv("TRIVIUM_TEST_GEMMA"); }

std::shared_ptr<const model::Model> Gemma() {
  static const std::shared_ptr<const model::Model> model = [] {
    auto loaded = model::Model::Load(GemmaPath());
    TRIVIUM_CHECK(loaded.ok(), "{}", Message(loaded.status()));
    return *loaded;
  }();
  return model;
}

class GemmaOracle : public testing::TestWithParam<std::tuple<Isa, Numerics>> {
 protected:
  void SetUp() override {
    if (GemmaPath() == nullptr) GTEST_SKIP() << "TRIVIUM_TEST_GEMMA is not set";
    const int threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 16u));
    auto ops = kernels::MakeOps(
        {.isa = std::get<0>(GetParam()), .numerics = std::get<1>(GetParam()), .threads = threads});
    const model::ModelConfig& config = Gemma()->config;
    constexpr int32_t kBlocks = 128;
    auto storage = kv::KvStorage::Create(engine::KvLayoutOf(config), config.layers, kBlocks);
    ASSERT_TRUE(storage.ok()) << Message(storage.status());
    engine_ = std::make_unique<engine::Engine>(Gemma(), std::move(ops), std::move(*storage));
    for (int32_t block = 0; block < kBlocks; ++block) table_.push_back(block);
  }

  std::span<const float> Step(std::span<const int32_t> ids, size_t position) {
    const SequenceRange range{ids, static_cast<int32_t>(position), table_, LogitsWanted::kLast};
    return engine_->Step({&range, 1}).logits;
  }

  void Score(const Prompt& prompt, size_t index, std::span<const float> logits) {
    const Position& expected = prompt.positions[index];
    const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
    ++positions_;
    equal_ += best == expected.token;
    if (expected.margin > kClearMargin) {
      ++clear_;
      EXPECT_EQ(best, expected.token) << prompt.name << ", position " << index;
    }
    const double kl = KlDivergence(expected, logits);
    kl_sum_ += kl;
    kl_worst_ = std::max(kl_worst_, kl);
  }

  std::unique_ptr<engine::Engine> engine_;
  std::vector<int32_t> table_;
  int positions_ = 0, equal_ = 0, clear_ = 0;
  double kl_sum_ = 0, kl_worst_ = 0;
};

TEST_P(GemmaOracle, AgreesWithFloat32) {
  const std::vector<Prompt> prompts = ReadGreedyData("gemma.bin");
  for (const Prompt& prompt : prompts) {
    std::span<const float> logits = Step(prompt.ids, 0);
    for (size_t i = 0; i < prompt.positions.size(); ++i) {
      Score(prompt, i, logits);
      if (i + 1 == prompt.positions.size()) break;
      logits = Step({&prompt.positions[i].token, 1}, prompt.ids.size() + i);
    }
  }
  const double mean_kl = kl_sum_ / positions_;
  std::printf("%zu prompts, %d positions: equal %d, margin > %.2f: %d, mean KL %.6f, worst %.5f\n",
              prompts.size(), positions_, equal_, kClearMargin, clear_, mean_kl, kl_worst_);
  EXPECT_LE(mean_kl, kMostMeanKl);
  EXPECT_LE(kl_worst_, kMostWorstKl);
}

std::vector<Isa> FastIsas() {
  std::vector<Isa> isas = kernels::SupportedIsas();
  std::erase(isas, Isa::kReference);
  return isas;
}

INSTANTIATE_TEST_SUITE_P(Every, GemmaOracle,
                         testing::Combine(testing::ValuesIn(FastIsas()),
                                          testing::Values(Numerics::kFast,
                                                          Numerics::kBatchInvariant)),
                         [](const auto& path) {
                           return fmt::format(
                               "{}_{}", kernels::IsaName(std::get<0>(path.param)),
                               std::get<1>(path.param) == Numerics::kFast ? "fast" : "invariant");
                         });

TEST(GemmaTokenizer, GivesTheIdsOfSentencePiece) {
  if (GemmaPath() == nullptr) GTEST_SKIP() << "TRIVIUM_TEST_GEMMA is not set";
  const model::Tokenizer& tokenizer = *Gemma()->tokenizer;
  EXPECT_TRUE(tokenizer.adds_bos());
  for (const Prompt& prompt : ReadGreedyData("gemma.bin")) {
    EXPECT_EQ(tokenizer.Encode(prompt.text, {.add_bos = true}), prompt.ids) << prompt.name;
  }
}

TEST(GemmaData, CoversWhatItShould) {
  const std::vector<Prompt> prompts = ReadGreedyData("gemma.bin");
  EXPECT_GE(prompts.size(), 10u);
  size_t longest = 0;
  for (const Prompt& prompt : prompts) {
    EXPECT_EQ(prompt.positions.size(), 20u) << prompt.name;
    longest = std::max(longest, prompt.ids.size());
  }
  EXPECT_GT(longest, 512u) << "no prompt leaves the window";
}

}  // namespace
}  // namespace trivium::oracle
