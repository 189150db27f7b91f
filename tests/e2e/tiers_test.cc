// What a worker's pool had no room for comes back from the tiers below it, also in its next life,
// and to nobody else than before: told by the rows that engines computed.
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "tests/e2e/cluster.h"

namespace trivium::e2e {
namespace {

constexpr int32_t kBlock = 16, kPrompt = 200, kFull = kPrompt / kBlock * kBlock;

class TiersTest : public testing::Test {
 protected:
  void SetUp() override {
    if (TestModel().empty()) {
      GTEST_SKIP() << "TRIVIUM_TEST_MODEL is not set: no real model to serve";
    }
    const uint64_t seed = std::random_device()();
    std::printf("seed %lu\n", static_cast<unsigned long>(seed));
    random_.seed(seed);
    std::string pattern = testing::TempDir() + "e2e_tiers_XXXXXX";
    folder_ = mkdtemp(pattern.data());
  }
  void TearDown() override {
    cluster_.reset();
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }
  std::string Disk() const { return folder_ + "/blocks"; }
  std::string DiskConfig() const {
    const std::string key = folder_ + "/key";
    WriteFile(key, std::string(32, 'k'));
    std::filesystem::permissions(key, std::filesystem::perms::owner_read);
    return fmt::format("  kv_tiers: {{disk_path: {}, disk_bytes: 64MiB, disk_key_file: {}}}\n",
                       Disk(), key);
  }
  // Pools that hold little more than one prompt.
  void Start(const std::map<std::string, std::string>& engine_config) {
    ClusterOptions options;
    options.prefill_kv_bytes = options.decode_kv_bytes = 8 << 20;
    options.router_config = kTwoTenants;
    options.api_key = "alice-key";
    options.engine_config = engine_config;
    cluster_ = std::make_unique<Cluster>(options);
    const absl::Status started = cluster_->Start();
    ASSERT_TRUE(started.ok()) << started;
  }
  std::vector<int32_t> Ids(int count) {
    std::vector<int32_t> ids;
    for (int i = 0; i < count; ++i) ids.push_back(100 + static_cast<int32_t>(random_() % 40000));
    return ids;
  }
  Answer Ask(const std::vector<int32_t>& ids, int max_tokens = 8) {
    Answer answer = cluster_->Generate(TokensRequest(ids, max_tokens));
    EXPECT_TRUE(answer.status.ok()) << answer.status;
    return answer;
  }
  // Prompts enough to take all blocks of both pools, one after the other.
  void Flood() {
    for (int i = 0; i < 2; ++i) Ask(Ids(300), 2);
  }
  double Metric(const std::string& worker, const std::string& name) {
    return cluster_->MetricSum(worker, name);
  }
  void Await(const std::string& process, const std::string& metric, double value) {
    for (int i = 0; i < 2000; ++i) {
      if (Metric(process, metric) >= value) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    FAIL() << metric << " of " << process << " never came to " << value;
  }
  void KillPrefill(const std::function<void()>& meanwhile) {
    cluster_->worker("prefill", 0).Signal(SIGKILL);
    cluster_->worker("prefill", 0).Wait(std::chrono::seconds(5));
    meanwhile();
    cluster_->Restart("prefill", 0);
    const absl::Status ready = cluster_->WaitReady(1, 1, std::chrono::seconds(30));
    ASSERT_TRUE(ready.ok()) << ready;
  }

  std::mt19937_64 random_;
  std::string folder_;
  std::unique_ptr<Cluster> cluster_;
};

TEST_F(TiersTest, WhatIsOnDiskIsThereInTheNextLifeAndForNobodyElse) {
  Start({{"prefill", DiskConfig()}});
  const std::vector<int32_t> ids = Ids(kPrompt);
  const Answer first = Ask(ids);
  EXPECT_EQ(first.done.usage().cached_prompt_tokens(), 0);
  Flood();
  Await("prefill-0", "trivium_kv_tier_blocks{tier=\"disk\"}", kFull / kBlock + 8);
  KillPrefill([] {});

  cluster_->set_api_key("bob-key");
  const Answer others = Ask(ids);
  EXPECT_EQ(others.ids, first.ids);
  EXPECT_EQ(Metric("prefill-0", "trivium_rows_total"), kPrompt) << "another tenant's was found";
  cluster_->set_api_key("alice-key");
  const Answer again = Ask(ids);
  EXPECT_EQ(again.ids, first.ids);
  EXPECT_EQ(again.logprobs, first.logprobs);
  EXPECT_EQ(Metric("prefill-0", "trivium_rows_total"), kPrompt + kPrompt - kFull);
  EXPECT_EQ(Metric("prefill-0", "trivium_prompt_tokens_total{source=\"loaded\"}"), kFull);
  EXPECT_EQ(again.done.usage().cached_prompt_tokens(), kFull);
  EXPECT_EQ(again.done.served_by().prefill_worker(), "prefill-0");
  Flood();  // the decode worker has it no longer

  KillPrefill([this] {
    // The body of the slot that was written first: the last full block of the prompt.
    std::fstream file(Disk(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(4096 + 100000);
    const int byte = file.get();
    file.seekp(4096 + 100000);
    file.put(static_cast<char>(byte ^ 1));
  });
  const Answer mended = Ask(ids);
  EXPECT_EQ(mended.ids, first.ids);
  EXPECT_EQ(mended.logprobs, first.logprobs);
  EXPECT_EQ(Metric("prefill-0", "trivium_kv_tier_broken_total"), 1);
  EXPECT_EQ(mended.done.usage().cached_prompt_tokens(), kFull - kBlock);
  EXPECT_EQ(Metric("prefill-0", "trivium_rows_total"), kPrompt - kFull + kBlock);
}

// The answer's KV is nowhere but in the decode worker's tier; the router knows.
TEST_F(TiersTest, TheNextTurnIsComputedWhereATierHoldsTheLastAnswer) {
  Start({{"decode", "  kv_tiers: {memory_bytes: 64MiB}\n"}});
  std::vector<int32_t> ids = Ids(100);
  const Answer answer = Ask(ids, 40);
  Flood();
  ids.insert(ids.end(), answer.ids.begin(), answer.ids.end());
  const auto held = static_cast<int32_t>((ids.size() - 1) / kBlock * kBlock);
  const std::vector<int32_t> more = Ids(20);
  ids.insert(ids.end(), more.begin(), more.end());
  // 8 blocks of the first turn and 36 of the flood at the decode worker, hot or not, and 21 of 22
  // at the prefill worker.
  Await("router", "trivium_router_index_block_holders", 8 + 36 + 21);
  std::printf("a block takes %.0f bytes\n",
              Metric("decode-0", "trivium_kv_tier_bytes{tier=\"memory\"}") /
                  Metric("decode-0", "trivium_kv_tier_blocks{tier=\"memory\"}"));
  const Answer next = Ask(ids);
  EXPECT_EQ(next.done.served_by().prefill_worker(), "");
  EXPECT_EQ(next.done.usage().cached_prompt_tokens(), held);
  EXPECT_EQ(Metric("decode-0", "trivium_prompt_tokens_total{source=\"loaded\"}"), held);
  std::printf("and is loaded in %.6f s\n",
              Metric("decode-0", "trivium_kv_tier_load_seconds_total") /
                  Metric("decode-0", "trivium_kv_tier_hits_total"));
  v1::GenerateRequest apart = TokensRequest(ids, 8);
  apart.set_kv_sharing("none");
  EXPECT_EQ(cluster_->Generate(apart).ids, next.ids);
}

}  // namespace
}  // namespace trivium::e2e
