// Test support: clients of a DispatchFixture, and what must be true of their answers.
// Thread-safety: none.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "services/router/dispatch/dispatch_fixture.h"

namespace trivium::router {

inline constexpr Duration kTick = Dispatcher::kTickInterval;

struct Client {
  RunRequest request;
  std::shared_ptr<RecordingSink> sink = std::make_shared<RecordingSink>();
  std::shared_ptr<RequestRun> run;
};

inline Client Start(DispatchFixture& fixture, RunRequest request) {
  Client client;
  client.request = request;
  client.run = fixture.dispatcher.Submit(std::move(request), client.sink);
  return client;
}

// Steps all calls, without faults, until the client has its answer.
inline void RunToEnd(DispatchFixture& fixture, const Client& client, std::mt19937_64& random) {
  for (int i = 0; i < 200000 && !client.sink->has_ended(); ++i) {
    if (!fixture.cluster.StepRandomCall(random, 0) || i % 16 == 0) fixture.Pass(kTick);
  }
  ASSERT_TRUE(client.sink->has_ended());
}

// The logprobs of the prompt, where they were asked for: all, or of a request that failed the
// first.
inline void ExpectPromptRight(DispatchFixture& fixture, const Client& client,
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

inline void ExpectRight(DispatchFixture& fixture, const Client& client) {
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
inline void ExpectIdle(DispatchFixture& fixture, std::mt19937_64& random) {
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

inline std::vector<int32_t> Prompt(std::mt19937_64& random, int tokens) {
  std::vector<int32_t> ids(tokens);
  for (int32_t& id : ids) id = 3 + static_cast<int32_t>(random() % 300);
  return ids;
}

class RequestRunTest : public testing::Test {
 protected:
  std::mt19937_64 random_{7};
};

}  // namespace trivium::router
