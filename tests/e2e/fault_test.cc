// Two prefill and two decode workers under load while one of them is killed, or stopped and
// continued. The client must not notice: every text equals the undisturbed run's.
#include <gtest/gtest.h>
#include <signal.h>

#include <array>
#include <atomic>
#include <random>
#include <thread>

#include "tests/e2e/cluster.h"

namespace trivium::e2e {
namespace {

constexpr int kRequests = 10;

// Half greedy, half seeded, some with penalties, which a retry has to count anew; long prompts, so
// that transfers overlap computing.
std::vector<v1::GenerateRequest> Load(uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < kRequests; ++i) {
    std::vector<int32_t> ids(150 + random() % 250);
    for (int32_t& id : ids) id = 100 + static_cast<int32_t>(random() % 40000);
    requests.push_back(TokensRequest(ids, 24 + static_cast<int>(random() % 16)));
    if (i % 4 < 2) {
      requests.back().mutable_sampling()->set_repetition_penalty(1.2f);
      requests.back().mutable_sampling()->set_frequency_penalty(0.5f);
      requests.back().mutable_sampling()->set_prompt_logprobs(0);
    }
    if (i % 2 == 0) continue;
    requests.back().mutable_sampling()->set_temperature(0.9f);
    requests.back().mutable_sampling()->set_seed(random());
  }
  return requests;
}

class FaultTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (TestModel().empty())
      GTEST_SKIP() << "TRIVIUM_TEST_MODEL is not set: no real model to serve";
    ClusterOptions options;
    options.numerics = GetParam();
    options.prefill_workers = options.decode_workers = 2;
    options.step_tokens = 64;
    if (reuses_) options.router_config = "";  // each tenant finds its own KV
    cluster_ = std::make_unique<Cluster>(options);
    const absl::Status status = cluster_->Start();
    ASSERT_TRUE(status.ok()) << status;
  }

  // Runs all requests at once; `tokens_` counts what has come so far.
  std::vector<Answer> RunAll(const std::vector<v1::GenerateRequest>& requests,
                             const std::function<void()>& fault) {
    tokens_ = 0;
    std::vector<Answer> answers(requests.size());
    std::vector<std::thread> threads;
    for (size_t i = 0; i < requests.size(); ++i) {
      threads.emplace_back(
          [&, i] { answers[i] = cluster_->Generate(requests[i], [this](int) { ++tokens_; }); });
    }
    if (fault) fault();
    for (std::thread& thread : threads) thread.join();
    return answers;
  }

  // Waits until a worker of the role is at work for this load, the router chooses which: it has sent
  // or received KV, or, where little of that moves, computed rows.
  int AwaitBusy(const std::string& role, const std::array<double, 2>& work_before) {
    for (int i = 0; i < 3000; ++i) {
      for (const int index : {0, 1}) {
        if (Work(role, index) > work_before[index]) return index;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    ADD_FAILURE() << "no " << role << " worker did anything";
    return 0;
  }
  std::array<double, 2> Work(const std::string& role) { return {Work(role, 0), Work(role, 1)}; }
  double Work(const std::string& role, int index) {
    return cluster_->MetricSum(Cluster::Name(role, index), reuses_ ? "trivium_rows_total"
                                                           : role == "prefill"
                                                               ? "trivium_kv_sent_bytes_total"
                                                               : "trivium_kv_received_bytes_total");
  }
  void ExpectFaultsUnnoticed();

  void ExpectReady() {
    const absl::Status ready = cluster_->WaitReady(2, 2, std::chrono::seconds(60));
    ASSERT_TRUE(ready.ok()) << ready;
  }

  void Expect(const std::vector<Answer>& got, const std::vector<Answer>& want, const char* what) {
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_TRUE(got[i].status.ok()) << what << ", request " << i << ": " << got[i].status;
      EXPECT_EQ(got[i].ids.size(), want[i].ids.size()) << what << ", request " << i;
      ASSERT_EQ(got[i].prompt.size(), want[i].prompt.size()) << what << ", request " << i;
      if (GetParam() == "batch_invariant") {
        for (size_t j = 0; j < want[i].prompt.size(); ++j) {
          EXPECT_EQ(got[i].prompt[j].index(), static_cast<int>(j)) << what << ", request " << i;
          EXPECT_EQ(got[i].prompt[j].logprob(), want[i].prompt[j].logprob()) << what;
        }
        EXPECT_EQ(got[i].ids, want[i].ids) << what << ", request " << i;
        EXPECT_EQ(got[i].text, want[i].text) << what << ", request " << i;
      }
    }
    const absl::Status idle = cluster_->WaitIdle(std::chrono::seconds(30));
    EXPECT_TRUE(idle.ok()) << what << ": " << idle;
  }

  bool reuses_ = false;
  std::unique_ptr<Cluster> cluster_;
  std::atomic<int> tokens_{0};
};

void FaultTest::ExpectFaultsUnnoticed() {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  const std::vector<v1::GenerateRequest> load = Load(seed);
  const std::vector<Answer> calm = RunAll(load, nullptr);
  Expect(calm, calm, "undisturbed");

  for (const std::string role : {"prefill", "decode"}) {
    const std::array<double, 2> before = Work(role);
    int index = 0;
    const std::vector<Answer> killed = RunAll(load, [&] {
      index = AwaitBusy(role, before);
      cluster_->worker(role, index).Signal(SIGKILL);
      cluster_->worker(role, index).Wait(std::chrono::seconds(5));
    });
    cluster_->Restart(role, index);
    ExpectReady();
    Expect(killed, calm, ("SIGKILL of " + role).c_str());
  }
  for (const std::string role : {"prefill", "decode"}) {
    const std::array<double, 2> before = Work(role);
    const std::vector<Answer> stopped = RunAll(load, [&] {
      const int index = AwaitBusy(role, before);
      cluster_->worker(role, index).Signal(SIGSTOP);
      std::this_thread::sleep_for(std::chrono::seconds(4));  // longer than every lease
      cluster_->worker(role, index).Signal(SIGCONT);
    });
    ExpectReady();
    Expect(stopped, calm, ("SIGSTOP of " + role).c_str());
  }
}

TEST_P(FaultTest, ClientsNoticeNeitherKillNorStop) { ExpectFaultsUnnoticed(); }

TEST_P(FaultTest, AMissingStageIsNamed) {
  for (const std::string role : {"decode", "prefill"}) {
    for (int i = 0; i < 2; ++i) {
      cluster_->worker(role, i).Signal(SIGKILL);
      cluster_->worker(role, i).Wait(std::chrono::seconds(5));
    }
    const Answer answer =
        cluster_->Generate(TextRequest("Hello", 4), nullptr, std::chrono::seconds(5));
    EXPECT_EQ(answer.status.code(), absl::StatusCode::kUnavailable) << answer.status;
    EXPECT_NE(answer.status.message().find(role), absl::string_view::npos) << answer.status;
    for (int i = 0; i < 2; ++i) cluster_->Restart(role, i);
    ExpectReady();
    EXPECT_TRUE(cluster_->Generate(TextRequest("Hello", 4)).status.ok());
  }
}

INSTANTIATE_TEST_SUITE_P(Numerics, FaultTest, testing::Values("batch_invariant", "fast"),
                         [](const auto& test) { return test.param; });

// From the second round on most prompts are found, and what is lost with a worker is not.
class FaultReuseTest : public FaultTest {
 protected:
  FaultReuseTest() { reuses_ = true; }
};

TEST_P(FaultReuseTest, ClientsNoticeNeitherKillNorStop) {
  ExpectFaultsUnnoticed();
  const auto cached = [&](const std::string& worker) {
    return cluster_->MetricSum(worker, "trivium_prompt_tokens_total{source=\"cached\"}");
  };
  EXPECT_GT(cached("decode-0") + cached("decode-1"), 0);
}

INSTANTIATE_TEST_SUITE_P(Numerics, FaultReuseTest, testing::Values("batch_invariant"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace trivium::e2e
