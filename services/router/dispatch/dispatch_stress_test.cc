// The same simulated cluster driven from several threads at once: events, reports, timers, faults,
// submissions and cancellations cross each other. Made for TSan; checks the answers all the same.
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

#include "services/router/dispatch/dispatch_fixture.h"

namespace trivium::router {
namespace {

constexpr int kClientThreads = 3, kRequestsPerThread = 400, kStageThreads = 3;

struct Stress {
  explicit Stress(uint64_t run_seed)
      : seed(run_seed),
        fixture({.sim = {.decode_blocks = 30, .prefill_blocks = 30},
                 .attempts_max = 100000,
                 .queue = {.requests_max = 1000,
                           .timeout = std::chrono::hours(1),
                           .stage_missing_timeout = std::chrono::hours(1)}}) {}

  void Stages(int thread) {
    std::mt19937_64 random(seed + 100 + thread);
    while (!is_over) {
      if (!fixture.cluster.StepRandomCall(random, 0.02)) std::this_thread::yield();
    }
  }
  void Time() {
    std::mt19937_64 random(seed + 200);
    while (!is_over) {
      fixture.Pass(Dispatcher::kTickInterval);
      fixture.dispatcher.Workers();
      const WorkerIndex worker = random() % fixture.cluster.worker_count();
      if (random() % 64 == 0) fixture.cluster.Kill(worker);
      if (random() % 64 == 1) fixture.cluster.SetStopped(worker, true);
      if (random() % 4 == 0) {
        fixture.cluster.Restart(worker);
        fixture.cluster.SetStopped(worker, false);
      }
      std::this_thread::yield();
    }
  }
  void Clients(int thread) {
    std::mt19937_64 random(seed + 300 + thread);
    for (int i = 0; i < kRequestsPerThread; ++i) {
      std::vector<int32_t> ids(1 + random() % 60);
      for (int32_t& id : ids) id = 3 + static_cast<int32_t>(random() % 300);
      RunRequest request =
          DispatchFixture::Request(std::move(ids), 1 + static_cast<int>(random() % 20));
      request.sampling.set_temperature(1);
      if (random() % 4 == 0) request.choices = 2 + static_cast<int>(random() % 3);
      const bool cancels = random() % 8 == 0;
      const auto sink = std::make_shared<RecordingSink>();
      const auto run = fixture.dispatcher.Submit(request, sink);
      ASSERT_NE(run, nullptr);
      if (cancels) run->Cancel();
      while (!sink->has_ended()) std::this_thread::yield();
      RecordingSink::Record record = sink->Get();
      if (!record.done.has_value()) {
        EXPECT_TRUE(cancels && absl::IsCancelled(*record.error)) << *record.error;
        continue;
      }
      for (int32_t choice = 0; choice < request.choices; ++choice) {
        const DispatchFixture::Wanted wanted = fixture.Want(request, choice);
        const RecordingSink::Choice& got = choice == 0 ? record : record.others[choice];
        EXPECT_EQ(got.ids, wanted.ids);
        EXPECT_EQ(got.text, wanted.text);
      }
    }
  }

  const uint64_t seed;
  DispatchFixture fixture;
  std::atomic<bool> is_over{false};
};

TEST(DispatchStressTest, AnswersAreRightWhenEverythingHappensAtOnce) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  Stress stress(seed);
  std::vector<std::thread> clients, others;
  others.emplace_back([&] { stress.Time(); });
  for (int i = 0; i < kStageThreads; ++i) others.emplace_back([&, i] { stress.Stages(i); });
  for (int i = 0; i < kClientThreads; ++i) clients.emplace_back([&, i] { stress.Clients(i); });
  for (std::thread& thread : clients) thread.join();
  stress.is_over = true;
  for (std::thread& thread : others) thread.join();

  stress.fixture.Pass(std::chrono::seconds(3));
  EXPECT_EQ(stress.fixture.cluster.calls_not_cancelled(), 0);
  EXPECT_TRUE(stress.fixture.dispatcher.AwaitClosed(Duration(0)));
}

}  // namespace
}  // namespace trivium::router
