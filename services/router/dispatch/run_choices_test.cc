// Several choices of one request over simulated stages: together as long as they are equal, then
// each by itself.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "services/router/dispatch/request_run_fixture.h"

namespace trivium::router {
namespace {

using testing::HasSubstr;

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

// A choice that a stop string ends is no work for decode any more, while the others go on.
TEST_F(RequestRunTest, DecodeIsToldOfChoicesThatAStopStringEnds) {
  int told = 0;
  for (int round = 0; round < 30; ++round) {
    SCOPED_TRACE(round);
    DispatchFixture fixture;
    RunRequest request = Choices(random_, 4, 40);
    request.stop = {"e", "a"};
    const Client client = Start(fixture, std::move(request));
    RunToEnd(fixture, client, random_);
    ExpectRight(fixture, client);
    const v1::Done done = *client.sink->Get().done;
    int cut = 0;
    for (const v1::ChoiceEnd& end : done.choices()) {
      cut += end.finish_reason() == "stop" && end.completion_tokens() < 40;
    }
    // All but the one, if any, with which the whole answer ended.
    EXPECT_LE(fixture.cluster.choices_ended(), cut);
    EXPECT_GE(fixture.cluster.choices_ended(), cut - 1);
    told += fixture.cluster.choices_ended();
    ExpectIdle(fixture, random_);
  }
  EXPECT_GT(told, 30);
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

}  // namespace
}  // namespace trivium::router
