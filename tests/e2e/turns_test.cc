// The turns of one conversation: each begins with what the one before has left on the workers, and
// gives the text that it would give anywhere else.
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "tests/e2e/cluster.h"

namespace trivium::e2e {
namespace {

constexpr int32_t kBlock = 16;

class TurnsTest : public testing::Test {
 protected:
  void SetUp() override {
    if (TestModel().empty())
      GTEST_SKIP() << "TRIVIUM_TEST_MODEL is not set: no real model to serve";
    const uint64_t seed = std::random_device()();
    std::printf("seed %lu\n", static_cast<unsigned long>(seed));
    random_.seed(seed);
    ClusterOptions options;
    options.router_config = "";
    cluster_ = std::make_unique<Cluster>(options);
    const absl::Status started = cluster_->Start();
    ASSERT_TRUE(started.ok()) << started;
  }
  void Add(int count) {
    for (int i = 0; i < count; ++i) ids_.push_back(100 + static_cast<int32_t>(random_() % 40000));
  }
  Answer Ask(const std::string& kv_sharing = "") {
    v1::GenerateRequest request = TokensRequest(ids_, 40);
    request.set_kv_sharing(kv_sharing);
    return cluster_->Generate(request);
  }
  // The router hears of new blocks within some 20 ms.
  void AwaitIndexed(double block_holders) {
    for (int i = 0; i < 2000; ++i) {
      if (cluster_->MetricSum("router", "trivium_router_index_block_holders") >= block_holders) {
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    FAIL() << "the router never heard of the blocks";
  }

  std::mt19937_64 random_;
  std::vector<int32_t> ids_;
  std::unique_ptr<Cluster> cluster_;
};

TEST_F(TurnsTest, TheNextTurnFindsTheLastAnswer) {
  Add(300);
  Answer answer = Ask();
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.done.served_by().prefill_worker(), "prefill-0");
  EXPECT_EQ(answer.done.usage().cached_prompt_tokens(), 0);
  int32_t blocks_before = 300 / kBlock;  // of the prompt, on both workers
  for (int turn = 0; turn < 4; ++turn) {
    const auto before = static_cast<int32_t>(ids_.size());
    ids_.insert(ids_.end(), answer.ids.begin(), answer.ids.end());
    const int32_t held = (before + 39) / kBlock;  // the last token's KV was never needed
    AwaitIndexed(blocks_before + held);
    Add(30);
    answer = Ask();
    ASSERT_TRUE(answer.status.ok()) << answer.status;
    EXPECT_EQ(answer.done.usage().cached_prompt_tokens(), held * kBlock) << "turn " << turn;
    // Where the answer lies, or at the prefill worker, which pulls it: measured speeds decide.
    const bool is_local = answer.done.served_by().prefill_worker().empty();
    EXPECT_EQ(answer.done.served_by().kv_bytes_moved() == 0, is_local) << "turn " << turn;
    EXPECT_EQ(answer.done.usage().prompt_tokens(), static_cast<int32_t>(ids_.size()));
    const Answer apart = Ask("none");
    EXPECT_EQ(apart.done.usage().cached_prompt_tokens(), 0);
    EXPECT_EQ(apart.done.served_by().prefill_worker(), "prefill-0");
    EXPECT_EQ(answer.ids, apart.ids) << "reuse changed the answer of turn " << turn;
    EXPECT_EQ(answer.logprobs, apart.logprobs);
  }
  const absl::Status idle = cluster_->WaitIdle(std::chrono::seconds(10));
  EXPECT_TRUE(idle.ok()) << idle;
}

}  // namespace
}  // namespace trivium::e2e
