// A burst behind one prefix that one prefill worker holds: the other one pulls it. The holder is
// stopped or killed meanwhile, and the texts stay what they are without any reuse.
#include <gtest/gtest.h>
#include <signal.h>

#include <random>
#include <thread>

#include "tests/e2e/cluster.h"

namespace trivium::e2e {
namespace {

// More of its own than a decode worker computes among its answers.
constexpr int kPrefix = 384, kOwn = 272, kBlock = 16;
constexpr int kBurst = 2;

class PullTest : public testing::Test {
 protected:
  void SetUp() override {
    if (TestModel().empty())
      GTEST_SKIP() << "TRIVIUM_TEST_MODEL is not set: no real model to serve";
    const uint64_t seed = std::random_device()();
    std::printf("seed %lu\n", static_cast<unsigned long>(seed));
    random_.seed(seed);
    ClusterOptions options;
    options.prefill_workers = options.decode_workers = 2;
    options.step_tokens = 64;
    options.router_config = "";
    cluster_ = std::make_unique<Cluster>(options);
    const absl::Status started = cluster_->Start();
    ASSERT_TRUE(started.ok()) << started;
  }

  std::vector<int32_t> RandomIds(int count) {
    std::vector<int32_t> ids;
    for (int i = 0; i < count; ++i) ids.push_back(100 + static_cast<int32_t>(random_() % 40000));
    return ids;
  }
  double Holders() { return cluster_->MetricSum("router", "trivium_router_index_block_holders"); }
  double Pulled() {
    double tokens = 0;
    for (const char* name : {"prefill-0", "prefill-1"}) {
      tokens += cluster_->MetricSum(name, "trivium_prompt_tokens_total{source=\"received\"}");
    }
    return tokens;
  }
  static bool Eventually(const std::function<bool()>& done) {
    for (int i = 0; i < 2000; ++i) {
      if (done()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return false;
  }

  // All at once; `fault` meanwhile.
  std::vector<Answer> RunAll(const std::vector<v1::GenerateRequest>& requests,
                             const std::function<void()>& fault = nullptr) {
    std::vector<Answer> answers(requests.size());
    std::vector<std::thread> threads;
    for (size_t i = 0; i < requests.size(); ++i) {
      threads.emplace_back([&, i] { answers[i] = cluster_->Generate(requests[i]); });
    }
    if (fault) fault();
    for (std::thread& thread : threads) thread.join();
    return answers;
  }

  // A prefix that one prefill worker has computed, and a burst of requests behind it. Gives that
  // worker's number.
  int Warm(std::vector<v1::GenerateRequest>* burst) {
    const std::vector<int32_t> prefix = RandomIds(kPrefix);
    for (int i = 0; i < kBurst; ++i) {
      std::vector<int32_t> ids = prefix;
      const std::vector<int32_t> own = RandomIds(kOwn);
      ids.insert(ids.end(), own.begin(), own.end());
      burst->push_back(TokensRequest(ids, 8));
    }
    const double before = Holders();
    const Answer first = cluster_->Generate(TokensRequest(prefix, 1));
    EXPECT_TRUE(first.status.ok()) << first.status;
    EXPECT_TRUE(Eventually([&] { return Holders() >= before + kPrefix / kBlock; }));
    return first.done.served_by().prefill_worker() == "prefill-0" ? 0 : 1;
  }

  void ExpectAsWithoutReuse(const std::vector<v1::GenerateRequest>& burst,
                            const std::vector<Answer>& got) {
    std::vector<v1::GenerateRequest> apart = burst;
    for (v1::GenerateRequest& request : apart) request.set_kv_sharing("none");
    const std::vector<Answer> want = RunAll(apart);
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_TRUE(want[i].status.ok()) << want[i].status;
      ASSERT_TRUE(got[i].status.ok()) << "request " << i << ": " << got[i].status;
      EXPECT_EQ(got[i].ids, want[i].ids) << "request " << i;
      EXPECT_EQ(got[i].logprobs, want[i].logprobs) << "request " << i;
    }
    const absl::Status idle = cluster_->WaitIdle(std::chrono::seconds(30));
    EXPECT_TRUE(idle.ok()) << idle;
  }
  void ExpectReady() {
    const absl::Status ready = cluster_->WaitReady(2, 2, std::chrono::seconds(60));
    ASSERT_TRUE(ready.ok()) << ready;
  }

  std::mt19937_64 random_;
  std::unique_ptr<Cluster> cluster_;
};

TEST_F(PullTest, ABurstIsServedByBothAndNoFaultOfTheHolderIsSeen) {
  std::vector<v1::GenerateRequest> calm;
  Warm(&calm);
  const std::vector<Answer> undisturbed = RunAll(calm);
  EXPECT_GE(Pulled(), kPrefix);
  EXPECT_GE(cluster_->MetricSum("router", "trivium_router_pulls_total{reason=\"whole\"}"), 1);
  for (const Answer& answer : undisturbed) {
    EXPECT_EQ(answer.done.usage().cached_prompt_tokens(), kPrefix);
  }
  ExpectAsWithoutReuse(calm, undisturbed);

  std::vector<v1::GenerateRequest> stopped;
  const int holder = Warm(&stopped);
  // The router does not know of it yet, and has others ask it.
  cluster_->worker("prefill", holder).Signal(SIGSTOP);
  const std::vector<Answer> without = RunAll(stopped);
  cluster_->worker("prefill", holder).Signal(SIGCONT);
  ExpectReady();
  ExpectAsWithoutReuse(stopped, without);

  std::vector<v1::GenerateRequest> killed;
  const int victim = Warm(&killed);
  const std::string other = Cluster::Name("prefill", 1 - victim);
  const std::vector<Answer> survived = RunAll(killed, [&] {
    Eventually([&] { return cluster_->MetricSum(other, "trivium_transfer_landings") > 0; });
    cluster_->worker("prefill", victim).Signal(SIGKILL);
    cluster_->worker("prefill", victim).Wait(std::chrono::seconds(5));
  });
  cluster_->Restart("prefill", victim);
  ExpectReady();
  ExpectAsWithoutReuse(killed, survived);
}

}  // namespace
}  // namespace trivium::e2e
