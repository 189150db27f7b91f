#include "common/engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "common/engine/random.h"

namespace trivium::engine {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> RandomLogits(uint32_t seed, size_t vocab, float spread = 2.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(vocab);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

std::vector<double> Softmax(std::span<const float> logits, double temperature) {
  const double highest = *std::max_element(logits.begin(), logits.end());
  std::vector<double> p(logits.size());
  for (size_t i = 0; i < p.size(); ++i) p[i] = std::exp((logits[i] - highest) / temperature);
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= total;
  return p;
}

std::vector<int32_t> Order(std::span<const float> logits) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  return ids;
}

std::map<int32_t, int> Draws(std::span<const float> logits, SamplingParams params, int count) {
  std::map<int32_t, int> seen;
  params.max_tokens = count;
  for (int i = 0; i < count; ++i) ++seen[Sample(logits, params, i, {}).id];
  return seen;
}

// Pearson's statistic over the cells that expect at least five, the rest in one cell.
void ExpectFrequencies(const std::map<int32_t, int>& seen, const std::vector<double>& p,
                       int count) {
  double statistic = 0, rest_p = 0;
  int cells = 0, rest_seen = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const auto it = seen.find(static_cast<int32_t>(i));
    const int n = it == seen.end() ? 0 : it->second;
    const double expected = p[i] * count;
    if (expected < 5) {
      rest_p += p[i];
      rest_seen += n;
      continue;
    }
    ++cells;
    statistic += (n - expected) * (n - expected) / expected;
  }
  if (rest_p * count > 0) {
    ++cells;
    statistic += std::pow(rest_seen - rest_p * count, 2) / (rest_p * count);
  }
  const double freedom = cells - 1;
  EXPECT_LT(statistic, freedom + 5 * std::sqrt(2 * freedom)) << cells << " cells";
  EXPECT_GT(statistic, freedom - 5 * std::sqrt(2 * freedom)) << "too even to be random";
}

TEST(RandomTest, PhiloxGivesThePublishedVectors) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(Philox({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(RandomTest, UniformIsEvenAndDependsOnBothArguments) {
  double sum = 0;
  std::set<double> seen;
  for (uint64_t i = 0; i < 10000; ++i) {
    const double u = Uniform(42, i);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    ASSERT_EQ(u, Uniform(42, i));
    sum += u;
    seen.insert(u);
    seen.insert(Uniform(i + (uint64_t{1} << 40), 42));
  }
  EXPECT_EQ(seen.size(), 20000u);
  EXPECT_NEAR(sum / 10000, 0.5, 0.015);
}

TEST(SamplerTest, FrequenciesFollowTheSoftmax) {
  constexpr int kDraws = 40000;
  const auto logits = RandomLogits(1, 60);
  for (const float temperature : {0.3f, 1.0f, 2.5f}) {
    SCOPED_TRACE(temperature);
    ExpectFrequencies(Draws(logits, {.temperature = temperature, .seed = 99}, kDraws),
                      Softmax(logits, temperature), kDraws);
  }
}

TEST(SamplerTest, FrequenciesAfterTheCutsFollowTheRenormalisedSoftmax) {
  constexpr int kDraws = 40000;
  const auto logits = RandomLogits(2, 200);
  const auto order = Order(logits);
  std::vector<double> p = Softmax(logits, 0.8);
  for (size_t i = 7; i < order.size(); ++i) p[static_cast<size_t>(order[i])] = 0;
  const double kept = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= kept;
  const auto seen = Draws(logits, {.temperature = 0.8f, .top_k = 7, .seed = 5}, kDraws);
  EXPECT_EQ(seen.size(), 7u);
  ExpectFrequencies(seen, p, kDraws);
}

// The set that top_k and top_p leave, found by a full sort.
std::set<int32_t> KeptByBruteForce(std::span<const float> logits, const SamplingParams& params) {
  std::vector<int32_t> order = Order(logits);
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < order.size()) {
    order.resize(static_cast<size_t>(params.top_k));
  }
  const auto p = Softmax(logits, params.temperature);
  double total = 0, reached = 0;
  for (int32_t id : order) total += p[static_cast<size_t>(id)];
  std::set<int32_t> kept;
  for (int32_t id : order) {
    kept.insert(id);
    reached += p[static_cast<size_t>(id)];
    if (reached >= static_cast<double>(params.top_p) * total * (1 - 1e-12)) break;
  }
  return kept;
}

TEST(SamplerTest, CutSetsEqualBruteForce) {
  std::mt19937 random(7);
  for (int round = 0; round < 60; ++round) {
    SCOPED_TRACE(round);
    const auto logits = RandomLogits(random(), 5 + random() % 40, 1.0f);
    SamplingParams params{.temperature = 0.5f + static_cast<float>(random() % 10) * 0.2f,
                          .top_k = static_cast<int32_t>(random() % 12),
                          .top_p = static_cast<float>(random() % 99 + 1) / 100.0f,
                          .seed = random()};
    const auto kept = KeptByBruteForce(logits, params);
    std::set<int32_t> seen;
    for (const auto& [id, count] : Draws(logits, params, 3000)) seen.insert(id);
    EXPECT_TRUE(std::includes(kept.begin(), kept.end(), seen.begin(), seen.end()));
    const auto p = Softmax(logits, params.temperature);
    for (int32_t id : kept) {
      if (p[static_cast<size_t>(id)] > 0.01) {
        EXPECT_TRUE(seen.contains(id)) << id;
      }
    }
  }
}

// Wide vocabularies take short cuts to the candidates: they must keep the same sets.
TEST(SamplerTest, CutSetsOfAWideVocabularyEqualBruteForce) {
  std::mt19937 random(8);
  for (int round = 0; round < 12; ++round) {
    SCOPED_TRACE(round);
    auto logits = RandomLogits(random(), 3000 + random() % 200, 3.0f);
    for (size_t i = 0; i < 40; ++i) logits[random() % logits.size()] = logits[0];
    SamplingParams params{.temperature = round % 3 == 0 ? 0.4f : 1.5f, .seed = random()};
    if (round % 2 == 0) params.top_k = static_cast<int32_t>(random() % 60 + 1);
    if (round % 4 != 0) params.top_p = 0.3f + 0.1f * static_cast<float>(random() % 6);
    const auto kept = KeptByBruteForce(logits, params);
    std::set<int32_t> seen;
    for (const auto& [id, count] : Draws(logits, params, 2000)) seen.insert(id);
    EXPECT_TRUE(std::includes(kept.begin(), kept.end(), seen.begin(), seen.end()));
    const auto p = Softmax(logits, static_cast<double>(params.temperature));
    for (int32_t id : kept) {
      if (p[static_cast<size_t>(id)] > 0.01) {
        EXPECT_TRUE(seen.contains(id)) << id;
      }
    }
  }
}

TEST(SamplerTest, TopPReachesFarIntoAFlatDistribution) {
  const std::vector<float> logits(1000, 1.5f);
  std::set<int32_t> seen;
  for (const auto& [id, count] :
       Draws(logits, {.temperature = 1, .top_p = 0.5f, .seed = 3}, 8000)) {
    seen.insert(id);
  }
  EXPECT_LE(*seen.rbegin(), 500);
  EXPECT_GT(seen.size(), 490u);
}

TEST(SamplerTest, CutsThatKeepEverythingChangeNoDraw) {
  const auto logits = RandomLogits(3, 300);
  for (int i = 0; i < 300; ++i) {
    const SamplingParams plain{.temperature = 1.1f, .seed = 17};
    SamplingParams wide = plain;
    wide.top_k = i % 2 == 0 ? 300 : 100000;
    EXPECT_EQ(Sample(logits, plain, i, {}).id, Sample(logits, wide, i, {}).id);
  }
}

TEST(SamplerTest, DrawsDependOnSeedAndIndexAlone) {
  const auto logits = RandomLogits(4, 1000, 0.1f);
  std::set<int32_t> by_index, by_seed;
  for (int i = 0; i < 100; ++i) {
    const SamplingParams params{.temperature = 1, .seed = 1234};
    const int32_t id = Sample(logits, params, i, {}).id;
    EXPECT_EQ(id, Sample(logits, params, i, {}).id);
    by_index.insert(id);
    by_seed.insert(
        Sample(logits, {.temperature = 1, .seed = static_cast<uint64_t>(i) << 32}, 0, {}).id);
  }
  EXPECT_GT(by_index.size(), 80u);
  EXPECT_GT(by_seed.size(), 80u);
}

TEST(SamplerTest, GreedyTakesTheLowestIdOfATie) {
  std::vector<float> logits(37, -3.0f);
  logits[11] = logits[12] = logits[36] = 2.0f;
  EXPECT_EQ(Sample(logits, {}, 0, {}).id, 11);
  logits[36] = 2.5f;
  EXPECT_EQ(Sample(logits, {}, 0, {}).id, 36);
  for (uint32_t seed = 0; seed < 50; ++seed) {
    const auto random = RandomLogits(seed, 1 + seed * 3);
    EXPECT_EQ(Sample(random, {}, 0, {}).id, Order(random).front());
    EXPECT_EQ(Sample(random, {.temperature = 1, .top_k = 1, .seed = seed}, 0, {}).id,
              Order(random).front());
    EXPECT_EQ(Sample(random, {.temperature = 1e-30f, .seed = seed}, 0, {}).id,
              Order(random).front());
  }
}

TEST(SamplerTest, OddLogitsNeverBreakTheDraw) {
  const std::vector<std::vector<float>> cases = {{kNan, 1, kNan},
                                                 {-kInf, 1, -kInf},
                                                 {-FLT_MAX, FLT_MAX, -1},
                                                 {-5, kInf, 3},
                                                 {kNan, -FLT_MAX, -kInf}};
  for (const auto& logits : cases) {
    for (const float temperature : {0.0f, 1e-38f, 1.0f, 100.0f}) {
      for (const float top_p : {0.5f, 1.0f}) {
        const SamplingParams params{.temperature = temperature, .top_p = top_p, .logprobs = 3};
        if (temperature < 100 || logits[0] != -5) {
          EXPECT_EQ(Sample(logits, params, 0, {}).id, 1);
        }
      }
    }
  }
  const std::vector<float> nothing(4, kNan);
  EXPECT_EQ(Sample(nothing, {}, 0, {}).id, 0);
  EXPECT_EQ(Sample(nothing, {.temperature = 1, .logprobs = 2}, 0, {}).id, 0);
}

TEST(SamplerTest, MinTokensHoldsBackEveryEnd) {
  std::vector<float> logits(10, 0.0f);
  logits[3] = 30;
  logits[4] = 20;
  logits[5] = 10;
  const std::vector<int32_t> ends = {3};
  for (const float temperature : {0.0f, 0.5f}) {
    const SamplingParams params{.temperature = temperature, .min_tokens = 2, .stop_token_ids = {4}};
    EXPECT_EQ(Sample(logits, params, 0, ends).id, 5);
    EXPECT_EQ(Sample(logits, params, 1, ends).id, 5);
    EXPECT_EQ(Sample(logits, params, 2, ends).id, 3);
  }
}

TEST(SamplerTest, LogprobsAreTheModelsOwnDistribution) {
  const auto logits = RandomLogits(8, 500, 4.0f);
  const auto p = Softmax(logits, 1.0);
  const auto order = Order(logits);
  const SamplingParams params{
      .temperature = 3.0f, .top_k = 400, .seed = 5, .min_tokens = 1, .logprobs = 20};
  const SampledToken token = Sample(logits, params, 0, std::vector<int32_t>{order[0]});
  EXPECT_NEAR(token.logprob, std::log(p[static_cast<size_t>(token.id)]), 1e-5);
  ASSERT_EQ(token.top.size(), 20u);
  for (size_t i = 0; i < token.top.size(); ++i) {
    EXPECT_EQ(token.top[i].first, order[i]);
    EXPECT_NEAR(token.top[i].second, std::log(p[static_cast<size_t>(order[i])]), 1e-5);
  }
  EXPECT_TRUE(Sample(logits, {}, 0, {}).top.empty());
  EXPECT_EQ(Sample(logits, {}, 0, {}).logprob, 0);
}

TEST(SamplerTest, LogprobsSumToOneHoweverLargeTheLogits) {
  for (const float shift : {-3e4f, 0.0f, 3e4f}) {
    auto logits = RandomLogits(9, 20, 3.0f);
    for (float& logit : logits) logit += shift;
    double sum = 0;
    for (const auto& [id, logprob] : Sample(logits, {.logprobs = 20}, 0, {}).top)
      sum += std::exp(logprob);
    EXPECT_NEAR(sum, 1, 1e-5);
  }
}

TEST(SamplerTest, FinishReasons) {
  const std::vector<int32_t> ends = {2};
  SamplingParams params{.max_tokens = 5, .min_tokens = 2, .stop_token_ids = {7}};
  EXPECT_EQ(FinishAfter(2, params, 2, ends), FinishReason::kStop);
  EXPECT_EQ(FinishAfter(7, params, 2, ends), FinishReason::kStop);
  EXPECT_EQ(FinishAfter(2, params, 1, ends), FinishReason::kNone);
  EXPECT_EQ(FinishAfter(1, params, 3, ends), FinishReason::kNone);
  EXPECT_EQ(FinishAfter(1, params, 4, ends), FinishReason::kLength);
  EXPECT_EQ(FinishAfter(2, params, 4, ends), FinishReason::kStop);
  params.ignore_eos = true;
  EXPECT_EQ(FinishAfter(2, params, 2, ends), FinishReason::kNone);
  EXPECT_EQ(FinishAfter(2, params, 4, ends), FinishReason::kLength);
  EXPECT_EQ(FinishAfter(7, params, 2, ends), FinishReason::kStop);
}

struct BadCase {
  const char* field;
  void (*spoil)(SamplingParams&);
};

class ValidateTest : public testing::TestWithParam<BadCase> {};

TEST_P(ValidateTest, NamesTheField) {
  SamplingParams params;
  ASSERT_TRUE(Validate(params, 100).ok());
  GetParam().spoil(params);
  const absl::Status status = Validate(params, 100);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Message(status).rfind(std::string("sampling.") + GetParam().field, 0), 0u) << status;
}

INSTANTIATE_TEST_SUITE_P(
    Fields, ValidateTest,
    testing::Values(
        BadCase{"temperature", [](SamplingParams& p) { p.temperature = kNan; }},
        BadCase{"temperature", [](SamplingParams& p) { p.temperature = kInf; }},
        BadCase{"temperature", [](SamplingParams& p) { p.temperature = -0.1f; }},
        BadCase{"temperature", [](SamplingParams& p) { p.temperature = 100.1f; }},
        BadCase{"top_k", [](SamplingParams& p) { p.top_k = -1; }},
        BadCase{"top_p", [](SamplingParams& p) { p.top_p = kNan; }},
        BadCase{"top_p", [](SamplingParams& p) { p.top_p = 0; }},
        BadCase{"top_p", [](SamplingParams& p) { p.top_p = 1.01f; }},
        BadCase{"top_p", [](SamplingParams& p) { p.top_p = -kInf; }},
        BadCase{"min_p", [](SamplingParams& p) { p.min_p = kNan; }},
        BadCase{"min_p", [](SamplingParams& p) { p.min_p = -0.1f; }},
        BadCase{"min_p", [](SamplingParams& p) { p.min_p = 1.1f; }},
        BadCase{"typical_p", [](SamplingParams& p) { p.typical_p = 0; }},
        BadCase{"typical_p", [](SamplingParams& p) { p.typical_p = kNan; }},
        BadCase{"repetition_penalty", [](SamplingParams& p) { p.repetition_penalty = 0; }},
        BadCase{"repetition_penalty", [](SamplingParams& p) { p.repetition_penalty = 10.5f; }},
        BadCase{"presence_penalty", [](SamplingParams& p) { p.presence_penalty = 2.1f; }},
        BadCase{"frequency_penalty", [](SamplingParams& p) { p.frequency_penalty = kNan; }},
        BadCase{"logit_bias",
                [](SamplingParams& p) {
                  p.logit_bias.assign(1025, {1, 1.0f});
                }},
        BadCase{"logit_bias",
                [](SamplingParams& p) {
                  p.logit_bias = {{-1, 1.0f}};
                }},
        BadCase{"logit_bias[3]",
                [](SamplingParams& p) {
                  p.logit_bias = {{3, kInf}};
                }},
        BadCase{"prompt_logprobs", [](SamplingParams& p) { p.prompt_logprobs = 21; }},
        BadCase{"max_tokens", [](SamplingParams& p) { p.max_tokens = 0; }},
        BadCase{"min_tokens", [](SamplingParams& p) { p.min_tokens = -1; }},
        BadCase{"min_tokens", [](SamplingParams& p) { p.min_tokens = 257; }},
        BadCase{"logprobs", [](SamplingParams& p) { p.logprobs = -2; }},
        BadCase{"logprobs", [](SamplingParams& p) { p.logprobs = 21; }},
        BadCase{"stop_token_ids", [](SamplingParams& p) { p.stop_token_ids.resize(129); }},
        BadCase{"stop_token_ids[1]",
                [](SamplingParams& p) {
                  p.stop_token_ids = {1, 100};
                }},
        BadCase{"stop_token_ids[0]", [](SamplingParams& p) { p.stop_token_ids = {-1}; }}));

TEST(ValidateTest, BoundsThemselvesAreAllowed) {
  EXPECT_TRUE(Validate({.temperature = 100,
                        .top_k = 1 << 30,
                        .top_p = 1,
                        .max_tokens = 1,
                        .min_tokens = 1,
                        .stop_token_ids = {0, 99},
                        .logprobs = 20},
                       100)
                  .ok());
}

}  // namespace
}  // namespace trivium::engine
