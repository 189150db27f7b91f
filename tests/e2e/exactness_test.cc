// Prefill and decode in separate processes over UCX must give the bits of one engine in one
// process: token ids and log-probabilities are compared as they are, without tolerance.
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "common/engine/generate.h"
#include "tests/e2e/cluster.h"

namespace trivium::e2e {
namespace {

constexpr int kOutputTokens = 20;
constexpr int32_t kBiased = 281;

struct Prompt {
  std::vector<int32_t> ids;
  bool seeded = false, penalised = false, scored = false;
  uint64_t seed = 0;
};

std::vector<Prompt> Prompts(int count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Prompt> prompts(count);
  for (int i = 0; i < count; ++i) {
    prompts[i].ids.resize(1 + random() % 200);
    for (int32_t& id : prompts[i].ids) id = 100 + static_cast<int32_t>(random() % 40000);
    prompts[i].seeded = i % 3 == 0;
    prompts[i].penalised = i % 2 == 0;
    prompts[i].scored = i % 4 == 1;
    prompts[i].seed = random();
  }
  return prompts;
}

v1::GenerateRequest ToRequest(const Prompt& prompt) {
  v1::GenerateRequest request = TokensRequest(prompt.ids, kOutputTokens);
  if (prompt.seeded) {
    request.mutable_sampling()->set_temperature(0.8f);
    request.mutable_sampling()->set_seed(prompt.seed);
  }
  if (prompt.penalised) {
    v1::Sampling& sampling = *request.mutable_sampling();
    sampling.set_min_p(0.02f);
    sampling.set_typical_p(0.95f);
    sampling.set_repetition_penalty(1.15f);
    sampling.set_presence_penalty(0.3f);
    sampling.set_frequency_penalty(0.4f);
    (*sampling.mutable_logit_bias())[kBiased] = 4;
  }
  if (prompt.scored) request.mutable_sampling()->set_prompt_logprobs(2);
  return request;
}

// The same request on an engine inside the test.
class Oracle {
 public:
  Oracle(kernels::Numerics numerics, int threads, kernels::KvType type = kernels::KvType::kF16) {
    model_ = *model::Model::Load(TestModel());
    const kernels::KvLayout layout{16, model_->config.kv_heads, model_->config.head_dim, type};
    storage_ = *kv::KvStorage::Create(layout, model_->config.layers, 64);
    pool_ = std::make_unique<kv::BlockPool>(64);
    engine_ = std::make_unique<engine::Engine>(
        model_, kernels::MakeOps({kernels::BestIsa(), numerics, threads}), storage_);
  }

  engine::Generation Generate(const Prompt& prompt, int chunk_tokens) {
    engine::SamplingParams params;
    params.max_tokens = kOutputTokens;
    params.ignore_eos = true;
    params.logprobs = 0;
    if (prompt.seeded) params.temperature = 0.8f;
    params.seed = prompt.seed;
    if (prompt.penalised) {
      params.min_p = 0.02f;
      params.typical_p = 0.95f;
      params.repetition_penalty = 1.15f;
      params.presence_penalty = 0.3f;
      params.frequency_penalty = 0.4f;
      params.logit_bias = {{kBiased, 4.0f}};
    }
    if (prompt.scored) params.prompt_logprobs = 2;
    auto generation = engine::GenerateLocal(*engine_, *pool_, prompt.ids, params, chunk_tokens);
    TRIVIUM_CHECK(generation.ok(), "{}", Message(generation.status()));
    return *std::move(generation);
  }

 private:
  std::shared_ptr<const model::Model> model_;
  std::shared_ptr<kv::KvStorage> storage_;
  std::unique_ptr<kv::BlockPool> pool_;
  std::unique_ptr<engine::Engine> engine_;
};

void ExpectSameBits(const Answer& got, const engine::Generation& want, const std::string& what) {
  ASSERT_TRUE(got.status.ok()) << what << ": " << got.status;
  EXPECT_EQ(got.ids, want.Ids()) << what;
  ASSERT_EQ(got.logprobs.size(), want.tokens.size()) << what;
  for (size_t i = 0; i < want.tokens.size(); ++i) {
    EXPECT_EQ(got.logprobs[i], want.tokens[i].logprob) << what << ", output " << i;
  }
  ASSERT_EQ(got.prompt.size(), want.prompt.size()) << what;
  for (size_t i = 0; i < want.prompt.size(); ++i) {
    const v1::OutputToken& token = got.prompt[i];
    EXPECT_EQ(token.index(), static_cast<int>(i)) << what;
    EXPECT_EQ(token.id(), want.prompt[i].id) << what << ", prompt " << i;
    EXPECT_EQ(token.logprob(), want.prompt[i].logprob) << what << ", prompt " << i;
    ASSERT_EQ(token.top_size(), static_cast<int>(want.prompt[i].top.size())) << what;
    for (int j = 0; j < token.top_size(); ++j) {
      EXPECT_EQ(token.top(j).id(), want.prompt[i].top[j].first) << what << ", prompt " << i;
      EXPECT_EQ(token.top(j).logprob(), want.prompt[i].top[j].second) << what << ", prompt " << i;
    }
  }
}

class ExactnessTest : public testing::Test {
 protected:
  void SetUp() override {
    if (TestModel().empty())
      GTEST_SKIP() << "TRIVIUM_TEST_MODEL is not set: no real model to serve";
  }
  static std::unique_ptr<Cluster> StartCluster(const std::string& numerics, int step_tokens,
                                               const std::string& prefill_policy = "chunked",
                                               const std::string& engine_config = "") {
    ClusterOptions options;
    for (const char* role : {"prefill", "decode"}) options.engine_config[role] = engine_config;
    options.numerics = numerics;
    options.step_tokens = step_tokens;
    // So little time that a prompt takes several steps, once the worker knows what they cost.
    if (prefill_policy == "layered") {
      options.engine_config["prefill"] = "  prefill_policy: layered\n  step_target_ms: 20\n";
    }
    auto cluster = std::make_unique<Cluster>(options);
    const absl::Status status = cluster->Start();
    EXPECT_TRUE(status.ok()) << status;
    return cluster;
  }
};

TEST_F(ExactnessTest, FastIsBitIdenticalOneRequestAtATime) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  const std::vector<Prompt> prompts = Prompts(6, seed);
  const std::unique_ptr<Cluster> cluster = StartCluster("fast", 64);
  Oracle oracle(kernels::Numerics::kFast, 1);
  for (size_t i = 0; i < prompts.size(); ++i) {
    ExpectSameBits(cluster->Generate(ToRequest(prompts[i])), oracle.Generate(prompts[i], 64),
                   "prompt " + std::to_string(i));
  }
}

// Integers and their scales cross from P to D as they were computed, and take half the bytes.
TEST_F(ExactnessTest, IntegerKvIsBitIdenticalOneRequestAtATime) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  const std::unique_ptr<Cluster> cluster = StartCluster("fast", 64, "chunked", "  kv_type: int8\n");
  Oracle oracle(kernels::Numerics::kFast, 1, kernels::KvType::kInt8);
  for (const Prompt& prompt : Prompts(4, seed)) {
    const Answer answer = cluster->Generate(ToRequest(prompt));
    ExpectSameBits(answer, oracle.Generate(prompt, 64), "integers");
    EXPECT_EQ(answer.done.served_by().kv_bytes_moved(),
              static_cast<int64_t>(prompt.ids.size()) * 30 * 2 * 3 * (64 + 2));
  }
}

TEST_F(ExactnessTest, BatchInvariantIsBitIdenticalAloneAndInCompanyForAnyChunk) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  const std::vector<Prompt> prompts = Prompts(16, seed);
  Oracle oracle(kernels::Numerics::kBatchInvariant, 2);
  std::vector<engine::Generation> want;
  for (const Prompt& prompt : prompts) want.push_back(oracle.Generate(prompt, 512));

  for (const auto& [policy, step_tokens] :
       {std::pair("chunked", 16), {"chunked", 64}, {"chunked", 4096}, {"layered", 4096}}) {
    const auto cluster = StartCluster("batch_invariant", step_tokens, policy);
    const std::string chunk = std::string(policy) + ", steps of " + std::to_string(step_tokens);
    for (size_t i = 0; i < 3; ++i) {
      ExpectSameBits(cluster->Generate(ToRequest(prompts[i])), want[i], chunk + ", alone");
    }
    std::vector<Answer> answers(prompts.size());
    std::vector<std::thread> threads;
    for (size_t i = 0; i < prompts.size(); ++i) {
      threads.emplace_back([&, i] { answers[i] = cluster->Generate(ToRequest(prompts[i])); });
    }
    for (std::thread& thread : threads) thread.join();
    for (size_t i = 0; i < prompts.size(); ++i) {
      ExpectSameBits(answers[i], want[i], chunk + ", one of 16, prompt " + std::to_string(i));
    }
  }
}

}  // namespace
}  // namespace trivium::e2e
