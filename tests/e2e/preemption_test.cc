// Answers of unknown length on a decode pool that cannot hold them all at once: real processes,
// each answer that of its solo run.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <thread>

#include "tests/e2e/cluster.h"

namespace trivium::e2e {
namespace {

constexpr int kRequests = 16, kShort = 8, kPromptTokens = 40, kMaxTokens = 200;
constexpr int64_t kBlockBytes = 16 * 23040;
constexpr int64_t kBlocksInFull = (kPromptTokens + kMaxTokens + 15) / 16;

struct Case {
  v1::GenerateRequest request;
  std::vector<int32_t> wanted;
};

// An answer that a stop token ends, by the time `tokens` have come: nobody can know that before.
Case UnknownLength(Cluster& cluster, std::mt19937_64& random, size_t tokens) {
  std::vector<int32_t> ids(kPromptTokens);
  for (int32_t& id : ids) id = 100 + static_cast<int32_t>(random() % 40000);
  Case one{TokensRequest(ids, static_cast<int>(tokens)), {}};
  // Drawn, so that it does not say the same again and again, and its last ids come late.
  one.request.mutable_sampling()->set_temperature(1);
  one.request.mutable_sampling()->set_seed(random());
  one.request.mutable_sampling()->set_ignore_eos(true);
  const Answer answer = cluster.Generate(one.request);
  EXPECT_TRUE(answer.status.ok()) << answer.status;
  if (answer.ids.size() != tokens) return one;
  auto end = answer.ids.end() - 1;
  while (std::find(answer.ids.begin(), end, *end) != end) --end;
  one.wanted.assign(answer.ids.begin(), end + 1);
  one.request.mutable_sampling()->set_max_tokens(kMaxTokens);
  one.request.mutable_sampling()->add_stop_token_ids(*end);
  return one;
}

TEST(PreemptionTest, AnswersThatOutgrowThePoolAreThoseOfTheirSoloRuns) {
  if (TestModel().empty()) GTEST_SKIP() << "TRIVIUM_TEST_MODEL is not set: no real model to serve";
  ClusterOptions options;
  options.decode_kv_bytes = 4 * kBlocksInFull * kBlockBytes;
  Cluster cluster(options);
  const absl::Status status = cluster.Start();
  ASSERT_TRUE(status.ok()) << status;
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < kShort; ++i) {  // so that decode expects short answers
    const Case one = UnknownLength(cluster, random, 4);
    EXPECT_EQ(cluster.Generate(one.request).ids, one.wanted);
  }
  std::vector<Case> cases;
  for (int i = 0; i < kRequests; ++i) {
    cases.push_back(UnknownLength(cluster, random, 50 + random() % 30));
  }

  std::vector<Answer> answers(kRequests);
  std::vector<std::thread> threads;
  for (int i = 0; i < kRequests; ++i) {
    cases[i].request.set_priority(i % 3 - 1);
    threads.emplace_back([&, i] { answers[i] = cluster.Generate(cases[i].request); });
  }
  for (std::thread& thread : threads) thread.join();
  int preemptions = 0;
  for (int i = 0; i < kRequests; ++i) {
    ASSERT_TRUE(answers[i].status.ok()) << i << ": " << answers[i].status;
    EXPECT_EQ(answers[i].ids, cases[i].wanted) << i;
    EXPECT_EQ(answers[i].done.finish_reason(), "stop");
    EXPECT_EQ(answers[i].done.served_by().attempts(), 1) << "a preemption is no failure";
    EXPECT_LE(answers[i].done.served_by().preemptions(), 3);
    preemptions += answers[i].done.served_by().preemptions();
  }
  EXPECT_EQ(cluster.MetricSum("decode-0", "trivium_requests_total{outcome=\"preempted\"}"),
            preemptions);
  EXPECT_EQ(cluster.MetricSum(
                "router", "trivium_router_retries_total{reason=\"preempted\",stage=\"decode\"}"),
            preemptions);
  EXPECT_GT(preemptions, 0) << "the pool was large enough for all";
  const absl::Status idle = cluster.WaitIdle(std::chrono::seconds(10));
  EXPECT_TRUE(idle.ok()) << idle;
}

}  // namespace
}  // namespace trivium::e2e
