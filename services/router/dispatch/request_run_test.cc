// Requests over simulated stages: faults in every order, chosen at random, and the single rules one
// by one. The client sees each index once and the right text, or one clear error.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "common/kv/answer_room.h"
#include "services/router/dispatch/dispatch_fixture.h"

namespace trivium::router {
namespace {

using testing::HasSubstr;

constexpr Duration kTick = Dispatcher::kTickInterval;

struct Client {
  RunRequest request;
  std::shared_ptr<RecordingSink> sink = std::make_shared<RecordingSink>();
  std::shared_ptr<RequestRun> run;
};

Client Start(DispatchFixture& fixture, RunRequest request) {
  Client client;
  client.request = request;
  client.run = fixture.dispatcher.Submit(std::move(request), client.sink);
  return client;
}

// Steps all calls, without faults, until the client has its answer.
void RunToEnd(DispatchFixture& fixture, const Client& client, std::mt19937_64& random) {
  for (int i = 0; i < 200000 && !client.sink->has_ended(); ++i) {
    if (!fixture.cluster.StepRandomCall(random, 0) || i % 16 == 0) fixture.Pass(kTick);
  }
  ASSERT_TRUE(client.sink->has_ended());
}

// The logprobs of the prompt, where they were asked for: all, or of a request that failed the
// first.
void ExpectPromptRight(DispatchFixture& fixture, const Client& client,
                       const RecordingSink::Record& record) {
  const int32_t wanted = client.request.sampling.prompt_logprobs();
  const std::vector<int32_t>& ids = client.request.prompt_ids;
  if (record.done.has_value() || !record.ids.empty()) {
    EXPECT_EQ(record.prompt.size(), wanted < 0 ? 0 : ids.size());
  }
  ASSERT_LE(record.prompt.size(), ids.size());
  for (size_t i = 0; i < record.prompt.size(); ++i) {
    const v1::StageToken token =
        SimPromptToken(fixture.options, ids, static_cast<int32_t>(i), wanted);
    const v1::OutputToken& got = record.prompt[i];
    EXPECT_EQ(got.id(), token.id());
    EXPECT_EQ(got.has_logprob(), i > 0);
    EXPECT_EQ(got.logprob(), token.logprob());
    ASSERT_EQ(got.top_size(), i > 0 ? wanted : 0);
    for (int j = 0; j < got.top_size(); ++j) EXPECT_EQ(got.top(j).id(), token.top(j).id());
  }
}

void ExpectRight(DispatchFixture& fixture, const Client& client) {
  RecordingSink::Record record = client.sink->Get();
  ASSERT_TRUE(record.done.has_value()) << *record.error;
  ASSERT_EQ(record.done->choices_size(), client.request.choices);
  int tokens = 0;
  for (int32_t i = 0; i < client.request.choices; ++i) {
    SCOPED_TRACE(testing::Message() << "choice " << i);
    const RecordingSink::Choice& got = i == 0 ? record : record.others[i];
    const DispatchFixture::Wanted wanted = fixture.Want(client.request, i);
    EXPECT_EQ(got.ids, wanted.ids);
    EXPECT_EQ(got.text, wanted.text);
    const v1::ChoiceEnd& end = record.done->choices(i);
    EXPECT_EQ(end.finish_reason(), wanted.finish_reason);
    EXPECT_EQ(end.completion_tokens(), static_cast<int>(wanted.ids.size()));
    EXPECT_EQ(end.seed(), client.request.sampling.seed() + static_cast<uint64_t>(i));
    tokens += end.completion_tokens();
  }
  EXPECT_EQ(record.done->finish_reason(), record.done->choices(0).finish_reason());
  EXPECT_EQ(record.done->usage().completion_tokens(), tokens);
  EXPECT_EQ(record.done->seed(), client.request.sampling.seed());
  ExpectPromptRight(fixture, client, record);
}

// Nothing may be left: no open stream that nobody cancelled, no run, no block once calls have
// ended.
void ExpectIdle(DispatchFixture& fixture, std::mt19937_64& random) {
  for (int i = 0; i < fixture.cluster.worker_count(); ++i) {
    fixture.cluster.Restart(i);
    fixture.cluster.SetStopped(i, false);
  }
  fixture.Pass(std::chrono::seconds(3));
  EXPECT_EQ(fixture.cluster.calls_not_cancelled(), 0);
  for (int i = 0; i < 100000 && fixture.cluster.StepRandomCall(random, 0); ++i) {
  }
  EXPECT_EQ(fixture.cluster.blocks_held(), 0);
  EXPECT_EQ(fixture.dispatcher.counts().waiting, 0);
  EXPECT_EQ(fixture.dispatcher.counts().running, 0);
  EXPECT_TRUE(fixture.dispatcher.AwaitClosed(Duration(0)));
}

std::vector<int32_t> Prompt(std::mt19937_64& random, int tokens) {
  std::vector<int32_t> ids(tokens);
  for (int32_t& id : ids) id = 3 + static_cast<int32_t>(random() % 300);
  return ids;
}

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

class RequestRunTest : public testing::Test {
 protected:
  std::mt19937_64 random_{7};
};

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

RunRequest Choices(std::mt19937_64& random, int choices, int32_t max_tokens) {
  RunRequest request = DispatchFixture::Request(Prompt(random, 40), max_tokens);
  request.choices = choices;
  request.sampling.set_temperature(1);
  request.sampling.set_ignore_eos(true);
  return request;
}

TEST_F(RequestRunTest, ChoicesTakeOneAttemptAndOneTransfer) {
  DispatchFixture fixture;
  const Client client = Start(fixture, Choices(random_, 4, 12));
  RunToEnd(fixture, client, random_);
  ExpectRight(fixture, client);
  const v1::Done done = *client.sink->Get().done;
  EXPECT_EQ(done.served_by().attempts(), 1);
  EXPECT_EQ(done.served_by().kv_bytes_moved(), 400);
  EXPECT_EQ(fixture.cluster.calls_opened(), 2);
  EXPECT_EQ(done.usage().completion_tokens(), 48);
  ExpectIdle(fixture, random_);
}

TEST_F(RequestRunTest, ADeathBeforeAnyTokenIsTriedAgainTogether) {
  DispatchFixture fixture;
  const Client client = Start(fixture, Choices(random_, 4, 12));
  for (int i = 0; i < 1000 && fixture.cluster.calls_opened() < 2; ++i) {
    fixture.cluster.StepRandomCall(random_, 0);
  }
  fixture.cluster.Kill(1);
  EXPECT_TRUE(client.sink->Get().ids.empty());
  RunToEnd(fixture, client, random_);
  ExpectRight(fixture, client);
  EXPECT_EQ(client.sink->Get().done->served_by().attempts(), 2);
  EXPECT_EQ(fixture.cluster.calls_opened(), 4);
  ExpectIdle(fixture, random_);
}

// Wherever the answer stands, one choice goes on by one attempt.
TEST_F(RequestRunTest, AfterADeathEveryUnfinishedChoiceGoesOnAlone) {
  for (int round = 0; round < 60; ++round) {
    SCOPED_TRACE(round);
    const bool is_decode = round % 2 == 0;
    DispatchFixture fixture;
    RunRequest request = Choices(random_, 4, 12);
    if (round % 3 == 0) request.stop = {"e", "a"};
    const Client client = Start(fixture, std::move(request));
    const auto tokens = [&] {
      const RecordingSink::Record record = client.sink->Get();
      size_t count = record.ids.size();
      for (const auto& [choice, other] : record.others) count += other.ids.size();
      return count;
    };
    const size_t until = is_decode ? 5 + random_() % 30 : 1 + random_() % 3;
    for (int i = 0; i < 1000 && tokens() < until && !client.sink->has_ended(); ++i) {
      fixture.cluster.StepRandomCall(random_, 0);
    }
    fixture.cluster.Kill(is_decode ? 3 : 1);
    RunToEnd(fixture, client, random_);
    ExpectRight(fixture, client);
    const v1::Done done = *client.sink->Get().done;
    if (done.served_by().attempts() == 2) {
      const int calls = fixture.cluster.calls_opened() - 2;
      EXPECT_GE(calls, 2);
      EXPECT_LE(calls, 8);
      EXPECT_EQ(calls % 2, 0);
    }
    ExpectIdle(fixture, random_);
  }
}

TEST_F(RequestRunTest, ChoicesThatCannotFitAreRefused) {
  DispatchFixture fixture({.sim = {.decode_blocks = 10}});
  // 2 shared blocks and 2 for each choice; then 3.
  const Client fits = Start(fixture, Choices(random_, 4, 24));
  const Client large = Start(fixture, Choices(random_, 4, 25));
  ASSERT_TRUE(large.sink->has_ended());
  EXPECT_EQ(large.sink->Get().error->code(), absl::StatusCode::kInvalidArgument);
  const Client many = Start(fixture, Choices(random_, 9, 1));
  EXPECT_THAT(Message(*many.sink->Get().error), HasSubstr("9 choices are more"));
  RunToEnd(fixture, fits, random_);
  ExpectRight(fixture, fits);
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
    EXPECT_EQ(done.served_by().prefill_worker() == "prefill-1", is_decode);
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
