// More answers of unknown length than the decode pool holds: some give way and come back. Whatever
// happens in between, each answer is what one engine gives alone, and every block is accounted for.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "common/kv/answer_room.h"
#include "services/decode/growth.h"
#include "tests/stages/rig.h"

namespace trivium::stages {
namespace {

// The router's part: goes on from the tokens so far whenever the request was preempted, and asks
// again while there is no room.
struct Client {
  worker::StageRequest request;
  std::vector<int32_t> ids;
  int preemptions = 0;
  absl::Status status;

  // Cancels once `cancel_after` tokens have come in one attempt; 0: never.
  void Run(Rig& rig, size_t cancel_after = 0) {
    const size_t prompt = request.token_ids.size();
    do {
      request.key.attempt.value += 1;
      request.token_ids.resize(prompt);
      request.token_ids.insert(request.token_ids.end(), ids.begin(), ids.end());
      request.output_index = static_cast<int32_t>(ids.size());
      request.preemptions = preemptions;
      const std::unique_ptr<Flight> flight = rig.Launch(request);
      if (cancel_after > 0 && flight->decode_number != 0) {
        flight->decode.WaitTokens(cancel_after);
        rig.decode->Cancel(flight->decode_number);
      }
      status = flight->decode.Wait();
      flight->prefill.Wait().IgnoreError();
      for (const worker::OutputToken& token : flight->decode.tokens()) {
        EXPECT_EQ(token.index, static_cast<int32_t>(ids.size())) << "a gap or a repetition";
        ids.push_back(token.token.id);
      }
      preemptions += absl::IsAborted(status);
      if (absl::IsResourceExhausted(status)) std::this_thread::yield();
    } while (absl::IsAborted(status) || absl::IsResourceExhausted(status));
  }
};

std::vector<int32_t> IdsOf(const engine::Generation& generation) {
  std::vector<int32_t> ids;
  for (const engine::SampledToken& token : generation.tokens) ids.push_back(token.id);
  return ids;
}

class PreemptionTest : public testing::Test {
 protected:
  PreemptionTest() {
    const uint32_t seed = std::random_device()();
    std::printf("seed %u\n", seed);
    random_.seed(seed);
  }

  // An answer whose length no worker can know: a stop token may end it at any time, though none
  // does before `tokens` have come.
  Client Unknown(Rig& rig, size_t prompt, int32_t tokens, int32_t max_tokens) {
    engine::SamplingParams sampling{.max_tokens = tokens, .ignore_eos = true};
    if (random_() % 2 == 0) {
      sampling.temperature = 0.9f;
      sampling.seed = random_();
    }
    Client client{.request = rig.Request(rig.RandomPrompt(random_, prompt), sampling)};
    const std::vector<int32_t> alone = IdsOf(rig.Local(client.request));
    int32_t stop = alone.back();  // may come earlier too
    for (int32_t id = 0; tokens == max_tokens; stop = id++) {
      if (std::count(alone.begin(), alone.end(), stop) == 0) break;
    }
    client.request.sampling.stop_token_ids = {stop};
    client.request.sampling.max_tokens = max_tokens;
    return client;
  }

  // Answers of about six tokens, so that the worker expects as many.
  void Teach(Rig& rig) {
    int64_t sum = 0;
    for (int i = 0; i < decode::AnswerLengths::kFewest; ++i) {
      EXPECT_EQ(rig.decode_parts.board.Get().expected_output_tokens, 0);
      Client client = Unknown(rig, 10, 6, 40);
      client.Run(rig);
      ASSERT_TRUE(client.status.ok()) << client.status;
      sum += static_cast<int64_t>(client.ids.size());
    }
    const int64_t count = decode::AnswerLengths::kFewest;
    EXPECT_EQ(rig.decode_parts.board.Get().expected_output_tokens, (sum + count - 1) / count);
  }

  std::mt19937 random_;
};

TEST_F(PreemptionTest, EveryAnswerIsThatOfItsSoloRun) {
  Rig rig({.decode_blocks = 24});
  ASSERT_NO_FATAL_FAILURE(Teach(rig));
  std::vector<Client> clients;
  std::vector<std::vector<int32_t>> alone;
  for (int i = 0; i < 14; ++i) {  // most have 4 or 5 blocks in the end, all 2 at first
    clients.push_back(Unknown(rig, 10 + random_() % 10, i % 3 == 0 ? 30 : 54, 54));
    alone.push_back(IdsOf(rig.Local(clients.back().request)));
  }
  std::atomic<bool> is_over{false};
  std::thread sampler([&] {
    while (!is_over) {
      const kv::BlockPool::Counts counts = rig.decode_parts.pool->counts();
      ASSERT_EQ(counts.free + counts.used + counts.leased, counts.total);
      std::this_thread::yield();
    }
  });
  std::vector<std::thread> threads;
  for (size_t i = 0; i < clients.size(); ++i) {
    const size_t cancel_after = i % 7 == 6 ? 1 + random_() % 40 : 0;
    threads.emplace_back([&, i, cancel_after] { clients[i].Run(rig, cancel_after); });
  }
  for (std::thread& thread : threads) thread.join();
  is_over = true;
  sampler.join();

  int preemptions = 0;
  for (size_t i = 0; i < clients.size(); ++i) {
    SCOPED_TRACE(i);
    const Client& client = clients[i];
    preemptions += client.preemptions;
    EXPECT_LE(client.preemptions, kv::kPreemptionsMax);
    ASSERT_LE(client.ids.size(), alone[i].size());
    EXPECT_TRUE(std::equal(client.ids.begin(), client.ids.end(), alone[i].begin()));
    const bool cancelled = i % 7 == 6 && absl::IsCancelled(client.status);
    EXPECT_TRUE(client.status.ok() || cancelled) << client.status;
    if (!cancelled) {
      EXPECT_EQ(client.ids.size(), alone[i].size());
    }
  }
  EXPECT_GT(preemptions, 0) << "the pool was large enough for all";
  EXPECT_EQ(rig.decode_parts.log.ends(absl::StatusCode::kAborted), preemptions);
  EXPECT_TRUE(rig.decode_parts.WaitAllFree());
  EXPECT_TRUE(rig.prefill_parts.WaitAllFree());
}

TEST_F(PreemptionTest, TheLowerPriorityGivesWay) {
  Rig rig({.decode_blocks = 12});
  ASSERT_NO_FATAL_FAILURE(Teach(rig));
  Client low = Unknown(rig, 33, 100, 100), high = Unknown(rig, 33, 100, 100);  // 9 blocks each
  low.request.priority = -1;
  std::thread older([&] { low.Run(rig); });
  high.Run(rig);
  older.join();
  EXPECT_TRUE(low.status.ok() && high.status.ok()) << low.status << high.status;
  EXPECT_EQ(high.preemptions, 0);
  EXPECT_GE(low.preemptions, 1);
  EXPECT_EQ(rig.decode_parts.log.ends(absl::StatusCode::kAborted), low.preemptions);
}

// Another domain's floor keeps half of the pool, for nobody. What needs more than the rest goes on
// all the same: one that outgrows its blocks, and one that comes back after it was preempted.
TEST_F(PreemptionTest, WhatOthersCachedEndsNoAnswer) {
  Rig rig({.decode_blocks = 12});
  ASSERT_NO_FATAL_FAILURE(Teach(rig));
  const kv::Domain keeper{.key = {}, .token_end = INT32_MAX, .floor = 0.5f};
  for (const size_t tokens_before : {0, 70}) {
    auto chain = kv::BlockChain::Create({.model = "tiny", .numerics_class = "test"}, {keeper});
    ASSERT_TRUE(chain.ok()) << chain.status();
    // Two tokens: what ends with the first may end before all KV has landed.
    Client cached{.request = rig.Request(rig.RandomPrompt(random_, 97),
                                         {.max_tokens = 2, .ignore_eos = true})};
    cached.request.chain = *std::move(chain);
    cached.request.chain.Append(cached.request.token_ids);
    cached.Run(rig);
    ASSERT_TRUE(rig.decode_parts.WaitAllFree());
    ASSERT_EQ(rig.decode_parts.pool->counts().kept, 6);
    Client client = Unknown(rig, 33, 100, 100);  // 9 blocks
    const std::vector<int32_t> alone = IdsOf(rig.Local(client.request));
    client.ids.assign(alone.begin(), alone.begin() + static_cast<ptrdiff_t>(tokens_before));
    client.Run(rig);
    EXPECT_TRUE(client.status.ok()) << client.status;
    EXPECT_EQ(client.ids, alone);
    ASSERT_TRUE(rig.decode_parts.WaitAllFree());
    EXPECT_EQ(rig.decode_parts.pool->counts().kept, 3) << "no more is taken than has to be";
  }
}

TEST_F(PreemptionTest, OneThatGaveWayOftenEnoughHoldsAllItsBlocks) {
  Rig rig({.decode_blocks = 12});
  ASSERT_NO_FATAL_FAILURE(Teach(rig));
  Client immune = Unknown(rig, 20, 60, 60), other = Unknown(rig, 20, 150, 150);  // 5 and 11 blocks
  immune.request.preemptions = kv::kPreemptionsMax;
  immune.request.priority = -100;
  Outcome held;
  const auto landing = rig.decode->Submit(immune.request, &held);
  ASSERT_TRUE(landing.ok()) << landing.status();
  EXPECT_EQ(rig.decode_parts.pool->counts().used, 5);
  // It outgrows what is left: nobody but itself can give way.
  const std::unique_ptr<Flight> flight = rig.Launch(other.request);
  EXPECT_TRUE(absl::IsAborted(flight->decode.Wait()));
  EXPECT_EQ(held.ends(), 0);
  rig.decode->Cancel(landing->number);
  EXPECT_TRUE(absl::IsCancelled(held.Wait()));
  EXPECT_TRUE(flight->prefill.Wait().ok());
}

TEST_F(PreemptionTest, AdmissionInFullKeepsAllThatMayBeNeeded) {
  Rig rig({.decode_blocks = 12, .admits_expected = false});
  for (int i = 0; i < decode::AnswerLengths::kFewest; ++i) {
    Client client = Unknown(rig, 10, 6, 40);
    client.Run(rig);
    ASSERT_TRUE(client.status.ok()) << client.status;
  }
  const Client client = Unknown(rig, 20, 60, 60);
  Outcome held;
  ASSERT_TRUE(rig.decode->Submit(client.request, &held).ok());
  EXPECT_EQ(rig.decode_parts.pool->counts().used, 5);
  const worker::Load load = rig.decode_parts.board.Get();
  EXPECT_EQ(load.expected_output_tokens, 0);
  EXPECT_EQ(load.blocks_spare, 0);
  rig.decode->Stop();
  held.Wait().IgnoreError();
}

}  // namespace
}  // namespace trivium::stages
