// How load is told, and when looking up is given up.
#include "services/router/semantic_cache/load_policy.h"

#include <gtest/gtest.h>

#include "services/router/semantic_cache/break_even.h"

namespace trivium::router {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;

TEST(LoadPolicyTest, RisesInStepsAndComesBackToNothing) {
  LoadPolicy policy({});
  VirtualClock clock;
  float told = 0, most = 0;
  int changes = 0;
  const auto pass = [&](int seconds, double queue) {
    for (int i = 0; i < 2 * seconds; ++i) {
      clock.Advance(milliseconds(500));
      const float now = policy.Update(clock.Now(), queue);
      changes += now != told;
      told = now;
      most = std::max(most, now);
    }
  };
  pass(30, 0);
  EXPECT_EQ(told, 0.0f);
  pass(60, 1000);
  EXPECT_EQ(told, 1.0f);
  pass(100, 18);  // half way between the marks
  EXPECT_NEAR(told, 0.5, 0.1);
  pass(120, 0);
  EXPECT_EQ(told, 0.0f);
  EXPECT_LE(changes, 310 / 5);
  for (int i = 0; i < 40; ++i) policy.FirstToken(clock.Now(), i < 36 ? 0.1 : 60);
  pass(10, 0);
  EXPECT_GT(told, 0.4f) << "a slow twentieth";
  pass(150, 0);
  EXPECT_EQ(told, 0.0f) << "old times are forgotten";
}

struct BreakEvenTest : testing::Test {
  // A window of a hundred requests of which so many hit; how many were looked up.
  int Window(int hits) {
    int looked = 0;
    for (int i = 0; i < 100; ++i) {
      if (!even.ShouldLook(1)) continue;
      ++looked;
      even.Looked(1, i < hits, 0.004);
    }
    clock.Advance(minutes(10));
    even.Tick(clock.Now());
    return looked;
  }
  BreakEven even{2};
  VirtualClock clock;
};

TEST_F(BreakEvenTest, IsComputedFromTimes) {
  EXPECT_EQ(even.state(0).break_even, 0.0) << "nothing is known yet";
  even.Looked(0, false, 0.004);
  even.Answered(0.180);
  even.Inserted(0.001);
  even.Fetched(0.002);
  EXPECT_NEAR(even.state(0).break_even, 0.005 / 0.179, 1e-9);
  BreakEven dear(1);
  dear.Looked(0, false, 0.004);
  dear.Answered(0.001);
  EXPECT_EQ(dear.state(0).break_even, 1.0) << "the model is faster than the look";
}

TEST_F(BreakEvenTest, SuspendsAfterThreeWindowsAndResumesBySamples) {
  even.Tick(clock.Now());
  even.Answered(0.040);  // pays from a tenth on
  EXPECT_EQ(Window(20), 100);
  for (int i = 0; i < 8 && !even.state(1).is_suspended; ++i) EXPECT_EQ(Window(1), 100);
  EXPECT_TRUE(even.state(1).is_suspended);
  EXPECT_FALSE(even.state(0).is_suspended);
  EXPECT_EQ(Window(0), 2);
  EXPECT_EQ(even.state(1).passed, 98u);
  EXPECT_EQ(Window(100), 2);
  EXPECT_FALSE(even.state(1).is_suspended);
  EXPECT_EQ(Window(100), 100);
}

}  // namespace
}  // namespace trivium::router
