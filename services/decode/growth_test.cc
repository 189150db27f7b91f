// The decisions about growth against the rules written out plainly.
#include "services/decode/growth.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <random>
#include <vector>

#include "common/kv/answer_room.h"

namespace trivium::decode {
namespace {

TEST(AnswerLengthsTest, IsTheMeanOfTheLastAnswersOnceThereAreEnough) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  AnswerLengths lengths;
  std::deque<int64_t> last;
  for (int i = 1; i <= 500; ++i) {
    const auto tokens = static_cast<int32_t>(random() % 2000 + 1);
    lengths.Add(tokens);
    last.push_back(tokens);
    if (last.size() > AnswerLengths::kWindow) last.pop_front();
    int64_t sum = 0;
    for (const int64_t one : last) sum += one;
    const double mean = static_cast<double>(sum) / static_cast<double>(last.size());
    if (i < AnswerLengths::kFewest) {
      ASSERT_EQ(lengths.expected(), 0);
    } else {
      ASSERT_GE(lengths.expected(), mean);
      ASSERT_LT(lengths.expected(), mean + 1);
    }
  }
}

TEST(TokensToReserveTest, AllOfItUnlessTheLengthIsUnknownAndExpected) {
  using kv::TokensToReserve;
  EXPECT_EQ(TokensToReserve({.remaining = 500}, 0), 500);
  EXPECT_EQ(TokensToReserve({.remaining = 500}, 60), 60);
  EXPECT_EQ(TokensToReserve({.remaining = 40}, 60), 40);
  EXPECT_EQ(TokensToReserve({.remaining = 500, .in_full = true}, 60), 500);
  EXPECT_EQ(TokensToReserve({.remaining = 500, .preemptions = kv::kPreemptionsMax - 1}, 60), 60);
  EXPECT_EQ(TokensToReserve({.remaining = 500, .preemptions = kv::kPreemptionsMax}, 60), 500);
}

bool StandsHigher(const Standing& a, const Standing& b) {
  if (a.priority != b.priority) return a.priority > b.priority;
  if (a.preemptions != b.preemptions) return a.preemptions > b.preemptions;
  return a.number < b.number;
}

TEST(GivesWayTest, EverybodyElseStandsHigherOrHasGivenWayOftenEnough) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 5000; ++round) {
    std::vector<Standing> running;
    for (uint64_t i = random() % 10; i > 0; --i) {
      running.push_back({.number = i,
                         .priority = static_cast<int32_t>(random() % 3) - 1,
                         .preemptions = static_cast<int32_t>(random() % 4)});
    }
    std::shuffle(running.begin(), running.end(), random);
    const int chosen = GivesWay(running);
    const auto may = [](const Standing& one) { return one.preemptions < kv::kPreemptionsMax; };
    if (chosen < 0) {
      ASSERT_TRUE(std::none_of(running.begin(), running.end(), may));
      continue;
    }
    const Standing& one = running[static_cast<size_t>(chosen)];
    ASSERT_TRUE(may(one));
    for (const Standing& other : running) {
      ASSERT_TRUE(other.number == one.number || !may(other) || StandsHigher(other, one));
    }
  }
}

TEST(SpareBlocksTest, OneForEachFourThatMayGrow) {
  EXPECT_EQ(SpareBlocks(0), 0);
  EXPECT_EQ(SpareBlocks(1), 1);
  EXPECT_EQ(SpareBlocks(4), 1);
  EXPECT_EQ(SpareBlocks(32), 8);
}

}  // namespace
}  // namespace trivium::decode
