#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "common/model/model.h"
#include "tests/oracle/oracle_data.h"

namespace trivium::oracle {
namespace {

class TokenizerOracle : public testing::Test {
 protected:
  void SetUp() override {
    const char* path = std::getenv("TRIVIUM_TEST_MODEL");
    if (path == nullptr) GTEST_SKIP() << "TRIVIUM_TEST_MODEL is not set";
    auto model = model::Model::Load(path);
    ASSERT_TRUE(model.ok()) << Message(model.status());
    model_ = *model;
  }
  const model::Tokenizer& tokenizer() const { return *model_->tokenizer; }

  std::string Decoded(std::span<const int32_t> ids) const {
    std::string text;
    for (int32_t id : ids) text += tokenizer().Piece(id);
    return text;
  }

  // Bytes that SmolLM2's vocabulary has no token for, as tokenizer.h says.
  static bool HasToken(char c) {
    const auto byte = static_cast<uint8_t>(c);
    for (int missing : {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2}) {
      if (byte == missing) return false;
    }
    return byte < 0xF5;
  }

  std::shared_ptr<const model::Model> model_;
};

TEST_F(TokenizerOracle, EqualsTheOracleOnUnicode) {
  const std::vector<TokenizedString> strings = ReadTokenizerData();
  ASSERT_GE(strings.size(), 500u);
  int equal = 0;
  for (const TokenizedString& string : strings) {
    EXPECT_EQ(tokenizer().Encode(string.text, {}), string.ids) << '"' << string.text << '"';
    equal += tokenizer().Encode(string.text, {}) == string.ids;
  }
  std::printf("%d of %zu strings equal\n", equal, strings.size());
}

TEST_F(TokenizerOracle, EqualsTheOracleOnPrompts) {
  for (const Prompt& prompt : ReadGreedyData()) {
    EXPECT_EQ(tokenizer().Encode(prompt.text, {.parse_special = true}), prompt.ids) << prompt.name;
  }
}

TEST_F(TokenizerOracle, RendersTheOraclesChat) {
  for (const Prompt& prompt : ReadGreedyData()) {
    if (prompt.name != "capital") continue;
    const model::ChatMessage message{"user", "What is the capital of France?"};
    EXPECT_EQ(model_->chat_template.Render({&message, 1}).value(), prompt.text);
  }
}

TEST_F(TokenizerOracle, RoundTripsRandomBytes) {
  const uint64_t seed = std::random_device()();
  std::printf("seed %lu\n", seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 2000; ++i) {
    std::string text(random() % 300, '\0');
    for (char& c : text) {
      do {
        c = static_cast<char>(random());
      } while (!HasToken(c));
    }
    ASSERT_EQ(Decoded(tokenizer().Encode(text, {})), text);
  }
}

TEST_F(TokenizerOracle, RoundTripsItsOwnVocabulary) {
  for (int32_t id = 0; id < tokenizer().vocab_size(); ++id) {
    const std::string piece(tokenizer().Piece(id));
    ASSERT_EQ(Decoded(tokenizer().Encode(piece, {})), piece) << id;
  }
}

}  // namespace
}  // namespace trivium::oracle
