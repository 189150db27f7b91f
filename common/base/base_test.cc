#include <gtest/gtest.h>

#include <unordered_set>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/status.h"

namespace trivium {
namespace {

absl::StatusOr<int> Half(int n) {
  if (n % 2 != 0) return InvalidArgument("{} is odd", n);
  return n / 2;
}

absl::StatusOr<int> Quarter(int n) {
  ASSIGN_OR_RETURN(const int half, Half(n));
  ASSIGN_OR_RETURN(const int quarter, Half(half));
  return quarter;
}

TEST(StatusTest, MacrosPassValuesAndErrors) {
  EXPECT_EQ(*Quarter(8), 2);
  EXPECT_EQ(Message(Quarter(6).status()), "3 is odd");
}

TEST(StatusDeathTest, BrokenInvariantEndsTheProcess) {
  EXPECT_DEATH(TRIVIUM_CHECK(1 == 2, "count {}", 7), "broken invariant.*count 7");
}

TEST(IdsTest, AreDistinctTypesAndHashable) {
  static_assert(!std::is_convertible_v<int, BlockId>);
  static_assert(!std::is_constructible_v<WorkerId, RequestId>);
  std::unordered_set<RequestId> seen{RequestId{"a"}, RequestId{"b"}, RequestId{"a"}};
  EXPECT_EQ(seen.size(), 2u);
}

TEST(ClockTest, VirtualTimeMovesOnlyWhenTold) {
  VirtualClock clock;
  const TimePoint start = clock.Now();
  EXPECT_EQ(clock.Now(), start);
  clock.Advance(std::chrono::seconds(2));
  EXPECT_EQ(clock.Now() - start, std::chrono::seconds(2));
}

}  // namespace
}  // namespace trivium
