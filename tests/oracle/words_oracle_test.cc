// Pre-tokenizers and BPE by score, against what the PyPI packages regex, tokenizers and
// sentencepiece did: no model is needed.
#include <gtest/gtest.h>

#include <algorithm>

#include "common/model/pretokenizer.h"
#include "common/model/tokenizer.h"
#include "tests/oracle/oracle_data.h"

namespace trivium::oracle {
namespace {

using model::WordRule;

WordRule RuleNamed(const std::string& name) {
  if (name == "gpt-2") return WordRule::kGpt2;
  if (name == "smollm") return WordRule::kSmollm;
  if (name == "llama-bpe") return WordRule::kLlamaBpe;
  TRIVIUM_CHECK(name == "qwen2", "the rule {} is not known", name);
  return WordRule::kQwen2;
}

std::string Shown(std::string_view text, const std::vector<int32_t>& sizes) {
  std::string shown;
  for (int32_t size : sizes) {
    shown += fmt::format("[{}]", text.substr(0, static_cast<size_t>(size)));
    text.remove_prefix(static_cast<size_t>(size));
  }
  return shown;
}

TEST(PretokenizerOracle, CutsAsThePatternsDo) {
  const WordData data = ReadWordData();
  ASSERT_GE(data.strings.size(), 500u);
  ASSERT_EQ(data.rules.size(), 4u);
  for (const CutStrings& rule : data.rules) {
    int equal = 0;
    for (size_t i = 0; i < data.strings.size(); ++i) {
      model::Pretokenizer words(data.strings[i], RuleNamed(rule.rule));
      std::vector<int32_t> sizes;
      for (std::string_view word = words.Next(); !word.empty(); word = words.Next()) {
        sizes.push_back(static_cast<int32_t>(word.size()));
      }
      equal += HashIds(sizes) == rule.hashes[i];
      EXPECT_EQ(HashIds(sizes), rule.hashes[i])
          << rule.rule << ' ' << Shown(data.strings[i], sizes);
    }
    std::printf("%s: %d of %zu strings equal\n", rule.rule.c_str(), equal, data.strings.size());
  }
}

std::unique_ptr<model::Tokenizer> LoadVocabulary(const std::string& name) {
  return model::Tokenizer::Load(*model::GgufFile::Open(DataPath(name)).value()).value();
}

std::string Streamed(const model::Tokenizer& tokenizer, std::span<const int32_t> ids) {
  model::Detokenizer detokenizer(tokenizer);
  std::string text;
  for (int32_t id : ids) text += detokenizer.Add(id);
  return text + detokenizer.Flush();
}

constexpr int32_t kUnknownId = 0;
constexpr std::string_view kSpaceMark = "\xE2\x96\x81";

TEST(ScoredBpeOracle, EqualsSentencePiece) {
  const std::vector<std::string> strings = ReadWordData().strings;
  for (const EncodedStrings& encoded : ReadScoredData()) {
    const auto tokenizer = LoadVocabulary(encoded.vocabulary);
    ASSERT_EQ(encoded.hashes.size(), strings.size());
    int equal = 0, decoded = 0;
    for (size_t i = 0; i < strings.size(); ++i) {
      const std::vector<int32_t> ids = tokenizer->Encode(strings[i], {});
      equal += HashIds(ids) == encoded.hashes[i];
      EXPECT_EQ(HashIds(ids), encoded.hashes[i])
          << encoded.vocabulary << ": " << strings[i] << ": " << testing::PrintToString(ids);
      const bool is_known = std::ranges::count(ids, kUnknownId) == 0;
      if (is_known && strings[i].find(kSpaceMark) == std::string::npos) {
        EXPECT_EQ(Streamed(*tokenizer, ids), strings[i]);
        ++decoded;
      }
    }
    EXPECT_GT(decoded, 200);
    std::printf("%s: %d of %zu strings equal\n", encoded.vocabulary.c_str(), equal, strings.size());
  }
}

}  // namespace
}  // namespace trivium::oracle
