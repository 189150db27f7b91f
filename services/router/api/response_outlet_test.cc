#include "services/router/api/response_outlet.h"

#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

namespace trivium::router {
namespace {

// A reader of any speed: remembers what was written and checks that writes never overlap.
class FakeWriter final : public ResponseWriter {
 public:
  void Write(const v1::GenerateResponse& response) override {
    EXPECT_FALSE(is_writing.exchange(true));
    EXPECT_FALSE(is_finished);
    EXPECT_LE(response.ByteSizeLong(), ResponseOutlet::kDeltaBytesMax + 16);
    ++writes;
    text += response.delta().text();
    for (const v1::OutputToken& token : response.delta().tokens()) {
      EXPECT_EQ(token.index(), tokens++);
    }
    for (const v1::OutputToken& token : response.delta().prompt_tokens()) {
      EXPECT_EQ(token.index(), prompt_tokens++);
    }
    dones += response.has_done();
    EXPECT_TRUE(response.has_done() || dones == 0);
  }
  void Finish(const absl::Status& with) override {
    EXPECT_FALSE(is_writing);
    EXPECT_FALSE(is_finished.exchange(true));
    status = with;
  }
  bool TakeWritten() { return is_writing.exchange(false); }

  std::atomic<bool> is_writing{false}, is_finished{false};
  int writes = 0, tokens = 0, prompt_tokens = 0, dones = 0;
  std::string text;
  absl::Status status;
};

v1::Delta Delta(int index) {
  v1::Delta delta;
  delta.set_text(std::to_string(index) + " ");
  delta.add_tokens()->set_index(index);
  delta.add_prompt_tokens()->set_index(index);
  return delta;
}

TEST(ResponseOutletTest, ASlowReaderGetsEverythingInTwoMessages) {
  FakeWriter writer;
  ResponseOutlet outlet(&writer);
  for (int i = 0; i < 1000; ++i) outlet.OnDelta(Delta(i));
  outlet.OnDone({});
  EXPECT_EQ(writer.writes, 1);
  for (int i = 0; i < 3; ++i) {
    if (writer.TakeWritten()) outlet.Written(true);
  }
  EXPECT_EQ(writer.writes, 3);  // the first token, all others, done
  EXPECT_EQ(writer.tokens, 1000);
  EXPECT_EQ(writer.prompt_tokens, 1000);
  EXPECT_EQ(writer.dones, 1);
  EXPECT_TRUE(writer.is_finished);
  EXPECT_TRUE(writer.status.ok());
}

// The logprobs of a long prompt behind a slow reader.
TEST(ResponseOutletTest, WhatIsMergedStaysBelowTheLimitOfAMessage) {
  FakeWriter writer;
  ResponseOutlet outlet(&writer);
  v1::Delta delta;
  for (int i = 0; i < 60000; ++i) {
    if (i % 200 == 0) delta.clear_prompt_tokens();
    v1::OutputToken* token = delta.add_prompt_tokens();
    token->set_index(i);
    for (int j = 0; j < 20; ++j) token->add_top()->set_logprob(-1);
    if (i % 200 == 199) outlet.OnDelta(delta);
  }
  outlet.OnDone({});
  while (writer.TakeWritten()) outlet.Written(true);
  EXPECT_EQ(writer.prompt_tokens, 60000);
  EXPECT_GT(writer.writes, 8);
  EXPECT_LT(writer.writes, 20);
  EXPECT_TRUE(writer.is_finished);
}

TEST(ResponseOutletTest, ChoicesAreNeverMixedAndTakeTurns) {
  class Writer final : public ResponseWriter {
   public:
    void Write(const v1::GenerateResponse& response) override {
      written += fmt::format("{}:{};", response.delta().choice(), response.delta().text());
    }
    void Finish(const absl::Status&) override {}
    std::string written;
  } writer;
  ResponseOutlet outlet(&writer);
  const auto add = [&](int choice, int index) {
    v1::Delta delta = Delta(index);
    delta.set_choice(choice);
    outlet.OnDelta(delta);
  };
  for (int i = 0; i < 3; ++i) {
    for (const int choice : {0, 2, 1}) add(choice, i);
  }
  outlet.Written(true);
  add(0, 3);
  for (int i = 0; i < 3; ++i) outlet.Written(true);
  EXPECT_EQ(writer.written, "0:0 ;2:0 1 2 ;1:0 1 2 ;0:1 2 3 ;");
}

TEST(ResponseOutletTest, AnErrorComesAfterTheTokensBeforeIt) {
  FakeWriter writer;
  ResponseOutlet outlet(&writer);
  outlet.OnDelta(Delta(0));
  outlet.OnDelta(Delta(1));
  outlet.OnError(Unavailable("gone"));
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(writer.TakeWritten());
    outlet.Written(true);
  }
  EXPECT_EQ(writer.tokens, 2);
  EXPECT_EQ(writer.status, Unavailable("gone"));
}

TEST(ResponseOutletTest, AReaderThatLeftGetsOnlyTheEnd) {
  FakeWriter writer;
  ResponseOutlet outlet(&writer);
  outlet.OnDelta(Delta(0));
  outlet.OnDelta(Delta(1));
  writer.TakeWritten();
  outlet.Written(false);
  outlet.OnDelta(Delta(2));
  EXPECT_FALSE(writer.is_finished);
  outlet.OnError(absl::CancelledError("left"));
  EXPECT_TRUE(writer.is_finished);
  EXPECT_EQ(writer.writes, 1);
}

TEST(ResponseOutletTest, NothingIsLostBetweenTwoThreads) {
  constexpr int kTokens = 20000;
  FakeWriter writer;
  ResponseOutlet outlet(&writer);
  std::string expected;
  std::thread reader([&] {
    while (!writer.is_finished) {
      if (writer.TakeWritten()) outlet.Written(true);
    }
  });
  for (int i = 0; i < kTokens; ++i) {
    outlet.OnDelta(Delta(i));
    expected += Delta(i).text();
  }
  outlet.OnDone({});
  reader.join();
  EXPECT_EQ(writer.tokens, kTokens);
  EXPECT_EQ(writer.text, expected);
  EXPECT_EQ(writer.dones, 1);
}

}  // namespace
}  // namespace trivium::router
