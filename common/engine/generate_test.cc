#include "common/engine/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>

#include "common/engine/test_setup.h"

namespace trivium::engine {
namespace {

class GenerateTest : public testing::Test {
 protected:
  GenerateTest() : test_(MakeTestEngine({.numerics = kernels::Numerics::kBatchInvariant}, 64)) {}

  absl::StatusOr<Generation> Run(const std::vector<int32_t>& ids, const SamplingParams& params,
                                 int chunk_tokens = 16) {
    return GenerateLocal(*test_.engine, pool_, ids, params, chunk_tokens);
  }
  std::vector<int32_t> Ids(size_t count) {
    std::mt19937 random(31);
    return RandomIds(random, count, test_.config().vocab);
  }

  TestEngine test_;
  kv::BlockPool pool_{64, [this](BlockId block) { test_.storage->Scrub(block); }};
};

TEST_F(GenerateTest, EachTokenIsTheOneThatAFreshForwardPassGives) {
  const SamplingParams params{
      .temperature = 0.9f, .seed = 77, .max_tokens = 20, .ignore_eos = true};
  const auto prompt = Ids(21);
  const auto generated = Run(prompt, params);
  ASSERT_TRUE(generated.ok()) << generated.status();
  ASSERT_EQ(generated->tokens.size(), 20u);
  EXPECT_EQ(generated->finish, FinishReason::kLength);
  std::vector<int32_t> ids = prompt;
  for (int32_t index = 0; index < 20; ++index) {
    const Prompt whole{ids, {0, 1, 2, 3}};
    const SequenceRange range = whole.Whole(LogitsWanted::kLast);
    const StepResult step = test_.engine->Step({&range, 1});
    const int32_t id = Sample(step.logits, params, index, {}).id;
    ASSERT_EQ(generated->tokens[static_cast<size_t>(index)].id, id) << index;
    ids.push_back(id);
  }
}

// The tokens so far are counted anew for each token here, and once and for all there.
TEST_F(GenerateTest, PenaltiesFollowTheTokensSoFar) {
  SamplingParams params{.max_tokens = 40,
                        .ignore_eos = true,
                        .repetition_penalty = 1.3f,
                        .presence_penalty = 0.4f,
                        .frequency_penalty = 0.6f};
  for (const float temperature : {0.0f, 0.7f}) {
    params.temperature = temperature;
    const auto generated = Run(Ids(30), params);
    ASSERT_TRUE(generated.ok()) << generated.status();
    std::vector<int32_t> ids = Ids(30);
    for (int32_t index = 0; index < 40; ++index) {
      const Prompt whole{ids, {0, 1, 2, 3, 4}};
      const SequenceRange range = whole.Whole(LogitsWanted::kLast);
      const TokenHistory history(params, ids, index);
      const int32_t id =
          Sample(test_.engine->Step({&range, 1}).logits, params, index, {}, history).id;
      ASSERT_EQ(generated->tokens[static_cast<size_t>(index)].id, id) << index;
      ids.push_back(id);
    }
    SamplingParams plain{.temperature = temperature, .max_tokens = 40, .ignore_eos = true};
    EXPECT_NE(Run(Ids(30), plain)->Ids(), generated->Ids()) << "the penalties changed nothing";
  }
}

TEST_F(GenerateTest, ChunksAndRepetitionChangeNothing) {
  const SamplingParams params{.temperature = 1,
                              .seed = 5,
                              .max_tokens = 12,
                              .ignore_eos = true,
                              .logprobs = 3,
                              .prompt_logprobs = 2};
  const auto first = Run(Ids(50), params, 50);
  ASSERT_TRUE(first.ok());
  for (int chunk : {1, 7, 16, 64}) {
    const auto again = Run(Ids(50), params, chunk);
    ASSERT_TRUE(again.ok());
    EXPECT_EQ(again->Ids(), first->Ids()) << chunk;
    for (size_t i = 0; i < 12; ++i) {
      EXPECT_EQ(again->tokens[i].logprob, first->tokens[i].logprob);
      EXPECT_EQ(again->tokens[i].top, first->tokens[i].top);
    }
    ASSERT_EQ(again->prompt.size(), 50u);
    for (size_t i = 0; i < 50; ++i) {
      EXPECT_EQ(again->prompt[i].id, first->prompt[i].id);
      EXPECT_EQ(again->prompt[i].logprob, first->prompt[i].logprob);
      EXPECT_EQ(again->prompt[i].top, first->prompt[i].top);
    }
  }
  EXPECT_EQ(pool_.counts().free, 64);
}

// Every row of one forward pass over the whole prompt, by a softmax in double precision.
TEST_F(GenerateTest, PromptLogprobsAreTheLogSoftmaxOfEveryRow) {
  const auto ids = Ids(45);
  const SamplingParams params{.max_tokens = 3, .ignore_eos = true, .prompt_logprobs = 4};
  const auto generated = Run(ids, params, 45);
  ASSERT_TRUE(generated.ok()) << generated.status();
  ASSERT_EQ(generated->prompt.size(), ids.size());
  EXPECT_EQ(generated->prompt[0].id, ids[0]);
  EXPECT_TRUE(generated->prompt[0].top.empty());
  const Prompt whole{ids, {0, 1, 2}};
  const SequenceRange range = whole.Whole(LogitsWanted::kAll);
  const auto rows = test_.engine->Step({&range, 1}).logits;
  const auto vocab = static_cast<size_t>(test_.config().vocab);
  for (size_t i = 1; i < ids.size(); ++i) {
    const auto row = rows.subspan((i - 1) * vocab, vocab);
    double total = 0;
    for (float logit : row) total += std::exp(double{logit});
    const auto logprob = [&](int32_t id) {
      return double{row[static_cast<size_t>(id)]} - std::log(total);
    };
    const SampledToken& token = generated->prompt[i];
    EXPECT_EQ(token.id, ids[i]);
    EXPECT_NEAR(token.logprob, logprob(ids[i]), 1e-5);
    ASSERT_EQ(token.top.size(), 4u);
    EXPECT_EQ(row[static_cast<size_t>(token.top[0].first)],
              *std::max_element(row.begin(), row.end()));
    for (const auto& [id, value] : token.top) EXPECT_NEAR(value, logprob(id), 1e-5);
  }
  SamplingParams plain = params;
  plain.prompt_logprobs = -1;
  const auto without = Run(ids, plain);
  EXPECT_EQ(without->Ids(), generated->Ids());
  EXPECT_TRUE(without->prompt.empty());
}

TEST_F(GenerateTest, StopTokensEndTheRequest) {
  const SamplingParams params{.max_tokens = 12, .ignore_eos = true};
  const auto whole = Run(Ids(9), params);
  ASSERT_TRUE(whole.ok());
  SamplingParams stopping = params;
  stopping.stop_token_ids = {whole->tokens[4].id};
  const auto stopped = Run(Ids(9), stopping);
  ASSERT_TRUE(stopped.ok());
  EXPECT_EQ(stopped->finish, FinishReason::kStop);
  EXPECT_LE(stopped->tokens.size(), 5u);
  EXPECT_EQ(stopped->tokens.back().id, stopping.stop_token_ids[0]);
}

TEST_F(GenerateTest, RefusesWhatItCannotServe) {
  const int32_t context = test_.config().context;
  const auto code = [](const auto& result) { return result.status().code(); };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(code(Run({}, {})), kInvalid);
  EXPECT_EQ(code(Run({1, -1}, {})), kInvalid);
  EXPECT_EQ(Message(Run({1, test_.config().vocab}, {}).status()).rfind("token_ids[1]", 0), 0u);
  EXPECT_EQ(code(Run({1}, {.top_p = 0})), kInvalid);
  EXPECT_EQ(code(Run({1}, {}, 0)), kInvalid);
  EXPECT_EQ(code(Run({1}, {.max_tokens = context})), kInvalid);
  EXPECT_EQ(code(Run({1}, {.max_tokens = 2147483647})), kInvalid);
  const auto held = pool_.Reserve(64);
  EXPECT_EQ(code(Run({1}, {.max_tokens = 1})), absl::StatusCode::kResourceExhausted);
}

TEST(RealModelTest, KnowsTheCapitalOfFrance) {
  const char* path = std::getenv("TRIVIUM_TEST_MODEL");
  if (path == nullptr) GTEST_SKIP() << "TRIVIUM_TEST_MODEL does not name a GGUF file";
  const auto model = model::Model::Load(path);
  ASSERT_TRUE(model.ok()) << model.status();
  std::shared_ptr<kv::KvStorage> storage =
      *kv::KvStorage::Create(KvLayoutOf((*model)->config), (*model)->config.layers, 16);
  Engine engine(*model, kernels::MakeOps({.isa = kernels::BestIsa(), .threads = 2}), storage);
  kv::BlockPool pool(16, [&](BlockId block) { storage->Scrub(block); });
  const std::vector<model::ChatMessage> messages = {{"user", "What is the capital of France?"}};
  const auto text = (*model)->chat_template.Render(messages);
  ASSERT_TRUE(text.ok()) << text.status();
  const auto ids = (*model)->tokenizer->Encode(*text, {.parse_special = true});
  const auto generated = GenerateLocal(engine, pool, ids, {.max_tokens = 120}, 64);
  ASSERT_TRUE(generated.ok()) << generated.status();
  model::Detokenizer detokenizer(*(*model)->tokenizer);
  std::string answer;
  for (int32_t id : generated->Ids()) answer += detokenizer.Add(id);
  EXPECT_NE(answer.find("Paris"), std::string::npos) << answer;
  EXPECT_EQ(generated->finish, FinishReason::kStop) << answer;
}

}  // namespace
}  // namespace trivium::engine
