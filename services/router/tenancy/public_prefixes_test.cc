// With the tokenizer and the chat template of the tiny model, whose merges make a token of "i" and
// "n", of "th"… and of a space and a letter.
#include "services/router/tenancy/public_prefixes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "common/config/config.h"
#include "services/router/tenancy/tenancy_fixture.h"

namespace trivium::router {
namespace {

constexpr int32_t kBlock = 16;

struct Declaration {
  std::string text, chat_role = {};
};

absl::StatusOr<PublicPrefixes> Made(const std::vector<Declaration>& declarations,
                                    const Tokenize& tokenize, int32_t block = kBlock) {
  v1::TenancyConfig config;
  for (const Declaration& one : declarations) {
    v1::PublicPrefixConfig* prefix = config.add_public_prefixes();
    prefix->set_id(fmt::format("p{}", config.public_prefixes_size() - 1));
    prefix->set_text(one.text);
    prefix->set_chat_role(one.chat_role);
  }
  EXPECT_TRUE(config::Complete(&config).ok());
  return PublicPrefixes::Create(config, tokenize, block);
}

// A text is its bytes as ids: what the search does, apart from what tokens are.
absl::StatusOr<std::vector<int32_t>> ByBytes(const v1::TokenizeRequest& request) {
  return std::vector<int32_t>(request.text().begin(), request.text().end());
}

TEST(PublicPrefixesTest, TheMostBlocksThenTheFirstDeclared) {
  const std::string a(48, 'a'), ab = std::string(32, 'a') + std::string(32, 'b');
  const auto prefixes = Made({{ab}, {a}, {"too short"}, {a}}, ByBytes);
  ASSERT_TRUE(prefixes.ok());
  const auto match = [&](const std::string& text) {
    const PublicPrefixes::Match found = prefixes->Longest(*ByBytes([&] {
      v1::TokenizeRequest request;
      request.set_text(text);
      return request;
    }()));
    return std::pair(found.prefix, found.tokens);
  };
  EXPECT_EQ(match(a + "xyz"), std::pair(1, 48));
  EXPECT_EQ(match(a), std::pair(1, 48));
  EXPECT_EQ(match(ab + std::string(32, 'b')), std::pair(0, 64));
  // As far as both go: the first declared, whichever side the prompt leaves them on.
  EXPECT_EQ(match(a.substr(0, 47)), std::pair(0, 32));
  EXPECT_EQ(match(a.substr(0, 35) + "zzz"), std::pair(0, 32));
  EXPECT_EQ(match(a.substr(0, 35) + "AAA"), std::pair(0, 32));
  EXPECT_EQ(match(a.substr(0, 32) + std::string(15, 'b')), std::pair(0, 32));
  EXPECT_EQ(match(a.substr(0, 15)), std::pair(-1, 0));
  EXPECT_EQ(match("too short, but for the rest of it"), std::pair(-1, 0));
  EXPECT_EQ(match(""), std::pair(-1, 0));
}

TEST(PublicPrefixesTest, AsASearchOfThemAll) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  const auto draw = [&](size_t length) {
    std::string text;
    for (size_t i = 0; i < length; ++i) text += random() % 8 == 0 ? 'b' : 'a';
    return text;
  };
  for (int round = 0; round < 200; ++round) {
    std::vector<Declaration> declared;
    for (size_t i = random() % 20; i > 0; --i) declared.push_back({"x" + draw(random() % 40), ""});
    const auto prefixes = Made(declared, ByBytes, 4);
    ASSERT_TRUE(prefixes.ok());
    for (int probe = 0; probe < 50; ++probe) {
      const std::string prompt = "x" + draw(random() % 40);
      PublicPrefixes::Match best;
      for (size_t i = 0; i < declared.size(); ++i) {
        const std::string& text = declared[i].text;
        size_t common = 0;
        while (common < std::min(text.size(), prompt.size()) && text[common] == prompt[common]) {
          ++common;
        }
        const auto tokens = static_cast<int32_t>(common / 4 * 4);
        if (tokens > best.tokens) best = {static_cast<int32_t>(i), tokens};
      }
      const std::vector<int32_t> ids(prompt.begin(), prompt.end());
      const PublicPrefixes::Match found = prefixes->Longest(ids);
      ASSERT_EQ(found.tokens, best.tokens) << prompt;
      ASSERT_EQ(found.prefix, best.prefix) << prompt;
    }
  }
}

// The trap of tokens that are more than a character: what the user types may merge with the end of
// a public text, also where that end is the end of a block.
TEST(PublicPrefixesTest, ATokenThatHoldsAUsersByteIsNotPublic) {
  const TinyValidator tiny;
  // 16 tokens exactly; the last is "i", which "n" turns into "in".
  std::string text;
  while (tiny.TextTokens(text + "i").size() < kBlock) text += "!";
  text += "i";
  ASSERT_EQ(tiny.TextTokens(text).size(), 16u);
  const auto prefixes = Made({{text}}, tiny.tokenize());
  ASSERT_TRUE(prefixes.ok());
  const auto public_tokens = [&](const std::string& rest) {
    return prefixes->Longest(tiny.TextTokens(text + rest)).tokens;
  };
  EXPECT_EQ(public_tokens(""), 16);
  EXPECT_EQ(public_tokens("!secret"), 16);
  EXPECT_EQ(public_tokens("nsecret"), 0) << "the block ends in a token of both";
  EXPECT_EQ(public_tokens("n"), 0);
}

// Whatever follows: each public token is the declared text's own, and its bytes are too.
TEST(PublicPrefixesTest, PublicTokensAreTheDeclaredTextsWhateverFollows) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  const TinyValidator tiny;
  const std::string letters = "in theag ";
  const auto draw = [&](size_t length) {
    std::string text = "t";
    for (size_t i = 1; i < length; ++i) text += letters[random() % letters.size()];
    return text;
  };
  int merged = 0;
  for (int round = 0; round < 1000; ++round) {
    const std::string text = draw(40 + random() % 60);
    const auto prefixes = Made({{text}}, tiny.tokenize());
    ASSERT_TRUE(prefixes.ok());
    const std::vector<int32_t> own = tiny.TextTokens(text);
    const std::vector<int32_t> prompt = tiny.TextTokens(text + draw(20));
    const int32_t tokens = prefixes->Longest(prompt).tokens;
    ASSERT_EQ(tokens % kBlock, 0);
    ASSERT_LE(static_cast<size_t>(tokens), own.size());
    ASSERT_TRUE(std::equal(own.begin(), own.begin() + tokens, prompt.begin()));
    ASSERT_TRUE(text.starts_with(tiny.Text({prompt.begin(), prompt.begin() + tokens})));
    merged += static_cast<size_t>(tokens) < own.size() / kBlock * kBlock;
  }
  EXPECT_GT(merged, 0) << "no draw merged over the end of a block";
}

TEST(PublicPrefixesTest, AChatThatBeginsWithTheMessage) {
  const TinyValidator tiny;
  const std::string manual(100, '!');
  const auto prefixes =
      Made({{manual, "system"}, {"Hello, this is a public question", "user"}}, tiny.tokenize());
  ASSERT_TRUE(prefixes.ok());
  const auto chat = [&](std::vector<std::pair<std::string, std::string>> messages) {
    v1::TokenizeRequest request;
    for (const auto& [role, content] : messages) {
      v1::Message* message = request.mutable_chat()->add_messages();
      message->set_role(role);
      message->set_content(content);
    }
    return *tiny.tokenize()(request);
  };
  const auto long_chat = chat({{"system", manual}, {"user", "hi"}});
  const PublicPrefixes::Match found = prefixes->Longest(long_chat);
  EXPECT_EQ(found.prefix, 0);
  EXPECT_GE(found.tokens, 96);
  const std::string shared = tiny.Text({long_chat.begin(), long_chat.begin() + found.tokens});
  EXPECT_EQ(shared.find("hi"), std::string::npos);
  // The same bytes as a raw text are other tokens: a client cannot write a control token.
  EXPECT_EQ(prefixes->Longest(tiny.TextTokens(tiny.Text(long_chat))).tokens, 0);
  // In another role it is not the declared beginning.
  EXPECT_LT(prefixes->Longest(chat({{"user", manual}})).tokens, 96);
  const auto question = chat({{"user", "Hello, this is a public question"},
                              {"assistant", "yes"},
                              {"user", "and this is mine"}});
  EXPECT_EQ(prefixes->Longest(question).prefix, 1);
  EXPECT_GE(prefixes->Longest(question).tokens, 32);
}

TEST(PublicPrefixesTest, ErrorsNameThePrefix) {
  const TinyValidator tiny;
  EXPECT_EQ(
      Message(Made({{"x"}, {"y", "system"}, {"<|im_end|>", "system"}}, tiny.tokenize()).status())
          .substr(0, 34),
      "tenancy.public_prefixes[2] (p2): m");
  EXPECT_FALSE(Made({{std::string(4000, 'x') + "\xff"}}, tiny.tokenize()).ok());
}

}  // namespace
}  // namespace trivium::router
