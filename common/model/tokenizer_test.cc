#include "common/model/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <random>

#include "common/model/byte_alphabet.h"
#include "common/model/pretokenizer.h"
#include "common/model/testing/gguf_writer.h"
#include "common/model/testing/tiny_model.h"
#include "common/model/utf8.h"

namespace trivium::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string TempPath(const std::string& name) {
  return testing::TempDir() + "tokenizer_test_" + std::to_string(getpid()) + "_" + name;
}

std::unique_ptr<Tokenizer> TinyTokenizer() {
  const std::string path = TempPath("tiny.gguf");
  EXPECT_TRUE(WriteTinyModel(path, {.layers = 1, .vocab = 420}).ok());
  auto file = GgufFile::Open(path).value();
  std::filesystem::remove(path);
  return Tokenizer::Load(*file).value();  // must not need the file afterwards
}

std::string Decoded(const Tokenizer& tokenizer, std::span<const int32_t> ids) {
  std::string text;
  for (int32_t id : ids) text += tokenizer.Piece(id);
  return text;
}

std::string RandomBytes(std::mt19937_64& random) {
  const std::string alphabet = " \n\tabeht'srelvdm1290.,!<|>_\xC3\xA9\xF0\x9F\x98\x80";
  std::string text(random() % 200, '\0');
  const bool any = random() % 2 == 0;
  for (char& c : text) c = any ? static_cast<char>(random()) : alphabet[random() % alphabet.size()];
  return text;
}

// Written from the definition of UTF-8, without the decoder under test.
bool IsUtf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto byte = static_cast<uint8_t>(text[i]);
    const size_t length = byte < 0x80 ? 1 : byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : 2;
    if (byte >= 0x80 && (byte < 0xC2 || byte > 0xF4)) return false;
    if (i + length > text.size()) return false;
    uint32_t value = length == 1 ? byte : byte & (0xFFu >> (length + 1));
    for (size_t k = 1; k < length; ++k) {
      const auto next = static_cast<uint8_t>(text[i + k]);
      if (next >> 6 != 2) return false;
      value = value << 6 | (next & 0x3F);
    }
    constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
    if (value < kLeast[length] || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
      return false;
    }
    i += length;
  }
  return true;
}

std::vector<std::string> Words(std::string_view text, WordRule rule = WordRule::kSmollm) {
  std::vector<std::string> words;
  Pretokenizer pretokenizer(text, rule);
  for (std::string_view word = pretokenizer.Next(); !word.empty(); word = pretokenizer.Next()) {
    words.emplace_back(word);
  }
  return words;
}

TEST(Pretokenizer, CutsAsTheRuleSays) {
  EXPECT_THAT(Words("Hello world"), ElementsAre("Hello", " world"));
  EXPECT_THAT(Words("I'm he'll 'tis"), ElementsAre("I", "'m", " he", "'ll", " '", "tis"));
  EXPECT_THAT(Words("a12 34"), ElementsAre("a", "1", "2", " ", "3", "4"));
  EXPECT_THAT(Words("a   b"), ElementsAre("a", "  ", " b"));
  EXPECT_THAT(Words("a \n b"), ElementsAre("a", " \n", " b"));
  EXPECT_THAT(Words("a\t\tb"), ElementsAre("a", "\t", "\t", "b"));
  EXPECT_THAT(Words("a  1"), ElementsAre("a", "  ", "1"));
  EXPECT_THAT(Words("a  "), ElementsAre("a", "  "));
  EXPECT_THAT(Words(" !? x"), ElementsAre(" !?", " x"));
  EXPECT_THAT(Words("\xFF\xC3 \xE4\xBD\xA0"), ElementsAre("\xFF\xC3", " \xE4\xBD\xA0"));
  EXPECT_THAT(Words(""), ElementsAre());
}

TEST(Pretokenizer, CutsAsEachRuleSays) {
  const auto gpt2 = [](std::string_view text) { return Words(text, WordRule::kGpt2); };
  const auto llama = [](std::string_view text) { return Words(text, WordRule::kLlamaBpe); };
  const auto qwen = [](std::string_view text) { return Words(text, WordRule::kQwen2); };
  EXPECT_THAT(gpt2("a12 34  5"), ElementsAre("a", "12", " 34", " ", " 5"));
  EXPECT_THAT(gpt2("I'M"), ElementsAre("I", "'", "M"));
  EXPECT_THAT(llama("I'M we'Re 'S"), ElementsAre("I", "'M", " we", "'Re", " '", "S"));
  EXPECT_THAT(llama("12345 67"), ElementsAre("123", "45", " ", "67"));
  EXPECT_THAT(qwen("123 4"), ElementsAre("1", "2", "3", " ", "4"));
  EXPECT_THAT(llama("(a) !b\tc"), ElementsAre("(a", ")", " !", "b", "\tc"));
  EXPECT_THAT(llama("x.\r\n\ny"), ElementsAre("x", ".\r\n\n", "y"));
  EXPECT_THAT(llama("a \n \n  b"), ElementsAre("a", " \n \n", " ", " b"));
  EXPECT_THAT(llama("a\n\nb  1"), ElementsAre("a", "\n\n", "b", " ", " ", "1"));
  EXPECT_THAT(llama("a   "), ElementsAre("a", "   "));
  EXPECT_THAT(llama("'\xC5\xBFx"), ElementsAre("'\xC5\xBF", "x")) << "a long s";
}

TEST(Pretokenizer, JoinsToTheTextAndTakesLinearTime) {
  const uint64_t seed = std::random_device()();
  std::printf("seed %lu\n", seed);
  std::mt19937_64 random(seed);
  for (WordRule rule :
       {WordRule::kGpt2, WordRule::kSmollm, WordRule::kLlamaBpe, WordRule::kQwen2}) {
    for (int i = 0; i < 2000; ++i) {
      const std::string text = RandomBytes(random);
      std::string joined;
      for (const std::string& word : Words(text, rule)) joined += word;
      ASSERT_EQ(joined, text);
    }
    // Quadratic time would be hours.
    std::string hard = "\n" + std::string(4 << 20, ' ') + "1";
    for (int i = 0; i < 1 << 20; ++i) hard += "\n  ";
    size_t bytes = 0;
    for (const std::string& word : Words(hard, rule)) bytes += word.size();
    EXPECT_EQ(bytes, hard.size());
  }
}

TEST(ByteAlphabet, IsABijection) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) AppendByteSymbol(static_cast<uint8_t>(byte), all);
  EXPECT_TRUE(IsUtf8(all));
  std::string back;
  ASSERT_TRUE(AppendSymbolBytes(all, back));
  for (int byte = 0; byte < 256; ++byte) EXPECT_EQ(static_cast<uint8_t>(back[byte]), byte);
  EXPECT_FALSE(AppendSymbolBytes("a b", back));
  EXPECT_EQ(back.size(), 256u);
}

TEST(Tokenizer, MergesByRankThenPosition) {
  auto tokenizer = TinyTokenizer();
  auto pieces = [&](std::string_view text) {
    std::vector<std::string> out;
    for (int32_t id : tokenizer->Encode(text, {})) out.emplace_back(tokenizer->Piece(id));
    return out;
  };
  EXPECT_THAT(pieces("the the"), ElementsAre("t", "he", " the"));
  EXPECT_THAT(pieces("thing"), ElementsAre("t", "h", "ing"));
  EXPECT_THAT(pieces("aaaaa"), ElementsAre("aa", "aa", "a"));
}

// The textbook algorithm: find the best pair, merge it, look again from the start.
std::vector<std::string> SlowMerge(std::vector<std::string> parts,
                                   const std::vector<std::pair<std::string, std::string>>& merges) {
  for (bool merged = true; merged;) {
    merged = false;
    for (const auto& [left, right] : merges) {
      for (size_t i = 0; i + 1 < parts.size() && !merged; ++i) {
        if (parts[i] != left || parts[i + 1] != right) continue;
        parts[i] += parts[i + 1];
        parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(i) + 1);
        merged = true;
      }
      if (merged) break;
    }
  }
  return parts;
}

TEST(Tokenizer, EqualsTheTextbookOnRandomVocabularies) {
  const uint64_t seed = std::random_device()();
  std::printf("seed %lu\n", seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 20; ++round) {
    std::vector<std::string> tokens;
    for (int byte = 0; byte < 256; ++byte) {
      AppendByteSymbol(static_cast<uint8_t>(byte), tokens.emplace_back());
    }
    std::vector<std::string> words = {"a", "b", "c"};
    std::vector<std::pair<std::string, std::string>> pairs;
    std::vector<std::string> merges;
    while (pairs.size() < 25) {
      const std::string left = words[random() % words.size()];
      const std::string right = words[random() % words.size()];
      if (std::find(words.begin(), words.end(), left + right) != words.end()) continue;
      words.push_back(left + right);
      tokens.push_back(left + right);
      pairs.emplace_back(left, right);
      merges.push_back(left + " " + right);
    }
    GgufWriter writer;
    writer.AddString("tokenizer.ggml.model", "gpt2");
    writer.AddString("tokenizer.ggml.pre", "smollm");
    writer.AddStrings("tokenizer.ggml.tokens", tokens);
    writer.AddStrings("tokenizer.ggml.merges", merges);
    const std::string path = TempPath("random.gguf");
    ASSERT_TRUE(writer.WriteFile(path).ok());
    auto tokenizer = Tokenizer::Load(*GgufFile::Open(path).value()).value();
    std::filesystem::remove(path);
    for (int i = 0; i < 50; ++i) {
      std::string text(1 + random() % 40, '\0');
      std::vector<std::string> parts;
      for (char& c : text) parts.emplace_back(1, c = static_cast<char>('a' + random() % 3));
      std::vector<std::string> got;
      for (int32_t id : tokenizer->Encode(text, {})) got.emplace_back(tokenizer->Piece(id));
      EXPECT_EQ(got, SlowMerge(parts, pairs)) << text;
    }
  }
}

TEST(Tokenizer, RoundTripsAnyBytes) {
  const uint64_t seed = std::random_device()();
  std::printf("seed %lu\n", seed);
  std::mt19937_64 random(seed);
  auto tokenizer = TinyTokenizer();
  for (int i = 0; i < 5000; ++i) {
    const std::string text = RandomBytes(random);
    ASSERT_EQ(Decoded(*tokenizer, tokenizer->Encode(text, {})), text);
  }
}

TEST(Tokenizer, ParsesControlTokensOnlyOnRequest) {
  auto tokenizer = TinyTokenizer();
  const std::string text = "<|im_start|>a<|im_end|><|im_start";
  const std::vector<int32_t> plain = tokenizer->Encode(text, {});
  EXPECT_EQ(Decoded(*tokenizer, plain), text);
  for (int32_t id : plain) EXPECT_GE(id, 3) << "a control token from ordinary text";
  const std::vector<int32_t> parsed = tokenizer->Encode(text, {.parse_special = true});
  EXPECT_EQ(parsed[0], 1);
  EXPECT_EQ(parsed[2], 2);
  EXPECT_EQ(Decoded(*tokenizer, parsed), "a<|im_start");
  EXPECT_EQ(tokenizer->Piece(1), "");
  EXPECT_EQ(tokenizer->Piece(1, true), "<|im_start|>");
  EXPECT_EQ(tokenizer->Encode("a", {.add_bos = true})[0], tokenizer->bos_id());
  EXPECT_THAT(tokenizer->end_of_generation_ids(), ElementsAre(0, 2));
  for (int32_t id : {-1, INT32_MIN, 420, INT32_MAX}) EXPECT_EQ(tokenizer->Piece(id, true), "");
}

TEST(Tokenizer, LongWordsTakeNearlyLinearTime) {
  auto tokenizer = TinyTokenizer();
  EXPECT_EQ(tokenizer->Encode(std::string(1 << 20, 'a'), {}).size(), 1u << 19);
  EXPECT_EQ(tokenizer->Encode(std::string(1 << 20, ' '), {}).size(), 1u << 19);
  EXPECT_EQ(tokenizer->Encode(std::string(1 << 20, '<'), {.parse_special = true}).size(), 1u << 20);
  EXPECT_EQ(tokenizer->Encode(std::string(1 << 20, '\xFF'), {}).size(), 1u << 20);
}

TEST(Detokenizer, GivesValidUtf8AndLosesNothing) {
  const uint64_t seed = std::random_device()();
  std::printf("seed %lu\n", seed);
  std::mt19937_64 random(seed);
  auto tokenizer = TinyTokenizer();
  for (int i = 0; i < 5000; ++i) {
    const std::string text = RandomBytes(random);
    Detokenizer detokenizer(*tokenizer);
    std::string streamed;
    for (int32_t id : tokenizer->Encode(text, {})) {
      const std::string part = detokenizer.Add(id);
      ASSERT_TRUE(IsUtf8(part));
      streamed += part;
    }
    streamed += detokenizer.Flush();
    ASSERT_TRUE(IsUtf8(streamed));
    if (IsUtf8(text)) {
      ASSERT_EQ(streamed, text);
    } else {
      ASSERT_THAT(streamed, HasSubstr("\xEF\xBF\xBD"));
    }
  }
}

TEST(Detokenizer, HoldsBackUnfinishedCharacters) {
  auto tokenizer = TinyTokenizer();
  Detokenizer detokenizer(*tokenizer);
  const std::vector<int32_t> ids = tokenizer->Encode("\xF0\x9F\x98\x80", {});
  ASSERT_EQ(ids.size(), 4u);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(detokenizer.Add(ids[i]), "");
  EXPECT_EQ(detokenizer.Add(ids[3]), "\xF0\x9F\x98\x80");
  EXPECT_EQ(detokenizer.Flush(), "");
  EXPECT_EQ(detokenizer.Add(ids[0]), "");
  const int32_t letter = tokenizer->Encode("x", {})[0];
  EXPECT_EQ(detokenizer.Add(letter), "\xEF\xBF\xBDx");
  EXPECT_EQ(detokenizer.Add(ids[0]), "");
  EXPECT_EQ(detokenizer.Add(ids[1]), "");
  EXPECT_EQ(detokenizer.Flush(), "\xEF\xBF\xBD");
  EXPECT_EQ(detokenizer.Flush(), "");
}

struct BadVocabulary {
  const char* what;
  absl::StatusCode code;
  std::function<void(GgufWriter&)> write;
};

TEST(Tokenizer, RefusesVocabulariesByName) {
  const auto tokens = [](GgufWriter& w) {
    w.AddStrings("tokenizer.ggml.tokens", {"a", "b", "ab"});
  };
  const auto kind = [](GgufWriter& w) {
    w.AddString("tokenizer.ggml.model", "gpt2");
    w.AddString("tokenizer.ggml.pre", "smollm");
  };
  const auto merges = [&](const std::vector<std::string>& pairs) {
    return [&, pairs](GgufWriter& w) {
      kind(w), tokens(w), w.AddStrings("tokenizer.ggml.merges", pairs);
    };
  };
  const auto invalid = absl::StatusCode::kInvalidArgument;
  const auto unimplemented = absl::StatusCode::kUnimplemented;
  const std::vector<BadVocabulary> cases = {
      {"tokenizer.ggml.model", absl::StatusCode::kNotFound, tokens},
      {"t5", unimplemented, [](GgufWriter& w) { w.AddString("tokenizer.ggml.model", "t5"); }},
      {"tekken", unimplemented,
       [](GgufWriter& w) {
         w.AddString("tokenizer.ggml.model", "gpt2"), w.AddString("tokenizer.ggml.pre", "tekken");
       }},
      {"no key tokenizer.ggml.pre", invalid,
       [](GgufWriter& w) { w.AddString("tokenizer.ggml.model", "gpt2"); }},
      {"tokenizer.ggml.tokens", absl::StatusCode::kNotFound, kind},
      {"merges", absl::StatusCode::kNotFound, [&](GgufWriter& w) { kind(w), tokens(w); }},
      {"merges[0]", invalid, merges({"ab"})},
      {"merges[0]", invalid, merges({"b a"})},
      {"merges[1]", invalid, merges({"a b", "a b"})},
      {"tokens[1]", invalid,
       [&](GgufWriter& w) {
         kind(w), w.AddStrings("tokenizer.ggml.tokens", {"a", "a"});
       }},
      {"tokens[1] is not valid UTF-8", invalid,
       [&](GgufWriter& w) {
         kind(w), w.AddStrings("tokenizer.ggml.tokens", {"a", "\xC3"});
       }},
      {"token_type", invalid,
       [&](GgufWriter& w) {
         merges({"a b"})(w), w.AddInt32s("tokenizer.ggml.token_type", {1, 1});
       }},
      {"token_type[2]", invalid,
       [&](GgufWriter& w) {
         merges({"a b"})(w), w.AddInt32s("tokenizer.ggml.token_type", {1, 1, 7});
       }},
      {"eos_token_id", invalid,
       [&](GgufWriter& w) { merges({"a b"})(w), w.AddUint32("tokenizer.ggml.eos_token_id", 3); }},
  };
  for (const BadVocabulary& bad : cases) {
    GgufWriter writer;
    bad.write(writer);
    const std::string path = TempPath("bad.gguf");
    ASSERT_TRUE(writer.WriteFile(path).ok());
    auto tokenizer = Tokenizer::Load(*GgufFile::Open(path).value());
    std::filesystem::remove(path);
    ASSERT_FALSE(tokenizer.ok()) << bad.what;
    EXPECT_EQ(tokenizer.status().code(), bad.code) << Message(tokenizer.status());
    EXPECT_THAT(Message(tokenizer.status()), HasSubstr(bad.what));
  }
}

// "hello" is a token that no merges lead to.
TEST(Tokenizer, TakesWholeWordsWhereTheRuleSays) {
  const auto load = [](const std::string& pre) {
    std::vector<std::string> tokens;
    for (int byte = 0; byte < 256; ++byte) {
      AppendByteSymbol(static_cast<uint8_t>(byte), tokens.emplace_back());
    }
    const std::vector<std::string> merged = {"he", "ll", "hello", "\xC4\xA0hello", "<s>"};
    tokens.insert(tokens.end(), merged.begin(), merged.end());
    std::vector<int32_t> types(tokens.size(), 1);
    types.back() = 3;
    GgufWriter writer;
    writer.AddString("tokenizer.ggml.model", "gpt2");
    writer.AddString("tokenizer.ggml.pre", pre);
    writer.AddStrings("tokenizer.ggml.tokens", tokens);
    writer.AddInt32s("tokenizer.ggml.token_type", types);
    writer.AddStrings("tokenizer.ggml.merges", {"h e", "l l"});
    writer.AddUint32("tokenizer.ggml.bos_token_id", 260);
    const std::string path = TempPath("whole.gguf");
    EXPECT_TRUE(writer.WriteFile(path).ok());
    auto tokenizer = Tokenizer::Load(*GgufFile::Open(path).value()).value();
    std::filesystem::remove(path);
    return tokenizer;
  };
  for (const char* name : {"llama-bpe", "llama3", "llama-v3"}) {
    const auto llama = load(name);
    EXPECT_THAT(llama->Encode("hello hello", {}), ElementsAre(258, 259));
    EXPECT_THAT(llama->Encode("hellohe", {}), ElementsAre(256, 257, 'o', 256));
    EXPECT_THAT(llama->Encode("<s>", {}), ElementsAre('<', 's', '>'));
    EXPECT_TRUE(llama->adds_bos());
  }
  const auto qwen = load("qwen2");
  EXPECT_EQ(qwen->Encode("hello", {}).size(), 3u);
  EXPECT_FALSE(qwen->adds_bos());
  EXPECT_NE(load("qwen2")->digest(), load("gpt-2")->digest());
  EXPECT_EQ(load("default")->digest(), load("gpt-2")->digest());
}

TEST(Tokenizer, DigestFollowsTheVocabulary) {
  auto tokenizer = TinyTokenizer();
  EXPECT_EQ(tokenizer->digest().size(), 32u);
  EXPECT_EQ(tokenizer->digest(), TinyTokenizer()->digest());
  const std::string path = TempPath("other.gguf");
  ASSERT_TRUE(WriteTinyModel(path, {.layers = 1, .vocab = 421}).ok());
  EXPECT_NE(Tokenizer::Load(*GgufFile::Open(path).value()).value()->digest(), tokenizer->digest());
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace trivium::model
