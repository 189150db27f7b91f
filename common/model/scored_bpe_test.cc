#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <random>

#include "common/model/testing/gguf_writer.h"
#include "common/model/tokenizer.h"

namespace trivium::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kMark[] = "\xE2\x96\x81";

struct Entry {
  std::string text;
  float score = 0;
  int32_t type = 1;
};

struct TestVocabulary {
  std::vector<Entry> entries = {{"<unk>", 0, 2}, {"<s>", 0, 3}, {"</s>", 0, 3}};

  void AddBytes() {
    for (int byte = 0; byte < 256; ++byte)
      entries.push_back({fmt::format("<0x{:02X}>", byte), 0, 6});
  }
  GgufWriter Writer() const {
    std::vector<std::string> tokens;
    std::vector<float> scores;
    std::vector<int32_t> types;
    for (const Entry& entry : entries) {
      tokens.push_back(entry.text);
      scores.push_back(entry.score);
      types.push_back(entry.type);
    }
    GgufWriter writer;
    writer.AddString("tokenizer.ggml.model", "llama");
    writer.AddStrings("tokenizer.ggml.tokens", tokens);
    writer.AddFloats("tokenizer.ggml.scores", scores);
    writer.AddInt32s("tokenizer.ggml.token_type", types);
    writer.AddUint32("tokenizer.ggml.unknown_token_id", 0);
    writer.AddUint32("tokenizer.ggml.bos_token_id", 1);
    writer.AddUint32("tokenizer.ggml.eos_token_id", 2);
    return writer;
  }
};

absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const GgufWriter& writer) {
  const std::string path =
      testing::TempDir() + "scored_bpe_test_" + std::to_string(getpid()) + ".gguf";
  EXPECT_TRUE(writer.WriteFile(path).ok());
  auto file = GgufFile::Open(path);
  std::filesystem::remove(path);
  return Tokenizer::Load(**file);
}

// 3 + 256 tokens, then "▁" 259, a 260, b 261, ab 262, "▁a" 263, <t> 264, ud 265.
TestVocabulary Small() {
  TestVocabulary vocabulary;
  vocabulary.AddBytes();
  for (const Entry& entry : std::vector<Entry>{{kMark, -1},
                                               {"a", -2},
                                               {"b", -3},
                                               {"ab", -4},
                                               {std::string(kMark) + "a", -5},
                                               {"<t>", 0, 3},
                                               {"ud", 0, 4}}) {
    vocabulary.entries.push_back(entry);
  }
  return vocabulary;
}

std::string Streamed(const Tokenizer& tokenizer, std::span<const int32_t> ids, int32_t previous) {
  Detokenizer detokenizer(tokenizer, previous);
  std::string text;
  for (int32_t id : ids) text += detokenizer.Add(id);
  return text + detokenizer.Flush();
}

// As Gemma 3 has it: no space in front, runs of newlines as user-defined tokens, ends of turns.
TEST(ScoredBpe, ReadsVocabulariesLikeGemmas) {
  TestVocabulary vocabulary = Small();  // 266 tokens
  for (const Entry& entry : std::vector<Entry>{{"\n", -1000, 4},
                                               {"\n\n", -1000, 4},
                                               {"<start_of_turn>", -1000, 3},
                                               {"<end_of_turn>", -1000, 3}}) {
    vocabulary.entries.push_back(entry);
  }
  GgufWriter writer = vocabulary.Writer();
  writer.AddBool("tokenizer.ggml.add_space_prefix", false);
  writer.AddBool("tokenizer.ggml.add_bos_token", true);
  const auto tokenizer = Load(writer).value();
  EXPECT_TRUE(tokenizer->adds_bos());
  EXPECT_FALSE(tokenizer->AddsSpaceAfter(-1));
  EXPECT_THAT(tokenizer->end_of_generation_ids(), ElementsAre(2, 269));
  const std::string text = "<start_of_turn>ab\n\n\n a\u00e9<end_of_turn>\n";
  const auto ids = tokenizer->Encode(text, {.add_bos = true, .parse_special = true});
  EXPECT_THAT(ids, ElementsAre(1, 268, 262, 267, 266, 263, 3 + 0xC3, 3 + 0xA9, 269, 266));
  EXPECT_EQ(Streamed(*tokenizer, ids, -1), "ab\n\n\n a\u00e9\n");
}

std::vector<std::string> TextbookMerge(std::vector<std::string> parts,
                                       const std::map<std::string, float>& scores) {
  while (true) {
    size_t best = parts.size();
    float best_score = -INFINITY;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto found = scores.find(parts[i] + parts[i + 1]);
      if (found == scores.end() || found->second <= best_score) continue;
      best = i;
      best_score = found->second;
    }
    if (best == parts.size()) return parts;
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

TEST(ScoredBpe, EqualsTheTextbookOnRandomVocabularies) {
  const uint64_t seed = std::random_device()();
  std::printf("seed %lu\n", seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 30; ++round) {
    // "c" is no token, but tokens contain it.
    std::map<std::string, float> scores = {{"a", -1}, {"b", -1}, {kMark, -1}};
    std::vector<std::string> words = {"a", "b", "c", kMark};
    while (scores.size() < 30) {
      const std::string word = words[random() % words.size()] + words[random() % words.size()];
      // Few values, so that many are equal.
      if (scores.emplace(word, -static_cast<float>(random() % 6)).second) words.push_back(word);
    }
    TestVocabulary vocabulary;
    vocabulary.AddBytes();
    for (const auto& [text, score] : scores) vocabulary.entries.push_back({text, score});
    const auto tokenizer = Load(vocabulary.Writer()).value();
    for (int i = 0; i < 100; ++i) {
      std::string text;
      std::vector<std::string> parts = {kMark};
      for (uint64_t n = 1 + random() % 30; n > 0; --n) {
        const char c = "abc "[random() % 4];
        text += c;
        parts.push_back(c == ' ' ? kMark : std::string(1, c));
      }
      std::vector<std::string> got;
      for (int32_t id : tokenizer->Encode(text, {})) {
        got.push_back(vocabulary.entries[static_cast<size_t>(id)].text);
      }
      std::vector<std::string> wanted = TextbookMerge(parts, scores);
      for (std::string& part : wanted) part = part == "c" ? "<0x63>" : part;
      ASSERT_EQ(got, wanted) << text;
    }
  }
}

TEST(ScoredBpe, PutsASpaceInFrontOfEachText) {
  const auto tokenizer = Load(Small().Writer()).value();
  EXPECT_THAT(tokenizer->Encode("ab", {}), ElementsAre(259, 262));
  EXPECT_THAT(tokenizer->Encode(" a", {}), ElementsAre(259, 263));
  EXPECT_THAT(tokenizer->Encode("", {}), ElementsAre());
  EXPECT_THAT(tokenizer->Encode("a", {.add_bos = true, .add_eos = true}), ElementsAre(1, 263, 2));
  EXPECT_THAT(tokenizer->Encode("a<t>a<t>", {.parse_special = true}),
              ElementsAre(263, 264, 263, 264));
  EXPECT_THAT(tokenizer->Encode("ud", {}), ElementsAre(259, 265));
  EXPECT_THAT(tokenizer->Encode("audb", {}), ElementsAre(263, 265, 261));
  EXPECT_THAT(tokenizer->Encode("<t>ud", {.parse_special = true}), ElementsAre(264, 259, 265));
  EXPECT_TRUE(tokenizer->adds_bos());
  EXPECT_FALSE(tokenizer->adds_eos());
}

TEST(ScoredBpe, KeepsTheSpaceThatGoesOnAPrompt) {
  const auto tokenizer = Load(Small().Writer()).value();
  const std::vector<int32_t> word = {263, 261};
  EXPECT_EQ(Streamed(*tokenizer, word, -1), "ab");
  EXPECT_EQ(Streamed(*tokenizer, word, 264), "ab") << "behind a control token";
  EXPECT_EQ(Streamed(*tokenizer, word, 262), " ab") << "behind ordinary text";
  EXPECT_EQ(Streamed(*tokenizer, word, 265), " ab") << "behind a user-defined token";
  EXPECT_EQ(Streamed(*tokenizer, std::vector<int32_t>{263, 264, 263}, -1), "aa");
  EXPECT_EQ(Streamed(*tokenizer, std::vector<int32_t>{259, 263}, -1), " a") << "one space only";
  GgufWriter bare = Small().Writer();
  bare.AddBool("tokenizer.ggml.add_space_prefix", false);
  const auto without = Load(bare).value();
  EXPECT_THAT(without->Encode("a a", {}), ElementsAre(260, 263));
  EXPECT_EQ(Streamed(*without, word, -1), " ab");
  EXPECT_NE(without->digest(), tokenizer->digest());
}

TEST(ScoredBpe, RoundTripsAnyBytes) {
  const uint64_t seed = std::random_device()();
  std::printf("seed %lu\n", seed);
  std::mt19937_64 random(seed);
  const auto tokenizer = Load(Small().Writer()).value();
  const std::string alphabet = " ab<t>\n\xC3\xA9\xF0\x9F\x98\x80";
  for (int i = 0; i < 5000; ++i) {
    std::string text(random() % 200, '\0');
    const bool any = random() % 2 == 0;
    for (char& c : text)
      c = any ? static_cast<char>(random()) : alphabet[random() % alphabet.size()];
    if (text.find(kMark) != std::string::npos) continue;
    std::string decoded;
    for (int32_t id : tokenizer->Encode(text, {})) decoded += tokenizer->Piece(id);
    ASSERT_EQ(decoded, text.empty() ? "" : " " + text);
  }
}

TEST(ScoredBpe, LongTextsTakeNearlyLinearTime) {
  const auto tokenizer = Load(Small().Writer()).value();
  EXPECT_EQ(tokenizer->Encode(std::string(1 << 20, 'a'), {}).size(), 1u << 20);
  EXPECT_EQ(tokenizer->Encode(std::string(1 << 20, ' '), {}).size(), (1u << 20) + 1);
  EXPECT_EQ(tokenizer->Encode(std::string(1 << 20, '\xFF'), {}).size(), (1u << 20) + 1);
}

TEST(ScoredBpe, HandlesVocabulariesWithoutBytesOrSpaces) {
  TestVocabulary bare;
  bare.entries.push_back({"a", -1});
  const auto without_bytes = Load(bare.Writer()).value();
  EXPECT_THAT(without_bytes->Encode("axya z", {}), ElementsAre(0, 3, 0, 3, 0));
  bare.AddBytes();
  const auto without_mark = Load(bare.Writer()).value();
  EXPECT_THAT(without_mark->Encode("a ", {}), ElementsAre(4 + ' ', 3, 4 + ' '));
}

TEST(ScoredBpe, RefusesHostileVocabulariesByName) {
  struct Case {
    std::string text;
    absl::StatusCode code;
    std::function<void(TestVocabulary&)> spoil = [](TestVocabulary&) {};
    std::function<void(GgufWriter&)> write = [](GgufWriter&) {};
  };
  const auto invalid = absl::StatusCode::kInvalidArgument;
  const auto unimplemented = absl::StatusCode::kUnimplemented;
  const std::vector<Case> cases = {
      {"tokens[266] repeats \"ab\"", invalid, [](auto& v) { v.entries.push_back({"ab"}); }},
      {"tokens[266] is not valid UTF-8", invalid,
       [](auto& v) { v.entries.push_back({"\xE2\x96"}); }},
      // It would be found inside of U+2581.
      {"tokens[266] is not valid UTF-8", invalid,
       [](auto& v) {
         v.entries.push_back({"\x96", 0, 3});
       }},
      {"but not <0x41>", invalid, [](auto& v) { v.entries.erase(v.entries.begin() + 3 + 0x41); }},
      {"\"<0xzz>\" is no byte", invalid,
       [](auto& v) {
         v.entries.push_back({"<0xzz>", 0, 6});
       }},
      {"scores[260] is nan", invalid, [](auto& v) { v.entries[260].score = NAN; }},
      {"scores[260] is inf", invalid, [](auto& v) { v.entries[260].score = INFINITY; }},
      {"10485760 bytes, at most", invalid,
       [](auto& v) { v.entries.push_back({std::string(10 << 20, 'x')}); }},
      {"token_type[260] is 9", invalid, [](auto& v) { v.entries[260].type = 9; }},
      {"precompiled_charsmap", unimplemented, [](auto&) {},
       [](GgufWriter& w) { w.AddInt32s("tokenizer.ggml.precompiled_charsmap", {1}); }},
      {"remove_extra_whitespaces", unimplemented, [](auto&) {},
       [](GgufWriter& w) { w.AddBool("tokenizer.ggml.remove_extra_whitespaces", true); }},
      {"add_space_prefix holds an integer", invalid, [](auto&) {},
       [](GgufWriter& w) { w.AddUint32("tokenizer.ggml.add_space_prefix", 1); }},
  };
  for (const Case& bad : cases) {
    TestVocabulary vocabulary = Small();
    bad.spoil(vocabulary);
    GgufWriter writer = vocabulary.Writer();
    bad.write(writer);
    const auto tokenizer = Load(writer);
    ASSERT_FALSE(tokenizer.ok()) << bad.text;
    EXPECT_EQ(tokenizer.status().code(), bad.code) << Message(tokenizer.status());
    EXPECT_THAT(Message(tokenizer.status()), HasSubstr(bad.text));
  }
  GgufWriter few;
  few.AddString("tokenizer.ggml.model", "llama");
  few.AddStrings("tokenizer.ggml.tokens", {"a", "b"});
  EXPECT_THAT(Message(Load(few).status()), HasSubstr("tokenizer.ggml.scores"));
  few.AddFloats("tokenizer.ggml.scores", {1});
  EXPECT_THAT(Message(Load(few).status()), HasSubstr("1 elements for 2 tokens"));
}

// Every run of 'a' up to the longest token makes a rule for each place where it can be cut.
TEST(ScoredBpe, BoundsTheRulesOfARepetitiveVocabulary) {
  TestVocabulary vocabulary;
  for (size_t size = 1; size <= 1024; ++size) {
    vocabulary.entries.push_back({std::string(size, 'a'), static_cast<float>(size)});
  }
  const auto tokenizer = Load(vocabulary.Writer());
  ASSERT_TRUE(tokenizer.ok()) << Message(tokenizer.status());
  EXPECT_THAT((*tokenizer)->Encode(std::string(1024, 'a'), {}), ElementsAre(0, 1026));
}

}  // namespace
}  // namespace trivium::model
