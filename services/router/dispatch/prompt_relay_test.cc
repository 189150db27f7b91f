#include "services/router/dispatch/prompt_relay.h"

#include <gtest/gtest.h>

#include <functional>

namespace trivium::router {
namespace {

const std::vector<int32_t> kPrompt = {7, 8, 9, 7, 5};

v1::PromptLogprobs Tokens(int32_t begin, int32_t end) {
  v1::PromptLogprobs message;
  for (int32_t i = begin; i < end; ++i) {
    v1::StageToken* token = message.add_tokens();
    token->set_index(i);
    token->set_id(kPrompt[static_cast<size_t>(i)]);
    if (i > 0) token->set_logprob(-1);
  }
  return message;
}

TEST(PromptRelayTest, WhoAsksForNoneHasThemAll) {
  EXPECT_TRUE(PromptRelay(kPrompt, -1).is_complete());
  EXPECT_FALSE(PromptRelay(kPrompt, 0).is_complete());
}

TEST(PromptRelayTest, EveryAttemptStartsAnewAndNothingIsGivenTwice) {
  PromptRelay relay(kPrompt, 0);
  relay.BeginAttempt();
  EXPECT_EQ(relay.Offer(Tokens(0, 2)), 0);
  EXPECT_EQ(relay.Offer(Tokens(2, 3)), 0);
  relay.BeginAttempt();
  EXPECT_EQ(relay.Offer(Tokens(0, 1)), 1);
  EXPECT_EQ(relay.Offer(Tokens(1, 4)), 2);
  EXPECT_FALSE(relay.is_complete());
  relay.BeginAttempt();
  EXPECT_EQ(relay.Offer(Tokens(0, 4)), 4);
  EXPECT_EQ(relay.Offer(Tokens(4, 5)), 0);
  EXPECT_TRUE(relay.is_complete());
}

TEST(PromptRelayTest, OnlyTheTokensThatAreDueAreTaken) {
  const std::function<void(v1::PromptLogprobs&)> spoils[] = {
      [](auto& m) { m.mutable_tokens(1)->set_index(2); },
      [](auto& m) { m.mutable_tokens(1)->set_id(9); },
      [](auto& m) { m.mutable_tokens(1)->clear_logprob(); },
      [](auto& m) { m.mutable_tokens(0)->set_logprob(-1); },
      [](auto& m) { *m.add_tokens() = m.tokens(4); },
      [](auto& m) { m.mutable_tokens()->DeleteSubrange(0, 1); },
      [](auto& m) {
        m.mutable_tokens(1)->add_top();
        m.mutable_tokens(1)->add_top();
      },
  };
  for (const auto& spoil : spoils) {
    PromptRelay relay(kPrompt, 1);
    relay.BeginAttempt();
    v1::PromptLogprobs message = Tokens(0, 5);
    spoil(message);
    EXPECT_EQ(relay.Offer(message), std::nullopt) << message.ShortDebugString();
  }
}

}  // namespace
}  // namespace trivium::router
