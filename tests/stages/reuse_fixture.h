// Requests in sharing domains, and the rows that were computed for them. Thread-safety: none.
#pragma once

#include <gtest/gtest.h>

#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "tests/stages/rig.h"

namespace trivium::stages {

inline constexpr int32_t kAll = INT32_MAX;

inline kv::KeySpace Space() { return {.model = "tiny", .numerics_class = "test"}; }

inline kv::Domain DomainOf(uint8_t name, int32_t token_end = kAll) {
  kv::Domain domain{.key = {}, .token_end = token_end};
  domain.key.bytes.fill(name);
  return domain;
}

inline engine::SamplingParams Seeded(uint64_t seed, int32_t max_tokens) {
  return {.temperature = 0.9f,
          .seed = seed,
          .max_tokens = max_tokens,
          .ignore_eos = true,
          .logprobs = 1};
}

inline int64_t RowsOf(const WorkerParts& parts) {
  int64_t rows = 0;
  for (const StepLog::Step& step : parts.log.steps()) rows += step.load.rows;
  return rows;
}

class ReuseTest : public testing::Test {
 protected:
  ReuseTest() {
    const uint32_t seed = std::random_device()();
    std::printf("seed %u\n", seed);
    random_.seed(seed);
  }

  static worker::StageRequest In(std::vector<kv::Domain> domains, worker::StageRequest request,
                                 const kv::KeySpace& space = Space(),
                                 std::vector<kv::MediaSpan> media = {}) {
    auto chain = kv::BlockChain::Create(space, std::move(domains), std::move(media));
    TRIVIUM_CHECK(chain.ok(), "{}", Message(chain.status()));
    chain->Append(request.token_ids);
    request.chain = *std::move(chain);
    return request;
  }

  // Rows that the prefill worker computed for it; the text has to be that of a lone engine.
  int64_t Computed(Rig& rig, const worker::StageRequest& request) {
    const int64_t before = RowsOf(rig.prefill_parts);
    ExpectRight(rig, request, rig.Run(request));
    return RowsOf(rig.prefill_parts) - before;
  }

  static void ExpectRight(Rig& rig, const worker::StageRequest& request,
                          const absl::StatusOr<std::vector<worker::OutputToken>>& got) {
    ASSERT_TRUE(got.ok()) << got.status();
    const engine::Generation want = rig.Local(request);
    ASSERT_EQ(got->size(), want.tokens.size());
    for (size_t i = 0; i < got->size(); ++i) {
      ASSERT_EQ((*got)[i].token.id, want.tokens[i].id) << "token " << i;
      ASSERT_EQ((*got)[i].token.logprob, want.tokens[i].logprob) << "token " << i;
    }
  }

  static std::vector<int32_t> Joined(std::vector<int32_t> a, const std::vector<int32_t>& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  }

  // Threads that ask for prompts with few beginnings, in pools too small for them; then every text
  // is checked.
  void RunUnderPressure(Rig& rig);

  std::mt19937 random_;
};

inline void ReuseTest::RunUnderPressure(Rig& rig) {
  std::mutex mutex;
  std::vector<std::pair<worker::StageRequest, std::vector<worker::OutputToken>>> ran;
  std::vector<std::vector<int32_t>> beginnings;
  for (int i = 0; i < 4; ++i) beginnings.push_back(rig.RandomPrompt(random_, 16 + random_() % 100));
  constexpr int kThreads = 4, kRounds = 12;
  std::vector<std::thread> threads;
  std::vector<std::mt19937> randoms;
  for (int t = 0; t < kThreads; ++t) randoms.emplace_back(random_());
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937& random = randoms[static_cast<size_t>(t)];
      for (int round = 0; round < kRounds; ++round) {
        const auto tenant = static_cast<uint8_t>(random() % 2);
        const auto& beginning = beginnings[random() % beginnings.size()];
        auto request =
            In({DomainOf(tenant)},
               rig.Request(Joined(beginning, rig.RandomPrompt(random, 1 + random() % 40)),
                           Seeded(random(), 10)));
        request.prefills = random() % 3 == 0;
        auto got = rig.Run(request);
        while (absl::IsResourceExhausted(got.status())) {
          std::this_thread::yield();
          got = rig.Run(request);
        }
        EXPECT_TRUE(got.ok()) << got.status();
        std::lock_guard lock(mutex);
        ran.emplace_back(std::move(request), *std::move(got));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& [request, got] : ran) ExpectRight(rig, request, got);
  EXPECT_TRUE(rig.prefill_parts.WaitAllFree());
  EXPECT_TRUE(rig.decode_parts.WaitAllFree());
}

}  // namespace trivium::stages
