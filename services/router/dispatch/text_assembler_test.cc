#include "services/router/dispatch/text_assembler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "common/net/text.h"
#include "services/router/dispatch/dispatch_fixture.h"

namespace trivium::router {
namespace {

// Searches the whole text after every token: where it ends, or npos.
size_t FirstStop(const std::string& text, const std::vector<std::string>& stops) {
  size_t at = std::string::npos;
  for (const std::string& stop : stops) at = std::min(at, text.find(stop));
  return at;
}

struct Outcome {
  std::string text;
  size_t tokens_used = 0;
  bool is_stopped = false;
  bool operator==(const Outcome&) const = default;
};

Outcome BruteForce(const model::Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                   const std::vector<std::string>& stops) {
  model::Detokenizer detokenizer(tokenizer);
  Outcome outcome;
  for (size_t i = 0; i <= ids.size() && !outcome.is_stopped; ++i) {
    outcome.text += i < ids.size() ? detokenizer.Add(ids[i]) : detokenizer.Flush();
    outcome.tokens_used = std::min(i + 1, ids.size());
    const size_t at = FirstStop(outcome.text, stops);
    outcome.is_stopped = at != std::string::npos;
    if (outcome.is_stopped) outcome.text.resize(at);
  }
  return outcome;
}

// Also checks that what was given out is never taken back and always whole UTF-8.
Outcome Assemble(const model::Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                 const std::vector<std::string>& stops) {
  TextAssembler assembler(tokenizer, -1, stops);
  Outcome outcome;
  for (const int32_t id : ids) {
    if (assembler.is_stopped()) break;
    const std::string part = assembler.Add(id);
    EXPECT_TRUE(net::IsUtf8(part));
    outcome.text += part;
    ++outcome.tokens_used;
  }
  outcome.text += assembler.Flush();
  outcome.is_stopped = assembler.is_stopped();
  return outcome;
}

std::string RandomText(std::mt19937_64& random, size_t characters) {
  const char* const kAlphabet[] = {"a", "b", "ab", "\n", "é", "愛", "🙂"};
  std::string text;
  for (size_t i = 0; i < characters; ++i) text += kAlphabet[random() % std::size(kAlphabet)];
  return text;
}

TEST(TextAssemblerTest, EqualsASearchOverTheWholeText) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  const model::Tokenizer& tokenizer = *TinyModel()->tokenizer;
  int stopped = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<int32_t> ids = tokenizer.Encode(RandomText(random, 1 + random() % 24), {});
    // Broken characters too: single bytes out of place.
    for (int i = 0; i < 2 && random() % 4 == 0; ++i) {
      ids.insert(ids.begin() + random() % ids.size(), 3 + static_cast<int32_t>(random() % 256));
    }
    std::vector<std::string> stops;
    for (size_t i = random() % 4; i > 0; --i) stops.push_back(RandomText(random, 1 + random() % 4));
    const Outcome got = Assemble(tokenizer, ids, stops);
    ASSERT_EQ(got, BruteForce(tokenizer, ids, stops)) << got.text;
    stopped += got.is_stopped;
  }
  EXPECT_GT(stopped, 2000);
}

TEST(TextAssemblerTest, HoldsBackOnlyWhatIsUndecided) {
  const model::Tokenizer& tokenizer = *TinyModel()->tokenizer;
  const auto id = [&](const char* text) { return tokenizer.Encode(text, {}).at(0); };
  TextAssembler assembler(tokenizer, -1, {"bbx"});
  EXPECT_EQ(assembler.Add(id("a")), "a");
  EXPECT_EQ(assembler.Add(id("b")), "");
  EXPECT_EQ(assembler.Add(id("b")), "");
  EXPECT_EQ(assembler.Add(id("b")), "b");
  EXPECT_EQ(assembler.Add(id("x")), "");
  EXPECT_TRUE(assembler.is_stopped());
  EXPECT_EQ(assembler.Flush(), "");
}

}  // namespace
}  // namespace trivium::router
