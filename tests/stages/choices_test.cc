// Several choices of one request through both step loops: each must be what a request of its own
// gives, from one prefill and one transfer.
#include <gtest/gtest.h>

#include <map>

#include "tests/stages/rig.h"

namespace trivium::stages {
namespace {

constexpr int32_t kBlockTokens = 16;

engine::SamplingParams Seeded(uint64_t seed, int32_t max_tokens) {
  return {.temperature = 0.9f,
          .top_k = 50,
          .seed = seed,
          .max_tokens = max_tokens,
          .ignore_eos = true,
          .logprobs = 1,
          .repetition_penalty = 1.3f,
          .frequency_penalty = 0.5f};
}

class ChoicesTest : public testing::Test {
 protected:
  ChoicesTest() {
    const uint32_t seed = std::random_device()();
    std::printf("seed %u\n", seed);
    random_.seed(seed);
  }

  worker::StageRequest Group(Rig& rig, size_t prompt_tokens, engine::SamplingParams sampling,
                             int32_t choices) {
    worker::StageRequest request = rig.Request(rig.RandomPrompt(random_, prompt_tokens), sampling);
    request.choices = choices;
    return request;
  }
  // Every choice against one engine that serves it alone.
  void ExpectSolo(Rig& rig, const worker::StageRequest& group,
                  const std::vector<worker::OutputToken>& tokens) {
    std::map<int32_t, std::vector<worker::OutputToken>> by_choice;
    for (const worker::OutputToken& token : tokens) by_choice[token.choice].push_back(token);
    EXPECT_EQ(by_choice.size(), static_cast<size_t>(group.choices));
    for (const auto& [choice, got] : by_choice) {
      worker::StageRequest solo = group;
      solo.sampling.seed = group.sampling.seed + static_cast<uint64_t>(choice);
      const engine::Generation want = rig.Local(solo);
      ASSERT_EQ(got.size(), want.tokens.size()) << "choice " << choice;
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_EQ(got[i].index, static_cast<int32_t>(i));
        EXPECT_EQ(got[i].token.id, want.tokens[i].id) << "choice " << choice << ", token " << i;
        EXPECT_EQ(got[i].token.logprob, want.tokens[i].logprob);
        EXPECT_EQ(got[i].finish, i + 1 == got.size() ? want.finish : engine::FinishReason::kNone);
      }
    }
  }

  std::mt19937 random_;
};

TEST_F(ChoicesTest, EachEqualsARequestOfItsOwnFromOnePrefill) {
  Rig rig;
  const int64_t row_bytes = rig.prefill_parts.engine.config().KvBytesPerToken();
  for (size_t length : {1, 15, 16, 17, 48, 70}) {
    SCOPED_TRACE(length);
    // The last seeds wrap.
    const auto group = Group(rig, length, Seeded(~uint64_t{0} - 1, 20), 4);
    const auto company = rig.Launch(Group(rig, 33, Seeded(random_(), 12), 3));
    const auto flight = rig.Launch(group);
    ASSERT_TRUE(flight->decode.Wait().ok());
    ASSERT_TRUE(flight->prefill.Wait().ok());
    ExpectSolo(rig, group, flight->decode.tokens());
    const auto first = flight->prefill.tokens();
    ASSERT_EQ(first.size(), 4u);
    for (int32_t i = 0; i < 4; ++i) EXPECT_EQ(first[static_cast<size_t>(i)].choice, i);
    EXPECT_EQ(flight->prefill.sent().transfer.kv_bytes, group.prompt_tokens() * row_bytes);
    int64_t rows = 0;
    for (const StepLog::Step& step : rig.prefill_parts.log.steps()) {
      for (const worker::RangeRecord& range : step.ranges) {
        if (range.request == flight->prefill_number) rows += range.rows;
      }
    }
    EXPECT_EQ(rows, group.prompt_tokens());
    ASSERT_TRUE(company->decode.Wait().ok());
    ASSERT_TRUE(company->prefill.Wait().ok());
  }
  EXPECT_TRUE(rig.prefill_parts.WaitAllFree());
  EXPECT_TRUE(rig.decode_parts.WaitAllFree());
}

TEST_F(ChoicesTest, GreedyChoicesAreEqual) {
  Rig rig;
  const auto group = Group(rig, 40, {.max_tokens = 10, .ignore_eos = true}, 3);
  const auto flight = rig.Launch(group);
  ASSERT_TRUE(flight->decode.Wait().ok());
  ASSERT_TRUE(flight->prefill.Wait().ok());
  std::map<int32_t, std::vector<int32_t>> ids;
  for (const auto& token : flight->decode.tokens()) ids[token.choice].push_back(token.token.id);
  ASSERT_EQ(ids.size(), 3u);
  EXPECT_EQ(ids[0], ids[1]);
  EXPECT_EQ(ids[0], ids[2]);
  EXPECT_EQ(ids[0].size(), 10u);
}

// Ends a choice when `after` tokens have come, between two steps.
class Cutter final : public decode::DecodeSink {
 public:
  Cutter(decode::StepLoop& loop, const worker::StageRequest& request, size_t after)
      : loop_(loop), key_(request.key), left_(after) {}
  void OnPrefilled(const decode::PrefillReport&) override {}
  void OnToken(const worker::OutputToken& token) override {
    ++counts[token.choice];
    outcome.OnToken(token);
    if (--left_ != 0) return;
    transfer::Credentials stranger = key_;
    stranger.secret[0] ^= 1;
    loop_.EndChoice(stranger, 0);
    loop_.EndChoice(key_, 1);
    loop_.EndChoice(key_, 3);
    loop_.EndChoice(key_, -1);
  }
  void OnEnd(absl::Status status) override { outcome.OnEnd(std::move(status)); }

  std::map<int32_t, int> counts;  // of tokens, by choice
  Outcome outcome;

 private:
  decode::StepLoop& loop_;
  const transfer::Credentials key_;
  size_t left_;
};

TEST_F(ChoicesTest, AChoiceThatNobodyWantsEndsAndTheOthersGoOn) {
  Rig rig;
  const auto group = Group(rig, 40, Seeded(7, 100), 3);
  Cutter sink(*rig.decode, group, 12);
  const auto landing = rig.decode->Submit(group, &sink);
  ASSERT_TRUE(landing.ok()) << landing.status();
  Outcome prompt;
  ASSERT_TRUE(rig.prefill->Submit(group, *landing->ticket, &prompt).ok());
  EXPECT_TRUE(sink.outcome.Wait().ok());
  EXPECT_TRUE(prompt.Wait().ok());
  EXPECT_EQ(sink.counts, (std::map<int32_t, int>{{0, 100}, {1, 5}, {2, 100}}));
  EXPECT_TRUE(rig.decode_parts.WaitAllFree());
}

// Before its KV has landed, too: then with its first token.
TEST_F(ChoicesTest, AllChoicesMayEndSo) {
  Rig rig;
  const auto group = Group(rig, 40, Seeded(7, 200), 3);
  Outcome outcome;
  const auto landing = rig.decode->Submit(group, &outcome);
  ASSERT_TRUE(landing.ok()) << landing.status();
  for (int32_t choice = 0; choice < 3; ++choice) rig.decode->EndChoice(group.key, choice);
  Outcome prompt;
  ASSERT_TRUE(rig.prefill->Submit(group, *landing->ticket, &prompt).ok());
  EXPECT_TRUE(outcome.Wait().ok());
  EXPECT_EQ(outcome.tokens().size(), 3u);
  EXPECT_TRUE(prompt.Wait().ok());
  EXPECT_TRUE(rig.decode_parts.WaitAllFree());
}

// Looks at the pool whenever a token comes, which is on the engine's thread.
class PoolWatch final : public decode::DecodeSink {
 public:
  PoolWatch(const kv::BlockPool& pool, int32_t choices) : pool_(pool), left_(choices) {}
  void OnPrefilled(const decode::PrefillReport&) override {}
  void OnToken(const worker::OutputToken& token) override {
    used_.emplace_back(left_, pool_.counts().used);
    if (token.finish != engine::FinishReason::kNone) --left_;
    outcome.OnToken(token);
  }
  void OnEnd(absl::Status status) override { outcome.OnEnd(std::move(status)); }
  // Members left and blocks used at each token; after the end.
  const std::vector<std::pair<int32_t, int32_t>>& used() const { return used_; }

  Outcome outcome;

 private:
  const kv::BlockPool& pool_;
  int32_t left_;
  std::vector<std::pair<int32_t, int32_t>> used_;
};

TEST_F(ChoicesTest, AMemberThatEndsGivesItsOwnBlocksBackAtOnce) {
  constexpr int32_t kChoices = 5, kPrompt = 37, kTokens = 40;
  Rig rig;
  const auto endless = Group(rig, kPrompt, Seeded(random_(), kTokens), kChoices);
  auto group = endless;
  // Tokens of its own choices end them, at different places.
  for (uint64_t i = 1; i < kChoices; ++i) {
    auto solo = endless;
    solo.sampling.seed += i;
    group.sampling.stop_token_ids.push_back(rig.Local(solo).Ids()[i * 7]);
  }
  PoolWatch watch(*rig.decode_parts.pool, kChoices);
  Outcome prefilled;
  const auto landing = rig.decode->Submit(group, &watch);
  ASSERT_TRUE(landing.ok()) << landing.status();
  ASSERT_TRUE(rig.prefill->Submit(group, *landing->ticket, &prefilled).ok());
  ASSERT_TRUE(watch.outcome.Wait().ok());
  ASSERT_TRUE(prefilled.Wait().ok());
  ExpectSolo(rig, group, watch.outcome.tokens());
  const int32_t shared = kPrompt / kBlockTokens;
  const int32_t own = (kPrompt + kTokens + kBlockTokens - 1) / kBlockTokens - shared;
  for (const auto& [left, used] : watch.used()) EXPECT_EQ(used, shared + left * own);
  EXPECT_TRUE(rig.decode_parts.WaitAllFree());
}

TEST_F(ChoicesTest, AdmissionIsByTheWholeNeed) {
  // 2 shared blocks and 2 own ones for each of 3.
  Rig rig({.decode_blocks = 8, .requests_max = 4});
  const auto group = Group(rig, 40, Seeded(1, 20), 3);
  const auto flight = rig.Launch(group);
  ASSERT_TRUE(flight->decode.Wait().ok());
  ExpectSolo(rig, group, flight->decode.tokens());
  Outcome refused;
  const auto too_large = rig.decode->Submit(Group(rig, 40, Seeded(1, 25), 3), &refused);
  EXPECT_TRUE(absl::IsInvalidArgument(too_large.status())) << too_large.status();
  const auto too_many = rig.decode->Submit(Group(rig, 1, Seeded(1, 2), 5), &refused);
  EXPECT_TRUE(absl::IsInvalidArgument(too_many.status())) << too_many.status();

  EXPECT_TRUE(rig.decode_parts.WaitAllFree());
  Outcome held;
  const auto landing = rig.decode->Submit(Group(rig, 1, Seeded(1, 2), 3), &held);
  ASSERT_TRUE(landing.ok()) << landing.status();
  const auto no_places = rig.decode->Submit(Group(rig, 1, Seeded(1, 2), 2), &refused);
  EXPECT_TRUE(absl::IsResourceExhausted(no_places.status())) << no_places.status();
  rig.decode->Cancel(landing->number);
  EXPECT_TRUE(absl::IsCancelled(held.Wait()));
  EXPECT_TRUE(rig.decode_parts.WaitAllFree());
  const auto again = rig.Launch(group);
  EXPECT_TRUE(again->decode.Wait().ok());
  EXPECT_TRUE(again->prefill.Wait().ok());
  EXPECT_TRUE(flight->prefill.Wait().ok());
  EXPECT_EQ(refused.ends(), 0);
}

}  // namespace
}  // namespace trivium::stages
