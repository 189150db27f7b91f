// Requests over simulated stages: faults in every order, chosen at random, and the single rules one
// by one. The client sees each index once and the right text, or one clear error.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "services/router/dispatch/request_run_fixture.h"

namespace trivium::router {
namespace {

using testing::HasSubstr;

RunRequest RandomRequest(std::mt19937_64& random) {
  RunRequest request = DispatchFixture::Request(Prompt(random, 1 + static_cast<int>(random() % 90)),
                                                1 + static_cast<int>(random() % 40));
  request.sampling.set_ignore_eos(random() % 2 == 0);
  request.sampling.set_temperature(random() % 2 == 0 ? 1 : 0);
  if (random() % 2 == 0) request.choices = 1 + static_cast<int>(random() % 3);
  if (random() % 2 == 0) request.sampling.set_prompt_logprobs(static_cast<int>(random() % 3));
  if (random() % 3 == 0) request.stop = {std::string(1, static_cast<char>('a' + random() % 26))};
  return request;
}

class FaultOrderTest : public testing::TestWithParam<int> {};

void RandomFault(DispatchFixture& fixture, std::mt19937_64& random) {
  const WorkerIndex worker = random() % fixture.cluster.worker_count();
  switch (random() % 4) {
    case 0:
      return fixture.cluster.Kill(worker);
    case 1:
      return fixture.cluster.SetStopped(worker, random() % 2 == 0);
    default:
      return fixture.cluster.Restart(worker);
  }
}

TEST_P(FaultOrderTest, EveryIndexOnceAndTheRightText) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  DispatchFixture fixture({.sim = {.decode_blocks = 20,
                                   .prefill_blocks = 20,
                                   .expected_output_tokens = 6,
                                   .end_id = 60},
                           .attempts_max = 100000});
  for (int round = 0; round < 40; ++round) {
    std::vector<Client> clients;
    for (int i = 0; i < 8; ++i) clients.push_back(Start(fixture, RandomRequest(random)));
    const double fault = GetParam() / 100.0;
    for (int i = 0; i < 4000; ++i) {
      if (!fixture.cluster.StepRandomCall(random, fault) || random() % 64 == 0) fixture.Pass(kTick);
      if (random() % 400 == 0) RandomFault(fixture, random);
      if (random() % 2000 == 0) clients[random() % clients.size()].run->Cancel();
    }
    for (int i = 0; i < fixture.cluster.worker_count(); ++i) {
      fixture.cluster.Restart(i);
      fixture.cluster.SetStopped(i, false);
    }
    for (const Client& client : clients) {
      RunToEnd(fixture, client, random);
      const RecordingSink::Record record = client.sink->Get();
      // A stage may have been missing for three seconds, or the client has cancelled.
      if (record.error.has_value()) {
        EXPECT_TRUE(absl::IsCancelled(*record.error) || absl::IsUnavailable(*record.error))
            << *record.error;
        for (int32_t choice = 0; choice < client.request.choices; ++choice) {
          const auto other = record.others.find(choice);
          if (choice > 0 && other == record.others.end()) continue;
          const std::vector<int32_t>& ids = choice == 0 ? record.ids : other->second.ids;
          const std::vector<int32_t> wanted = fixture.Want(client.request, choice).ids;
          ASSERT_LE(ids.size(), wanted.size());
          EXPECT_TRUE(std::equal(ids.begin(), ids.end(), wanted.begin()));
        }
        ExpectPromptRight(fixture, client, record);
      } else {
        ExpectRight(fixture, client);
      }
    }
    ExpectIdle(fixture, random);
  }
}
INSTANTIATE_TEST_SUITE_P(PercentOfSteps, FaultOrderTest, testing::Values(0, 1, 5, 20));

TEST_F(RequestRunTest, CalmRunTakesOneAttemptAndAccountsForTheTransfer) {
  DispatchFixture fixture;
  RunRequest request = DispatchFixture::Request(Prompt(random_, 20), 12);
  request.sampling.set_ignore_eos(true);
  const Client client = Start(fixture, std::move(request));
  RunToEnd(fixture, client, random_);
  ExpectRight(fixture, client);
  const v1::Done done = *client.sink->Get().done;
  EXPECT_EQ(done.served_by().attempts(), 1);
  EXPECT_EQ(done.served_by().kv_bytes_moved(), 200);
  EXPECT_EQ(fixture.cluster.calls_opened(), 2);
  ExpectIdle(fixture, random_);
}

TEST_F(RequestRunTest, DoneWaitsForTheAccountOfTheTransfer) {
  DispatchFixture fixture;
  for (int i = 0; i < 20; ++i) {
    const Client client = Start(fixture, DispatchFixture::Request(Prompt(random_, 20), 1));
    RunToEnd(fixture, client, random_);
    ExpectRight(fixture, client);
    EXPECT_EQ(client.sink->Get().done->served_by().kv_bytes_moved(), 200);
  }
}

// The first prefill worker dies with a part delivered; the second sends all of it anew.
TEST_F(RequestRunTest, ThePromptsLogprobsComeOnceOverTwoAttempts) {
  int begun_twice = 0;
  for (int round = 0; round < 30; ++round) {
    DispatchFixture fixture;
    RunRequest request = DispatchFixture::Request(Prompt(random_, 150), 12);
    request.sampling.set_prompt_logprobs(2);
    const Client client = Start(fixture, std::move(request));
    for (int i = 0; i < 1000 && client.sink->Get().prompt.empty(); ++i) {
      fixture.cluster.StepRandomCall(random_, 0);
    }
    const size_t before = client.sink->Get().prompt.size();
    begun_twice += before > 0 && before < 150;
    fixture.cluster.Kill(1);
    RunToEnd(fixture, client, random_);
    ExpectRight(fixture, client);
    ExpectIdle(fixture, random_);
  }
  EXPECT_GT(begun_twice, 10);
}

TEST_F(RequestRunTest, SilenceOfEitherStageMovesTheRequest) {
  for (const bool is_decode : {false, true}) {
    DispatchFixture fixture;
    RunRequest request = DispatchFixture::Request(Prompt(random_, 20), 30);
    request.sampling.set_ignore_eos(true);
    const Client client = Start(fixture, std::move(request));
    // The first request has turn 1: it goes to the second worker of each stage. The prefill worker
    // falls silent with the ticket in hand, the decode worker in mid-answer.
    const auto is_there = [&] {
      return is_decode ? client.sink->Get().ids.size() == 5 : fixture.cluster.calls_opened() == 2;
    };
    for (int i = 0; i < 1000 && !is_there(); ++i) fixture.cluster.StepRandomCall(random_, 0);
    const WorkerIndex silent = is_decode ? 3 : 1;
    fixture.cluster.SetStopped(silent, true);
    fixture.Pass(std::chrono::milliseconds(1400));
    EXPECT_EQ(fixture.cluster.calls_opened(), 2);
    fixture.Pass(std::chrono::milliseconds(300));
    EXPECT_EQ(fixture.cluster.calls_opened(), 3);
    RunToEnd(fixture, client, random_);
    ExpectRight(fixture, client);
    const v1::Done done = *client.sink->Get().done;
    EXPECT_EQ(done.served_by().attempts(), 2);
    // Nobody holds the prompt here, so a lost decode worker leaves either prefill worker to be
    // taken.
    EXPECT_TRUE(is_decode || done.served_by().prefill_worker() != "prefill-1");
    EXPECT_EQ(done.served_by().decode_worker() == "decode-3", !is_decode);
    // It wakes up and goes on with the attempt that nobody waits for any more.
    fixture.cluster.SetStopped(silent, false);
    ExpectIdle(fixture, random_);
  }
}

// Both requests are placed by one report; while the first is being sent, the second one's decode
// worker is found silent. Its placement is still on the way then.
TEST_F(RequestRunTest, ALossThatOvertakesThePlacementIsNoticed) {
  DispatchFixture fixture;
  for (int i = 0; i < 4; ++i) fixture.cluster.Kill(i);
  const auto request = [&] { return DispatchFixture::Request(Prompt(random_, 20), 12); };
  const Client first = Start(fixture, request()), second = Start(fixture, request());
  for (int i = 0; i < 4; ++i) fixture.cluster.Restart(i);
  for (const WorkerIndex decode : {2u, 3u}) fixture.cluster.Report(decode);
  fixture.cluster.SetOnOpen([&] {
    fixture.cluster.SetStopped(2, true);
    fixture.Pass(std::chrono::milliseconds(1600));
  });
  fixture.cluster.Report(0);
  EXPECT_EQ(fixture.cluster.calls_opened(), 2);
  RunToEnd(fixture, second, random_);
  ExpectRight(fixture, second);
  EXPECT_EQ(second.sink->Get().done->served_by().attempts(), 2);
  EXPECT_EQ(second.sink->Get().done->served_by().decode_worker(), "decode-3");
  RunToEnd(fixture, first, random_);
  ExpectIdle(fixture, random_);
}

TEST_F(RequestRunTest, EveryTokenAndTimeIsObservedOnce) {
  DispatchFixture fixture;
  const Client client = Start(fixture, DispatchFixture::Request(Prompt(random_, 20), 12));
  const size_t tokens = fixture.Want(client.request).ids.size();
  ASSERT_GT(tokens, 1u);
  RunToEnd(fixture, client, random_);
  const std::string text = fixture.registry.Text();
  for (const std::string& line :
       {std::string("first_token_seconds_count 1"), std::string("transfer_seconds_count 1"),
        std::string("request_seconds_count 1"), std::string("queue_seconds_count 1"),
        std::string("prompt_tokens_total 20"), fmt::format("output_tokens_total {}", tokens),
        fmt::format("token_gap_seconds_count {}", tokens - 1)}) {
    EXPECT_THAT(text, HasSubstr("\ntrivium_router_" + line + "\n"));
  }
}

// The streams of a request that was cancelled end when the dispatcher may be gone.
TEST_F(RequestRunTest, LateEventsOfAClosedRunTouchNothing) {
  DispatchFixture fixture;
  const Client client = Start(fixture, DispatchFixture::Request(Prompt(random_, 20), 12));
  for (int i = 0; i < 10; ++i) fixture.cluster.StepRandomCall(random_, 0);
  client.run->Cancel();
  ASSERT_TRUE(fixture.dispatcher.AwaitClosed(Duration(0)));
  const std::string before = fixture.registry.Text();
  for (int i = 0; i < 1000 && fixture.cluster.StepRandomCall(random_, 0); ++i) {
  }
  EXPECT_EQ(fixture.cluster.blocks_held(), 0);
  EXPECT_EQ(fixture.registry.Text(), before);
}

TEST_F(RequestRunTest, AttemptsAreBoundedAndTheErrorNamesTheStage) {
  DispatchFixture fixture({.attempts_max = 3});
  for (const WorkerIndex decode : {2u, 3u}) {
    fixture.cluster.SetRefusing(decode, absl::InternalError("disk on fire"));
  }
  const Client client = Start(fixture, DispatchFixture::Request(Prompt(random_, 5), 4));
  RunToEnd(fixture, client, random_);
  ASSERT_TRUE(client.sink->Get().error.has_value());
  EXPECT_EQ(client.sink->Get().error->code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(*client.sink->Get().error),
              testing::AllOf(HasSubstr("3 attempts"), HasSubstr("decode worker decode-"),
                             HasSubstr("disk on fire")));
  EXPECT_EQ(fixture.cluster.calls_opened(), 3);
}

TEST_F(RequestRunTest, AnotherFingerprintRefusesTheWorkerNotTheRequest) {
  DispatchFixture fixture;
  for (const WorkerIndex worker : {0u, 2u}) {
    fixture.cluster.SetRefusing(worker, FailedPrecondition("fingerprint is another one"));
  }
  for (int i = 0; i < 4; ++i) {
    const Client client = Start(fixture, DispatchFixture::Request(Prompt(random_, 5), 4));
    RunToEnd(fixture, client, random_);
    ExpectRight(fixture, client);
  }
  for (const v1::WorkerStatus& worker : fixture.dispatcher.Workers()) {
    const bool refused = worker.id() == "prefill-0" || worker.id() == "decode-2";
    EXPECT_EQ(worker.state(), refused ? "refused" : "ready") << worker.id();
  }
}

TEST_F(RequestRunTest, AWrongRequestIsNotTriedElsewhere) {
  DispatchFixture fixture;
  for (int i = 0; i < 4; ++i) fixture.cluster.SetRefusing(i, InvalidArgument("bad key"));
  const Client client = Start(fixture, DispatchFixture::Request(Prompt(random_, 5), 4));
  ASSERT_TRUE(client.sink->has_ended());
  EXPECT_EQ(client.sink->Get().error->code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(*client.sink->Get().error), HasSubstr("bad key"));
  EXPECT_EQ(fixture.cluster.calls_opened(), 1);
}

TEST_F(RequestRunTest, AMissingStageIsNamedAfterItsTimeout) {
  for (const bool is_decode : {false, true}) {
    DispatchFixture fixture;
    for (int i = 0; i < 2; ++i) fixture.cluster.Kill(is_decode ? 2 + i : i);
    const Client client = Start(fixture, DispatchFixture::Request(Prompt(random_, 5), 4));
    fixture.Pass(std::chrono::milliseconds(2900));
    EXPECT_FALSE(client.sink->has_ended());
    fixture.Pass(std::chrono::milliseconds(200));
    ASSERT_TRUE(client.sink->has_ended());
    EXPECT_EQ(client.sink->Get().error->code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(Message(*client.sink->Get().error), HasSubstr(is_decode ? "decode" : "prefill"));
  }
}

TEST_F(RequestRunTest, DeadlineEndsARequestWhereverItIs) {
  DispatchFixture fixture;
  for (const int steps : {0, 3, 12}) {
    RunRequest request = DispatchFixture::Request(Prompt(random_, 20), 30);
    request.sampling.set_ignore_eos(true);
    request.deadline = fixture.clock.Now() + std::chrono::milliseconds(500);
    const Client client = Start(fixture, std::move(request));
    for (int i = 0; i < steps; ++i) fixture.cluster.StepRandomCall(random_, 0);
    fixture.Pass(std::chrono::milliseconds(600));
    ASSERT_TRUE(client.sink->has_ended());
    EXPECT_EQ(client.sink->Get().error->code(), absl::StatusCode::kDeadlineExceeded);
    ExpectIdle(fixture, random_);
  }
}

TEST_F(RequestRunTest, DrainingTakesNothingNewAndFinishesTheRest) {
  DispatchFixture fixture;
  const Client client = Start(fixture, DispatchFixture::Request(Prompt(random_, 20), 12));
  fixture.dispatcher.Drain();
  const Client late = Start(fixture, DispatchFixture::Request(Prompt(random_, 20), 12));
  EXPECT_EQ(late.sink->Get().error->code(), absl::StatusCode::kUnavailable);
  RunToEnd(fixture, client, random_);
  ExpectRight(fixture, client);
}

}  // namespace
}  // namespace trivium::router
