#include "common/model/special_tokens.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <random>
#include <vector>

namespace trivium::model {
namespace {

std::string RandomText(std::mt19937_64& random, size_t most) {
  std::string text(random() % (most + 1), '\0');
  for (char& c : text) c = "ab\xFF"[random() % 3];
  return text;
}

TEST(SpecialTokens, FindsTheLongestThatTheTextBeginsWith) {
  const uint64_t seed = std::random_device()();
  std::printf("seed %lu\n", seed);
  std::mt19937_64 random(seed);
  size_t found = 0;
  for (int round = 0; round < 300; ++round) {
    SpecialTokens special;
    std::vector<std::string> tokens;
    for (uint64_t count = random() % 40; count > 0; --count) {
      const std::string token = RandomText(random, 8);
      if (std::find(tokens.begin(), tokens.end(), token) != tokens.end()) continue;
      special.Add(token, static_cast<int32_t>(tokens.size()));
      tokens.push_back(token);
    }
    for (int i = 0; i < 100; ++i) {
      const std::string text = RandomText(random, 12);
      SpecialTokens::Match wanted;
      for (size_t id = 0; id < tokens.size(); ++id) {
        if (!text.starts_with(tokens[id]) || tokens[id].size() <= wanted.size) continue;
        wanted = {static_cast<int32_t>(id), tokens[id].size()};
      }
      const SpecialTokens::Match match = special.MatchAt(text);
      ASSERT_EQ(match.id, wanted.id) << testing::PrintToString(text);
      ASSERT_EQ(match.size, wanted.size);
      found += match.id >= 0;
    }
  }
  EXPECT_GT(found, 1000u);
}

TEST(SpecialTokens, LeavesOutWhatIsEmptyOrTooLong) {
  SpecialTokens special;
  special.Add("", 1);
  special.Add(std::string(SpecialTokens::kMaxBytes + 1, 'a'), 2);
  EXPECT_TRUE(special.empty());
  const std::string longest(SpecialTokens::kMaxBytes, 'a');
  special.Add(longest, 3);
  EXPECT_FALSE(special.empty());
  EXPECT_EQ(special.MatchAt(longest + "a").id, 3);
  EXPECT_EQ(special.MatchAt(longest.substr(1)).id, -1);
  EXPECT_EQ(special.MatchAt("").id, -1);
}

}  // namespace
}  // namespace trivium::model
