// Ten times more requests than the pools hold: all are served, each as if it were alone, and
// nothing grows.
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <random>
#include <thread>

#include "tests/e2e/cluster.h"

namespace trivium::e2e {
namespace {

constexpr int kConcurrent = 200, kDistinct = 40, kPromptTokens = 60, kOutputTokens = 12;
constexpr int64_t kBlockBytes = 16 * 23040;
constexpr int64_t kBlocksPerRequest = (kPromptTokens + kOutputTokens + 15) / 16;

std::vector<v1::GenerateRequest> DistinctRequests(uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < kDistinct; ++i) {
    std::vector<int32_t> ids(kPromptTokens - random() % 16);
    for (int32_t& id : ids) id = 100 + static_cast<int32_t>(random() % 40000);
    requests.push_back(TokensRequest(ids, kOutputTokens));
  }
  return requests;
}

int64_t ResidentBytes(Cluster& cluster) {
  return cluster.router().ResidentBytes() + cluster.worker("prefill", 0).ResidentBytes() +
         cluster.worker("decode", 0).ResidentBytes();
}

TEST(PressureTest, TwoHundredRequestsOnPoolsForTwenty) {
  if (TestModel().empty()) GTEST_SKIP() << "TRIVIUM_TEST_MODEL is not set: no real model to serve";
  ClusterOptions options;
  options.prefill_kv_bytes = options.decode_kv_bytes = 20 * kBlocksPerRequest * kBlockBytes;
  options.requests_max = 64;
  Cluster cluster(options);
  const absl::Status status = cluster.Start();
  ASSERT_TRUE(status.ok()) << status;

  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  const std::vector<v1::GenerateRequest> requests = DistinctRequests(seed);
  std::vector<std::vector<int32_t>> solo;
  for (const v1::GenerateRequest& request : requests) {
    const Answer answer = cluster.Generate(request);
    ASSERT_TRUE(answer.status.ok()) << answer.status;
    solo.push_back(answer.ids);
  }

  std::vector<Answer> answers(kConcurrent);
  std::atomic<int> finished{0};
  std::atomic<int64_t> resident_at_100{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < kConcurrent; ++i) {
    threads.emplace_back([&, i] {
      answers[i] = cluster.Generate(requests[i % kDistinct]);
      if (++finished == kConcurrent / 2) resident_at_100 = ResidentBytes(cluster);
    });
  }
  for (std::thread& thread : threads) thread.join();
  const int64_t growth = ResidentBytes(cluster) - resident_at_100;
  for (int i = 0; i < kConcurrent; ++i) {
    ASSERT_TRUE(answers[i].status.ok()) << i << ": " << answers[i].status;
    EXPECT_EQ(answers[i].ids, solo[i % kDistinct]) << i;
  }
  RecordProperty("resident_growth_bytes", std::to_string(growth));
  EXPECT_LE(growth, int64_t{8} << 20);
  const absl::Status idle = cluster.WaitIdle(std::chrono::seconds(10));
  EXPECT_TRUE(idle.ok()) << idle;
}

}  // namespace
}  // namespace trivium::e2e
