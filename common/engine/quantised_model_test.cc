// Models of every weight format, and of the mixes in which such files come, answer like their
// float32 selves: the same values in F32 matrices, run by the reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "common/engine/test_setup.h"

namespace trivium::engine {
namespace {

using kernels::Isa;
using kernels::Numerics;
using kernels::WeightType;

constexpr double kMostMeanKl = 0.005;
constexpr double kMostWorstKl = 0.2;
constexpr size_t kTokens = 90;

struct Mix {
  WeightType linear;
  WeightType embedding;  // and output
};

std::shared_ptr<const model::Model> MakeModel(const Mix& mix, bool as_float) {
  return LoadTinyModel({.layers = 3,
                        .hidden = 256,
                        .head_dim = 64,
                        .ffn = 512,
                        .linear_type = mix.linear,
                        .embedding_type = mix.embedding,
                        .as_float = as_float,
                        .seed = 7});
}

// The logits of every position of one prompt, in steps of `chunk` tokens: [kTokens][vocab].
std::vector<std::vector<float>> Answers(const std::shared_ptr<const model::Model>& model,
                                        const kernels::OpsOptions& options, size_t chunk) {
  auto storage = kv::KvStorage::Create(KvLayoutOf(model->config), model->config.layers, 8);
  TRIVIUM_CHECK(storage.ok(), "{}", Message(storage.status()));
  Engine engine(model, kernels::MakeOps(options), std::move(*storage));
  std::mt19937 random(31);
  Prompt prompt{RandomIds(random, kTokens, model->config.vocab), {5, 2, 7, 0, 3, 6}};
  std::vector<std::vector<float>> rows;
  for (size_t begin = 0; begin < kTokens; begin += chunk) {
    const SequenceRange range =
        prompt.Range(begin, std::min(chunk, kTokens - begin), LogitsWanted::kAll);
    const StepResult result = engine.Step({&range, 1});
    const auto vocab = static_cast<size_t>(model->config.vocab);
    for (size_t i = 0; i < result.logits.size(); i += vocab) {
      rows.emplace_back(result.logits.begin() + static_cast<std::ptrdiff_t>(i),
                        result.logits.begin() + static_cast<std::ptrdiff_t>(i + vocab));
    }
  }
  return rows;
}

std::vector<double> LogProbabilities(const std::vector<float>& logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - top);
  std::vector<double> result;
  for (const float logit : logits) result.push_back(logit - top - std::log(sum));
  return result;
}

double Kl(const std::vector<float>& expected, const std::vector<float>& actual) {
  const auto p = LogProbabilities(expected), q = LogProbabilities(actual);
  double kl = 0;
  for (size_t i = 0; i < p.size(); ++i) kl += std::exp(p[i]) * (p[i] - q[i]);
  return kl;
}

class QuantisedModelTest : public testing::TestWithParam<Mix> {};

TEST_P(QuantisedModelTest, AnswersLikeItsFloatSelf) {
  const auto quantised = MakeModel(GetParam(), false), as_float = MakeModel(GetParam(), true);
  ASSERT_EQ(quantised->layers[0].q.type, GetParam().linear);
  ASSERT_EQ(as_float->layers[0].q.type, WeightType::kF32);
  const auto expected = Answers(as_float, {}, kTokens);
  ASSERT_EQ(expected.size(), kTokens);
  for (const Isa isa : kernels::SupportedIsas()) {
    for (const Numerics numerics : {Numerics::kFast, Numerics::kBatchInvariant}) {
      const kernels::OpsOptions options{.isa = isa, .numerics = numerics, .threads = 2};
      const auto actual = Answers(quantised, options, kTokens);
      std::vector<double> kl;
      for (size_t t = 0; t < kTokens; ++t) kl.push_back(Kl(expected[t], actual[t]));
      const double mean = std::accumulate(kl.begin(), kl.end(), 0.0) / kTokens;
      const double worst = *std::max_element(kl.begin(), kl.end());
      const bool invariant = numerics == Numerics::kBatchInvariant;
      std::printf("%s %s: mean KL %.2g, worst %.2g\n", kernels::IsaName(isa),
                  invariant ? "batch_invariant" : "fast", mean, worst);
      EXPECT_LE(mean, kMostMeanKl);
      EXPECT_LE(worst, kMostWorstKl);
      if (invariant) {
        EXPECT_EQ(Answers(quantised, options, 7), actual);
      }
    }
  }
}

// Every format alone, and linear layers beside the Q6_K output of the usual files.
std::vector<Mix> Mixes() {
  std::vector<Mix> mixes;
  for (const WeightType type : kernels::AllWeightTypes()) {
    mixes.push_back({type, type});
    const bool mixed = type == WeightType::kQ2_K || type == WeightType::kQ3_K ||
                       type == WeightType::kQ4_K || type == WeightType::kQ5_K ||
                       type == WeightType::kIQ4_NL;
    if (mixed) mixes.push_back({type, WeightType::kQ6_K});
  }
  return mixes;
}

INSTANTIATE_TEST_SUITE_P(Mixes, QuantisedModelTest, testing::ValuesIn(Mixes()),
                         [](const auto& param_info) {
                           return fmt::format("{}_with_{}",
                                              kernels::WeightTypeName(param_info.param.linear),
                                              kernels::WeightTypeName(param_info.param.embedding));
                         });

}  // namespace
}  // namespace trivium::engine
