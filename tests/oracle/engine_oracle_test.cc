// The engine against the float32 oracle, teacher-forced, on every instruction set that this machine
// has and in both numerics modes, and with every type of KV on the best. Prints one line of the
// table for each.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <thread>

#include "common/engine/engine.h"
#include "common/kv/kv_storage.h"
#include "common/model/model.h"
#include "kernels/kv_row.h"
#include "kernels/ops.h"
#include "tests/oracle/oracle_data.h"

namespace trivium::oracle {
namespace {

using engine::Engine;
using engine::LogitsWanted;
using engine::SequenceRange;
using kernels::Isa;
using kernels::KvType;
using kernels::Numerics;

constexpr float kClearMargin = 0.25f;
constexpr double kLeastEqual = 0.97;
constexpr double kMostMeanKl = 0.005;
constexpr double kMostWorstKl = 0.2;
constexpr double kMostPerplexityError = 0.01;
constexpr double kMostPerplexityErrorInt8 = 0.02;
constexpr int kChunk = 256;
constexpr int kBlockTokens = 16;

// How much of the data a configuration runs. The reference is a thousand times slower.
struct Extent {
  size_t prompts;
  size_t most_prompt_tokens;
  size_t positions;
  size_t perplexity_tokens;
};
constexpr Extent kEverything = {1000, 100000, 1000, 100000};
constexpr Extent kReferenceSample = {4, 40, 10, 96};
constexpr Extent kKvTypeSample = {12, 700, 40, 100000};

struct Config {
  Isa isa;
  Numerics numerics;
  KvType kv;
};

struct Score {
  bool clear_must_agree = true;
  int positions = 0, equal = 0, clear = 0, clear_equal = 0;
  double kl_sum = 0, kl_worst = 0, full_kl = 0, bucketed_kl = 0, rest_sum = 0;
  std::string worst;

  void Add(const Prompt& prompt, size_t index, std::span<const float> logits) {
    const Position& expected = prompt.positions[index];
    const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
    const bool same = best == expected.token;
    ++positions;
    equal += same;
    if (expected.margin > kClearMargin) {
      ++clear;
      clear_equal += same;
      EXPECT_TRUE(same || !clear_must_agree)
          << prompt.name << ", position " << index << ", margin " << expected.margin;
    }
    const double kl = KlDivergence(expected, logits);
    EXPECT_TRUE(std::isfinite(kl)) << prompt.name << ", position " << index;
    kl_sum += kl;
    rest_sum += expected.rest;
    if (!expected.logprobs.empty()) {
      full_kl += kl;
      bucketed_kl += BucketedKlDivergence(expected, logits);
    }
    if (kl > kl_worst) {
      kl_worst = kl;
      worst = fmt::format("{}[{}]", prompt.name, index);
    }
  }
};

std::shared_ptr<const model::Model> RealModel() {
  static const std::shared_ptr<const model::Model> model = [] {
    auto loaded = model::Model::Load(std::getenv("TRIVIUM_TEST_MODEL"));
    TRIVIUM_CHECK(loaded.ok(), "{}", Message(loaded.status()));
    return *loaded;
  }();
  return model;
}

const std::vector<Prompt>& AllPrompts() {
  static const std::vector<Prompt> prompts = ReadGreedyData();
  return prompts;
}

class EngineOracle : public testing::TestWithParam<Config> {
 protected:
  void SetUp() override {
    if (std::getenv("TRIVIUM_TEST_MODEL") == nullptr) {
      GTEST_SKIP() << "TRIVIUM_TEST_MODEL is not set";
    }
    const auto [isa, numerics, kv_type] = GetParam();
    if (kv_type != KvType::kF16) extent_ = kKvTypeSample;
    if (isa == Isa::kReference) extent_ = kReferenceSample;
    const int threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 16u));
    auto ops = kernels::MakeOps({.isa = isa, .numerics = numerics, .threads = threads});
    ASSERT_NE(ops, nullptr);
    const kernels::KvLayout layout = engine::KvLayoutOf(RealModel()->config, kBlockTokens, kv_type);
    constexpr int32_t kBlocks = 1024;
    auto storage = kv::KvStorage::Create(layout, RealModel()->config.layers, kBlocks);
    ASSERT_TRUE(storage.ok()) << Message(storage.status());
    engine_ = std::make_unique<Engine>(RealModel(), std::move(ops), std::move(*storage));
  }

  std::vector<int32_t> NewTable(size_t tokens) {
    std::vector<int32_t> table((tokens + kBlockTokens - 1) / kBlockTokens);
    for (int32_t& block : table) block = next_block_++;
    TRIVIUM_CHECK(next_block_ <= engine_->storage().blocks(), "the storage is too small");
    return table;
  }

  std::span<const float> Row(const engine::StepResult& result, size_t row) const {
    const auto vocab = static_cast<size_t>(RealModel()->config.vocab);
    return result.logits.subspan(row * vocab, vocab);
  }

  // Prefills in chunks and scores the position behind the prompt.
  void Prefill(const Prompt& prompt, std::span<const int32_t> table, Score& score) {
    for (size_t begin = 0; begin < prompt.ids.size(); begin += kChunk) {
      const size_t count = std::min<size_t>(kChunk, prompt.ids.size() - begin);
      const SequenceRange range{std::span(prompt.ids).subspan(begin, count),
                                static_cast<int32_t>(begin), table, LogitsWanted::kLast};
      const engine::StepResult result = engine_->Step({&range, 1});
      if (begin + count == prompt.ids.size()) score.Add(prompt, 0, Row(result, 0));
    }
  }

  // Decodes a group of prompts together, each fed with the oracle's tokens.
  void RunGroup(std::span<const Prompt> group, Score& score) {
    next_block_ = 0;
    std::vector<std::vector<int32_t>> tables;
    size_t positions = 0;
    for (const Prompt& prompt : group) {
      tables.push_back(NewTable(prompt.ids.size() + prompt.positions.size()));
      Prefill(prompt, tables.back(), score);
      positions = std::max(positions, std::min(prompt.positions.size(), extent_.positions));
    }
    for (size_t i = 1; i < positions; ++i) {
      std::vector<SequenceRange> batch;
      for (size_t k = 0; k < group.size(); ++k) {
        batch.push_back({{&group[k].positions[i - 1].token, 1},
                         static_cast<int32_t>(group[k].ids.size() + i - 1),
                         tables[k],
                         LogitsWanted::kLast});
      }
      const engine::StepResult result = engine_->Step(batch);
      for (size_t k = 0; k < group.size(); ++k) score.Add(group[k], i, Row(result, k));
    }
  }

  // The oracle's perplexity and ours, over the same tokens.
  std::pair<double, double> Perplexities() {
    next_block_ = 0;
    const PerplexityText text = ReadPerplexityData();
    const size_t tokens = std::min(text.ids.size() - 1, extent_.perplexity_tokens);
    const std::vector<int32_t> table = NewTable(tokens);
    double expected = 0, got = 0;
    for (size_t begin = 0; begin < tokens; begin += kChunk) {
      const size_t count = std::min<size_t>(kChunk, tokens - begin);
      const SequenceRange range{std::span(text.ids).subspan(begin, count),
                                static_cast<int32_t>(begin), table, LogitsWanted::kAll};
      const engine::StepResult result = engine_->Step({&range, 1});
      for (size_t i = 0; i < count; ++i) {
        const auto row = Row(result, i);
        expected += text.nll[begin + i];
        got += LogSumExp(row) - row[static_cast<size_t>(text.ids[begin + i + 1])];
      }
    }
    const auto count = static_cast<double>(tokens);
    return {std::exp(expected / count), std::exp(got / count)};
  }

  Extent extent_ = kEverything;
  std::unique_ptr<Engine> engine_;
  int32_t next_block_ = 0;
};

std::string ConfigName(const testing::TestParamInfo<Config>& info) {
  const auto& [isa, numerics, kv_type] = info.param;
  return fmt::format("{}_{}_{}", kernels::IsaName(isa),
                     numerics == Numerics::kFast ? "fast" : "batch_invariant",
                     kernels::KvTypeName(kv_type));
}

std::vector<Config> EveryConfig() {
  std::vector<Config> all;
  for (const Isa isa : kernels::SupportedIsas()) {
    for (const Numerics numerics : {Numerics::kFast, Numerics::kBatchInvariant}) {
      all.push_back({isa, numerics, KvType::kF16});
    }
  }
  for (const KvType kv_type : {KvType::kBF16, KvType::kInt8}) {
    all.push_back({kernels::BestIsa(), Numerics::kFast, kv_type});
  }
  return all;
}

TEST_P(EngineOracle, AgreesWithFloat32) {
  std::vector<Prompt> prompts;
  for (const Prompt& prompt : AllPrompts()) {
    if (prompts.size() < extent_.prompts && prompt.ids.size() <= extent_.most_prompt_tokens) {
      prompts.push_back(prompt);
    }
  }
  // A few decode alone, the rest together: both are row counts that kernels treat differently.
  constexpr size_t kAlone = 6, kTogether = 10;
  const bool is_int8 = GetParam().kv == KvType::kInt8;
  Score score;
  score.clear_must_agree = !is_int8;
  for (size_t begin = 0; begin < prompts.size();) {
    const size_t count = begin < kAlone ? 1 : std::min(kTogether, prompts.size() - begin);
    RunGroup(std::span(prompts).subspan(begin, count), score);
    begin += count;
  }
  const auto [expected_perplexity, perplexity] = Perplexities();
  const double mean_kl = score.kl_sum / score.positions;
  std::printf(
      "%s: %zu prompts, %d positions: equal %d (%.2f %%), margin > %.2f: %d of %d, mean KL %.6f, "
      "worst %.5f at %s, perplexity %.4f (oracle %.4f, %+.3f %%); top-256 lacks %.4f of the mass "
      "on "
      "average, KL bucketed / full %.6f / %.6f\n",
      ConfigName({GetParam(), 0}).c_str(), prompts.size(), score.positions, score.equal,
      100.0 * score.equal / score.positions, kClearMargin, score.clear_equal, score.clear, mean_kl,
      score.kl_worst, score.worst.c_str(), perplexity, expected_perplexity,
      100 * (perplexity / expected_perplexity - 1), score.rest_sum / score.positions,
      score.bucketed_kl, score.full_kl);
  EXPECT_GE(score.equal, kLeastEqual * score.positions);
  if (!is_int8) EXPECT_LE(mean_kl, kMostMeanKl);
  EXPECT_LE(score.kl_worst, kMostWorstKl) << score.worst;
  EXPECT_NEAR(perplexity / expected_perplexity, 1,
              is_int8 ? kMostPerplexityErrorInt8 : kMostPerplexityError);
}

INSTANTIATE_TEST_SUITE_P(Every, EngineOracle, testing::ValuesIn(EveryConfig()), ConfigName);

TEST(OracleData, CoversWhatItShould) {
  const std::vector<Prompt>& prompts = AllPrompts();
  EXPECT_GE(prompts.size(), 30u);
  size_t shortest = SIZE_MAX, longest = 0;
  int full = 0;
  for (const Prompt& prompt : prompts) {
    EXPECT_EQ(prompt.positions.size(), 40u) << prompt.name;
    shortest = std::min(shortest, prompt.ids.size());
    longest = std::max(longest, prompt.ids.size());
    for (const Position& position : prompt.positions) {
      EXPECT_EQ(position.token, position.top_ids[0]);
      EXPECT_NEAR(position.margin, position.top_logprobs[0] - position.top_logprobs[1], 1e-4);
      full += !position.logprobs.empty();
    }
  }
  EXPECT_LE(shortest, 25u);
  EXPECT_GE(longest, 1400u);
  EXPECT_GE(full, 8);
  EXPECT_GE(ReadPerplexityData().ids.size(), 2000u);
}

}  // namespace
}  // namespace trivium::oracle
