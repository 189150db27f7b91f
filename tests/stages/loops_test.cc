// Both step loops joined by a real transport: what they give must be what one engine gives alone.
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <thread>

#include "tests/stages/rig.h"

namespace trivium::stages {
namespace {

engine::SamplingParams Greedy(int32_t max_tokens) {
  return {.max_tokens = max_tokens, .ignore_eos = true, .logprobs = 2};
}

engine::SamplingParams Seeded(uint64_t seed, int32_t max_tokens) {
  return {.temperature = 0.9f,
          .top_k = 50,
          .top_p = 0.95f,
          .seed = seed,
          .max_tokens = max_tokens,
          .ignore_eos = true,
          .logprobs = 0};
}

// Every option whose effect depends on the tokens so far, and a bias.
engine::SamplingParams Penalised(uint64_t seed, float temperature, int32_t max_tokens) {
  engine::SamplingParams params = Seeded(seed, max_tokens);
  params.temperature = temperature;
  params.min_p = 0.01f;
  params.typical_p = 0.9f;
  params.repetition_penalty = 1.2f;
  params.presence_penalty = 0.5f;
  params.frequency_penalty = 0.7f;
  params.logit_bias = {{11, 2.0f}, {17, 3.0f}, {40, -100.0f}};
  return params;
}

void ExpectEqual(const std::vector<worker::OutputToken>& got, const engine::Generation& want) {
  ASSERT_EQ(got.size(), want.tokens.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].index, static_cast<int32_t>(i));
    EXPECT_EQ(got[i].token.id, want.tokens[i].id) << "token " << i;
    EXPECT_EQ(got[i].token.logprob, want.tokens[i].logprob) << "token " << i;
    EXPECT_EQ(got[i].token.top, want.tokens[i].top) << "token " << i;
    const bool last = i + 1 == got.size();
    EXPECT_EQ(got[i].finish, last ? want.finish : engine::FinishReason::kNone);
  }
}

class LoopsTest : public testing::Test {
 protected:
  LoopsTest() {
    const uint32_t seed = std::random_device()();
    std::printf("seed %u\n", seed);
    random_.seed(seed);
  }
  uint32_t Below(uint32_t bound) { return static_cast<uint32_t>(random_()) % bound; }

  std::mt19937 random_;
};

class SoloTest : public LoopsTest, public testing::WithParamInterface<kernels::Numerics> {};

TEST_P(SoloTest, EqualsOneEngineBitForBit) {
  Rig rig({.numerics = GetParam()});
  for (size_t length : {1, 15, 16, 17, 64, 65, 150}) {
    SCOPED_TRACE(length);
    for (const engine::SamplingParams& sampling :
         {Greedy(18), Seeded(random_(), 18), Penalised(random_(), 1.1f, 18)}) {
      const auto request = rig.Request(rig.RandomPrompt(random_, length), sampling);
      const auto got = rig.Run(request);
      ASSERT_TRUE(got.ok()) << got.status();
      ExpectEqual(*got, rig.Local(request));
    }
  }
  EXPECT_TRUE(rig.prefill_parts.WaitAllFree());
  EXPECT_TRUE(rig.decode_parts.WaitAllFree());
}

INSTANTIATE_TEST_SUITE_P(Numerics, SoloTest,
                         testing::Values(kernels::Numerics::kFast,
                                         kernels::Numerics::kBatchInvariant));

// Rows within the budget, every prompt position once and in order, chunks on block borders.
void CheckPrefillSteps(const std::vector<StepLog::Step>& steps, int32_t budget,
                       const std::map<uint64_t, int32_t>& prompts) {
  std::map<uint64_t, int32_t> done;
  bool shared = false;
  for (const StepLog::Step& step : steps) {
    int64_t rows = 0;
    for (const worker::RangeRecord& range : step.ranges) {
      rows += range.rows;
      EXPECT_GT(range.rows, 0);
      EXPECT_EQ(range.position, done[range.request]) << "a gap or a repetition";
      EXPECT_EQ(range.position % 16, 0);
      done[range.request] += range.rows;
    }
    EXPECT_EQ(rows, step.load.rows);
    EXPECT_LE(rows, budget);
    shared |= step.ranges.size() > 1;
  }
  EXPECT_EQ(done, prompts);
  EXPECT_TRUE(shared) << "no step held two prompts";
}

// One row a request a step, and none left out between its first step and its last.
void CheckDecodeSteps(const std::vector<StepLog::Step>& steps) {
  std::map<uint64_t, std::vector<size_t>> steps_of;
  size_t largest = 0;
  for (size_t i = 0; i < steps.size(); ++i) {
    std::set<uint64_t> seen;
    for (const worker::RangeRecord& range : steps[i].ranges) {
      EXPECT_EQ(range.rows, 1);
      EXPECT_TRUE(seen.insert(range.request).second) << "two rows of one request";
      steps_of[range.request].push_back(i);
    }
    largest = std::max(largest, seen.size());
  }
  for (const auto& [request, indices] : steps_of) {
    EXPECT_EQ(indices.back() - indices.front() + 1, indices.size())
        << "request " << request << " was left out of a step";
  }
  EXPECT_GT(largest, 1u) << "requests were never batched";
}

TEST_F(LoopsTest, SixteenAtOnceEachEqualTheirSoloRun) {
  Rig rig({.step_tokens = 64});
  std::vector<worker::StageRequest> requests;
  for (int i = 0; i < 16; ++i) {
    const auto sampling = i % 2 == 0 ? Greedy(20) : Seeded(random_(), 20);
    requests.push_back(rig.Request(rig.RandomPrompt(random_, 1 + Below(100)), sampling));
  }
  std::vector<std::unique_ptr<Flight>> flights;
  std::map<uint64_t, int32_t> prompts;
  for (const auto& request : requests) {
    flights.push_back(rig.Launch(request));
    prompts[flights.back()->prefill_number] = request.prompt_tokens();
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    SCOPED_TRACE(i);
    ASSERT_TRUE(flights[i]->prefill.Wait().ok());
    ASSERT_TRUE(flights[i]->decode.Wait().ok());
    ExpectEqual(flights[i]->decode.tokens(), rig.Local(requests[i]));
    const int64_t row_bytes = rig.prefill_parts.engine.config().KvBytesPerToken();
    EXPECT_EQ(flights[i]->prefill.sent().transfer.kv_bytes,
              requests[i].prompt_tokens() * row_bytes);
  }
  CheckPrefillSteps(rig.prefill_parts.log.steps(), 64, prompts);
  CheckDecodeSteps(rig.decode_parts.log.steps());
  EXPECT_TRUE(rig.prefill_parts.WaitAllFree());
  EXPECT_TRUE(rig.decode_parts.WaitAllFree());
}

void ExpectPromptEqual(const std::vector<worker::OutputToken>& got,
                       const std::vector<engine::SampledToken>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].index, static_cast<int32_t>(i));
    EXPECT_EQ(got[i].has_logprob, i > 0);
    EXPECT_EQ(got[i].token.id, want[i].id) << "token " << i;
    EXPECT_EQ(got[i].token.logprob, want[i].logprob) << "token " << i;
    EXPECT_EQ(got[i].token.top, want[i].top) << "token " << i;
  }
}

// Prompts of up to several times the rows that a step scores, some of them not scored at all.
TEST_F(LoopsTest, ScoredPromptsEqualTheirSoloRunWhateverTheirCompany) {
  Rig rig({.step_tokens = 400});
  std::vector<worker::StageRequest> requests;
  for (const size_t length : {1, 2, 700, 16, 257, 33, 300}) {
    engine::SamplingParams sampling = Greedy(6);
    if (length != 33) sampling.prompt_logprobs = static_cast<int32_t>(Below(4));
    requests.push_back(rig.Request(rig.RandomPrompt(random_, length), sampling));
  }
  std::vector<std::unique_ptr<Flight>> flights;
  for (const auto& request : requests) flights.push_back(rig.Launch(request));
  for (size_t i = 0; i < requests.size(); ++i) {
    SCOPED_TRACE(i);
    ASSERT_TRUE(flights[i]->prefill.Wait().ok());
    ASSERT_TRUE(flights[i]->decode.Wait().ok());
    const engine::Generation want = rig.Local(requests[i]);
    ExpectEqual(flights[i]->decode.tokens(), want);
    ExpectPromptEqual(flights[i]->prefill.prompt_tokens(), want.prompt);
  }
}

// What earlier attempts have emitted is no part of the prompt.
TEST_F(LoopsTest, ARetryScoresThePromptAlone) {
  Rig rig;
  engine::SamplingParams sampling = Greedy(10);
  sampling.prompt_logprobs = 1;
  const auto prompt = rig.RandomPrompt(random_, 70);
  const engine::Generation whole = rig.Local(rig.Request(prompt, sampling));
  std::vector<int32_t> ids = prompt;
  for (int i = 0; i < 4; ++i) ids.push_back(whole.tokens[static_cast<size_t>(i)].id);
  const auto flight = rig.Launch(rig.Request(ids, sampling, 4));
  ASSERT_TRUE(flight->decode.Wait().ok());
  ASSERT_TRUE(flight->prefill.Wait().ok());
  ExpectPromptEqual(flight->prefill.prompt_tokens(), whole.prompt);
  EXPECT_EQ(flight->decode.ids().back(), whole.tokens.back().id);
}

TEST_F(LoopsTest, TheFirstTokenMayBeTheLast) {
  Rig rig;
  const auto prompt = rig.RandomPrompt(random_, 40);
  const auto single = rig.Request(prompt, Greedy(1));
  auto got = rig.Run(single);
  ASSERT_TRUE(got.ok()) << got.status();
  ExpectEqual(*got, rig.Local(single));
  EXPECT_EQ(got->back().finish, engine::FinishReason::kLength);

  engine::SamplingParams stopping = Greedy(10);
  stopping.stop_token_ids = {got->front().token.id};
  got = rig.Run(rig.Request(prompt, stopping));
  ASSERT_TRUE(got.ok()) << got.status();
  ASSERT_EQ(got->size(), 1u);
  EXPECT_EQ(got->back().finish, engine::FinishReason::kStop);
  EXPECT_TRUE(rig.decode_parts.log.steps().empty()) << "decode computed for a finished request";
  EXPECT_TRUE(rig.decode_parts.WaitAllFree());
}

TEST_F(LoopsTest, ARetryGoesOnWithTheSameText) {
  Rig rig;
  for (const engine::SamplingParams& sampling :
       {Greedy(24), Seeded(random_(), 24), Penalised(random_(), 0, 24),
        Penalised(random_(), 1.2f, 24)}) {
    const auto prompt = rig.RandomPrompt(random_, 50);
    const auto whole = rig.Run(rig.Request(prompt, sampling));
    ASSERT_TRUE(whole.ok()) << whole.status();
    for (int32_t cut : {1, 14, 15, 23}) {
      SCOPED_TRACE(cut);
      std::vector<int32_t> ids = prompt;
      for (int32_t i = 0; i < cut; ++i) ids.push_back((*whole)[static_cast<size_t>(i)].token.id);
      const auto rest = rig.Run(rig.Request(ids, sampling, cut));
      ASSERT_TRUE(rest.ok()) << rest.status();
      ASSERT_EQ(rest->size(), whole->size() - static_cast<size_t>(cut));
      for (size_t i = 0; i < rest->size(); ++i) {
        const worker::OutputToken& want = (*whole)[i + static_cast<size_t>(cut)];
        EXPECT_EQ((*rest)[i].index, want.index);
        EXPECT_EQ((*rest)[i].token.id, want.token.id);
        EXPECT_EQ((*rest)[i].finish, want.finish);
      }
    }
  }
}

TEST_F(LoopsTest, CancelledAtRandomPointsNothingIsHeld) {
  Rig rig({.prefill_blocks = 40, .decode_blocks = 128, .step_tokens = 32, .timeout_scale = 0.5});
  std::vector<std::thread> clients;
  for (int client = 0; client < 6; ++client) {
    clients.emplace_back([&rig, seed = random_()] {
      std::mt19937 random(static_cast<uint32_t>(seed));
      for (int i = 0; i < 8; ++i) {
        const auto request = rig.Request(rig.RandomPrompt(random, 1 + random() % 120), Greedy(20));
        const std::unique_ptr<Flight> flight = rig.Launch(request);
        if (random() % 2 == 0) {
          flight->decode.WaitTokens(random() % 12);
        } else {
          flight->prefill.WaitTokens(random() % 2);
        }
        const bool prefill_first = random() % 2 == 0;
        if (prefill_first) rig.prefill->Cancel(flight->prefill_number);
        rig.decode->Cancel(flight->decode_number);
        if (!prefill_first) rig.prefill->Cancel(flight->prefill_number);
        flight->prefill.Wait().IgnoreError();
        flight->decode.Wait().IgnoreError();
        EXPECT_EQ(flight->prefill.ends(), 1);
        EXPECT_EQ(flight->decode.ends(), 1);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(rig.prefill_parts.WaitAllFree());
  EXPECT_TRUE(rig.decode_parts.WaitAllFree());
  const auto request = rig.Request(rig.RandomPrompt(random_, 60), Greedy(8));
  const auto got = rig.Run(request);
  ASSERT_TRUE(got.ok()) << got.status();
  ExpectEqual(*got, rig.Local(request));
}

TEST_F(LoopsTest, AFullDecodePoolRefusesWithAHint) {
  Rig rig({.decode_blocks = 4});
  const auto request = rig.Request(rig.RandomPrompt(random_, 17), Greedy(16));  // 3 blocks
  Outcome held, refused;
  const auto first = rig.decode->Submit(request, &held);
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = rig.decode->Submit(request, &refused);
  EXPECT_TRUE(absl::IsResourceExhausted(second.status())) << second.status();
  EXPECT_NE(Message(second.status()).find("retry in"), std::string::npos);
  const auto too_large = rig.decode->Submit(rig.Request(rig.RandomPrompt(random_, 60), Greedy(5)),
                                            &refused);  // 5 blocks
  EXPECT_TRUE(absl::IsInvalidArgument(too_large.status())) << too_large.status();

  rig.decode->Cancel(first->number);
  EXPECT_TRUE(absl::IsCancelled(held.Wait()));
  EXPECT_TRUE(rig.decode_parts.WaitAllFree());
  EXPECT_TRUE(rig.Run(request).ok());
  EXPECT_EQ(refused.ends(), 0);
}

TEST_F(LoopsTest, AFullPrefillPoolWaits) {
  Rig rig({.prefill_blocks = 8});
  auto taken = rig.prefill_parts.pool->Reserve(6);
  ASSERT_TRUE(taken.ok());
  const auto large = rig.Request(rig.RandomPrompt(random_, 100), Greedy(4));  // 7 blocks
  const auto small = rig.Request(rig.RandomPrompt(random_, 10), Greedy(4));
  const auto waiting = rig.Launch(large);
  const auto behind = rig.Launch(small);
  EXPECT_FALSE(waiting->prefill.WaitFor(std::chrono::milliseconds(100)));
  EXPECT_TRUE(rig.prefill_parts.log.steps().empty()) << "a request overtook an older one";
  const worker::Load load = rig.prefill_parts.board.Get();
  EXPECT_EQ(load.requests_waiting, 2);
  EXPECT_EQ(load.prompt_tokens_waiting, 110);

  *taken = kv::Reservation();
  EXPECT_TRUE(waiting->decode.Wait().ok());
  EXPECT_TRUE(behind->decode.Wait().ok());
  ExpectEqual(waiting->decode.tokens(), rig.Local(large));
  EXPECT_TRUE(waiting->prefill.Wait().ok());
  EXPECT_TRUE(behind->prefill.Wait().ok());

  Outcome refused;
  const auto too_large = rig.Request(rig.RandomPrompt(random_, 129), Greedy(4));
  EXPECT_TRUE(absl::IsInvalidArgument(rig.prefill->Submit(too_large, {}, &refused).status()));
}

TEST_F(LoopsTest, PlacesAreBounded) {
  Rig rig({.requests_max = 2});
  std::vector<std::unique_ptr<Outcome>> held;
  std::vector<uint64_t> numbers;
  for (int i = 0; i < 2; ++i) {
    held.push_back(std::make_unique<Outcome>());
    const auto submitted =
        rig.decode->Submit(rig.Request(rig.RandomPrompt(random_, 5), Greedy(4)), held.back().get());
    ASSERT_TRUE(submitted.ok());
    numbers.push_back(submitted->number);
  }
  Outcome refused;
  const auto third = rig.decode->Submit(rig.Request({1}, Greedy(4)), &refused);
  EXPECT_TRUE(absl::IsResourceExhausted(third.status())) << third.status();
  EXPECT_NE(Message(third.status()).find("retry in"), std::string::npos);
  for (uint64_t number : numbers) rig.decode->Cancel(number);
  for (auto& outcome : held) EXPECT_TRUE(absl::IsCancelled(outcome->Wait()));
  EXPECT_TRUE(rig.Run(rig.Request({1, 2, 3}, Greedy(4))).ok());
}

TEST_F(LoopsTest, DrainingFinishesWhatRuns) {
  Rig rig;
  const auto request = rig.Request(rig.RandomPrompt(random_, 60), Greedy(40));
  const auto running = rig.Launch(request);
  rig.prefill->Drain();
  rig.decode->Drain();
  Outcome refused;
  const auto decode = rig.decode->Submit(request, &refused);
  EXPECT_TRUE(absl::IsUnavailable(decode.status()));
  EXPECT_NE(Message(decode.status()).find("draining"), std::string::npos);
  EXPECT_TRUE(absl::IsUnavailable(rig.prefill->Submit(request, {}, &refused).status()));
  EXPECT_TRUE(rig.decode_parts.board.Get().draining);
  ASSERT_TRUE(running->decode.Wait().ok());
  ASSERT_TRUE(running->prefill.Wait().ok());
  ExpectEqual(running->decode.tokens(), rig.Local(request));
}

TEST_F(LoopsTest, StoppingEndsEverything) {
  Rig rig;
  const auto running = rig.Launch(rig.Request(rig.RandomPrompt(random_, 60), Greedy(1000)));
  running->decode.WaitTokens(3);
  Outcome landing;
  ASSERT_TRUE(
      rig.decode->Submit(rig.Request(rig.RandomPrompt(random_, 60), Greedy(4)), &landing).ok());
  rig.decode->Stop();
  EXPECT_TRUE(absl::IsUnavailable(running->decode.Wait()));
  EXPECT_TRUE(absl::IsUnavailable(landing.Wait()));
  EXPECT_TRUE(running->prefill.Wait().ok());
  EXPECT_TRUE(rig.decode_parts.WaitAllFree());
  Outcome late;
  EXPECT_TRUE(absl::IsUnavailable(rig.decode->Submit(rig.Request({1}, Greedy(4)), &late).status()));
}

TEST_F(LoopsTest, AnAbortedTransferEndsBothSidesByName) {
  Rig rig({.step_tokens = 16, .timeout_scale = 0.5});
  for (int round = 0; round < 4; ++round) {
    const auto request = rig.Request(rig.RandomPrompt(random_, 300), Greedy(4));
    const auto lost_decode = rig.Launch(request);
    rig.decode->Cancel(lost_decode->decode_number);
    EXPECT_TRUE(absl::IsCancelled(lost_decode->decode.Wait()));
    const absl::Status prefilled = lost_decode->prefill.Wait();
    EXPECT_TRUE(absl::IsUnavailable(prefilled)) << prefilled;
    EXPECT_EQ(Message(prefilled).rfind("decode worker lost: ", 0), 0u) << prefilled;

    const auto lost_prefill = rig.Launch(rig.Request(rig.RandomPrompt(random_, 300), Greedy(4)));
    rig.prefill_parts.log.WaitStepOf(lost_prefill->prefill_number);
    rig.prefill->Cancel(lost_prefill->prefill_number);
    const absl::Status landed = lost_prefill->decode.Wait();
    if (absl::IsCancelled(lost_prefill->prefill.Wait())) {
      EXPECT_TRUE(absl::IsUnavailable(landed)) << landed;
      EXPECT_EQ(Message(landed).rfind("landing failed: ", 0), 0u) << landed;
    }
  }
  EXPECT_TRUE(rig.prefill_parts.WaitAllFree());
  EXPECT_TRUE(rig.decode_parts.WaitAllFree());
}

TEST_F(LoopsTest, ALostTransportEndsTheStreamsOfItsPeers) {
  Rig rig({.step_tokens = 16, .timeout_scale = 0.5});
  const auto flight = rig.Launch(rig.Request(rig.RandomPrompt(random_, 400), Greedy(4)));
  rig.prefill_parts.log.WaitStepOf(flight->prefill_number);
  // A landing that nobody has begun to send to knows no peer: it waits as long as its request.
  ASSERT_TRUE(rig.decode_parts.WaitHeard());
  rig.prefill->Stop();
  rig.prefill_parts.transport.reset();
  const absl::Status landed = flight->decode.Wait();
  if (flight->prefill.Wait().ok()) return;  // it was quicker than the stop
  EXPECT_TRUE(absl::IsUnavailable(landed)) << landed;
  EXPECT_TRUE(rig.decode_parts.WaitAllFree());
}

TEST_F(LoopsTest, ALandingWaitsAsLongAsItsRequest) {
  Rig rig({.timeout_scale = 0.1});  // an unused ticket lives for 0.2 s
  const auto request = rig.Request(rig.RandomPrompt(random_, 30), Greedy(6));
  Flight flight;
  const auto landing = rig.decode->Submit(request, &flight.decode);
  ASSERT_TRUE(landing.ok());
  EXPECT_FALSE(flight.decode.WaitFor(std::chrono::milliseconds(900))) << flight.decode.Wait();
  ASSERT_TRUE(rig.prefill->Submit(request, *landing->ticket, &flight.prefill).ok());
  EXPECT_TRUE(flight.decode.Wait().ok());
  EXPECT_TRUE(flight.prefill.Wait().ok());
  ExpectEqual(flight.decode.tokens(), rig.Local(request));
}

}  // namespace
}  // namespace trivium::stages
