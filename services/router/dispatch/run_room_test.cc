// Requests that wait for room, get it, and have it taken back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "common/kv/answer_room.h"
#include "services/router/dispatch/request_run_fixture.h"

namespace trivium::router {
namespace {

using testing::HasSubstr;

TEST_F(RequestRunTest, NoRoomIsNoFailedAttemptAndIsAskedAgainOnlyAfterAReport) {
  DispatchFixture fixture({.sim = {.prefill_workers = 1, .decode_workers = 1}, .attempts_max = 1});
  fixture.cluster.SetRefusing(1, ResourceExhausted("no blocks"));
  const Client client = Start(fixture, DispatchFixture::Request(Prompt(random_, 5), 4));
  EXPECT_EQ(fixture.cluster.calls_opened(), 1);
  for (int i = 0; i < 100; ++i) {
    fixture.clock.Advance(std::chrono::milliseconds(1));
    fixture.dispatcher.Tick();
  }
  EXPECT_EQ(fixture.cluster.calls_opened(), 1);
  fixture.cluster.Report(1);
  EXPECT_EQ(fixture.cluster.calls_opened(), 2);
  fixture.cluster.SetRefusing(1, absl::OkStatus());
  fixture.cluster.Report(1);
  RunToEnd(fixture, client, random_);
  ExpectRight(fixture, client);
  EXPECT_EQ(client.sink->Get().done->served_by().attempts(), 1);
}

// One keeps its blocks for other tenants; the other one is away for a while.
TEST_F(RequestRunTest, AWorkerThatKeepsTooMuchIsNotTheLast) {
  DispatchFixture fixture({.sim = {.prefill_workers = 1, .decode_workers = 2}});
  fixture.cluster.Kill(2);
  fixture.cluster.SetRefusing(1, FailedPrecondition("9 of 10 blocks are kept by floors"));
  const Client client = Start(fixture, DispatchFixture::Request(Prompt(random_, 5), 4));
  EXPECT_EQ(fixture.cluster.calls_opened(), 1);
  EXPECT_FALSE(client.sink->has_ended());
  EXPECT_EQ(fixture.dispatcher.Workers()[1].state(), "ready") << "it is well";
  fixture.cluster.Restart(2);
  RunToEnd(fixture, client, random_);
  ExpectRight(fixture, client);
  EXPECT_EQ(client.sink->Get().done->served_by().decode_worker(), "decode-2");
}

// Steps all calls until some decode call has been preempted.
void PreemptOnce(DispatchFixture& fixture, std::mt19937_64& random) {
  for (int i = 0; i < 100000; ++i) {
    if (!fixture.cluster.StepRandomCall(random, 0)) fixture.Pass(kTick);
    if (fixture.cluster.Preempt()) return;
  }
  FAIL() << "no decode call has ever sent a token";
}

TEST_F(RequestRunTest, PreemptionIsNoFailedAttemptAndIsBounded) {
  DispatchFixture fixture({.sim = {.prefill_workers = 1, .decode_workers = 1}, .attempts_max = 1});
  RunRequest request = DispatchFixture::Request(Prompt(random_, 20), 40);
  request.sampling.set_ignore_eos(true);
  const Client client = Start(fixture, request);
  for (int i = 0; i < kv::kPreemptionsMax; ++i) PreemptOnce(fixture, random_);
  RunToEnd(fixture, client, random_);
  ExpectRight(fixture, client);
  EXPECT_EQ(client.sink->Get().done->served_by().attempts(), 1);
  EXPECT_EQ(client.sink->Get().done->served_by().preemptions(), kv::kPreemptionsMax);
  const std::string page = fixture.registry.Text();
  EXPECT_THAT(page, HasSubstr("trivium_router_retries_total{reason=\"preempted\",stage="
                              "\"decode\"} 3"));

  // A worker that goes on with it has failed.
  const Client again = Start(fixture, request);
  for (int i = 0; i <= kv::kPreemptionsMax; ++i) PreemptOnce(fixture, random_);
  ASSERT_TRUE(again.sink->has_ended());
  EXPECT_THAT(Message(*again.sink->Get().error), HasSubstr("1 attempts failed; the last: decode"));
  ExpectIdle(fixture, random_);
}

TEST_F(RequestRunTest, APreemptedRequestThatWaitsCanBeCancelledAndHasItsDeadline) {
  for (const bool is_cancelled : {true, false}) {
    DispatchFixture fixture({.sim = {.prefill_workers = 1, .decode_workers = 1}});
    RunRequest request = DispatchFixture::Request(Prompt(random_, 20), 40);
    request.sampling.set_ignore_eos(true);
    request.deadline = fixture.clock.Now() + std::chrono::seconds(10);
    const Client client = Start(fixture, request);
    PreemptOnce(fixture, random_);
    EXPECT_EQ(fixture.dispatcher.counts().waiting, 1) << "placed before the worker has reported";
    EXPECT_FALSE(client.sink->Get().ids.empty());
    if (is_cancelled) client.run->Cancel();
    fixture.cluster.SetRefusing(1, ResourceExhausted("no blocks"));
    if (!is_cancelled) fixture.Pass(std::chrono::seconds(11));
    ASSERT_TRUE(client.sink->has_ended());
    EXPECT_EQ(client.sink->Get().error->code(),
              is_cancelled ? absl::StatusCode::kCancelled : absl::StatusCode::kDeadlineExceeded);
    fixture.cluster.SetRefusing(1, absl::OkStatus());
    ExpectIdle(fixture, random_);
  }
}

// Whatever took its place may take long; the client has half of an answer.
TEST_F(RequestRunTest, ARequestThatHasBegunOutlastsTheQueuesTimeout) {
  for (const bool is_preempted : {true, false}) {
    DispatchFixture fixture({.sim = {.prefill_workers = 1, .decode_workers = 2},
                             .queue = {.timeout = std::chrono::seconds(5)}});
    RunRequest request = DispatchFixture::Request(Prompt(random_, 20), 40);
    request.sampling.set_ignore_eos(true);
    const Client client = Start(fixture, request);
    while (client.sink->Get().ids.size() < 5) fixture.cluster.StepRandomCall(random_, 0);
    for (const WorkerIndex decode : {1u, 2u}) {
      fixture.cluster.SetRefusing(decode, ResourceExhausted("no blocks"));
    }
    is_preempted ? PreemptOnce(fixture, random_) : fixture.cluster.Kill(2);
    const Client young = Start(fixture, DispatchFixture::Request(Prompt(random_, 5), 4));
    fixture.Pass(std::chrono::seconds(20));
    EXPECT_FALSE(client.sink->has_ended());
    ASSERT_TRUE(young.sink->has_ended());
    EXPECT_EQ(young.sink->Get().error->code(), absl::StatusCode::kResourceExhausted);
    for (const WorkerIndex decode : {1u, 2u}) fixture.cluster.SetRefusing(decode, absl::OkStatus());
    RunToEnd(fixture, client, random_);
    ExpectRight(fixture, client);
    ExpectIdle(fixture, random_);
  }
}

TEST_F(RequestRunTest, AWaitingRequestThatWasPreemptedIsNotOvertaken) {
  DispatchFixture fixture({.sim = {.prefill_workers = 1, .decode_workers = 1, .decode_blocks = 4}});
  RunRequest request = DispatchFixture::Request(Prompt(random_, 20), 40);
  request.sampling.set_ignore_eos(true);
  const Client old = Start(fixture, request);
  PreemptOnce(fixture, random_);
  const Client young = Start(fixture, DispatchFixture::Request(Prompt(random_, 5), 4));
  RunToEnd(fixture, old, random_);
  EXPECT_TRUE(young.sink->Get().ids.empty()) << "the pool held the older one alone";
  RunToEnd(fixture, young, random_);
  ExpectRight(fixture, old);
  ExpectRight(fixture, young);
}

TEST_F(RequestRunTest, QueueIsBoundedAndTimesOut) {
  DispatchFixture fixture({.sim = {.decode_workers = 1, .decode_blocks = 2},
                           .queue = {.requests_max = 1, .timeout = std::chrono::seconds(5)}});
  const auto request = [&] { return DispatchFixture::Request(Prompt(random_, 20), 12); };
  const Client served = Start(fixture, request()), waits = Start(fixture, request()),
               refused = Start(fixture, request());
  EXPECT_EQ(fixture.cluster.calls_opened(), 1);
  EXPECT_EQ(refused.run, nullptr);
  ASSERT_TRUE(refused.sink->has_ended());
  EXPECT_EQ(refused.sink->Get().error->code(), absl::StatusCode::kResourceExhausted);
  fixture.Pass(std::chrono::seconds(6));
  ASSERT_TRUE(waits.sink->has_ended());
  EXPECT_EQ(waits.sink->Get().error->code(), absl::StatusCode::kResourceExhausted);
  RunToEnd(fixture, served, random_);
  ExpectRight(fixture, served);
  const Client large = Start(fixture, DispatchFixture::Request(Prompt(random_, 40), 12));
  ASSERT_TRUE(large.sink->has_ended());
  EXPECT_EQ(large.sink->Get().error->code(), absl::StatusCode::kInvalidArgument);
  ExpectIdle(fixture, random_);
}

}  // namespace
}  // namespace trivium::router
