#include "common/worker/promotion.h"

#include <gtest/gtest.h>

#include <random>

namespace trivium::worker {
namespace {

// What loading `count` blocks saves, reckoned anew.
double Saved(int32_t count, double wait_s, const std::vector<double>& load_s,
             const std::vector<double>& compute_s) {
  double saved_s = count == 0 ? 0 : -wait_s;
  for (int32_t i = 0; i < count; ++i) {
    saved_s += compute_s[static_cast<size_t>(i)] - load_s[static_cast<size_t>(i)];
  }
  return saved_s;
}

TEST(PromotionTest, NoOtherNumberOfBlocksSavesMore) {
  constexpr uint32_t kSeed = 11;
  RecordProperty("seed", static_cast<int>(kSeed));
  std::mt19937 random(kSeed);
  std::uniform_real_distribution<double> seconds(0, 1);
  int none = 0, some = 0, all = 0;
  for (int round = 0; round < 2000; ++round) {
    const size_t blocks = random() % 20;
    std::vector<double> load_s, compute_s;
    for (size_t i = 0; i < blocks; ++i) {
      load_s.push_back(seconds(random));
      compute_s.push_back(seconds(random));
    }
    const double wait_s = round % 2 == 0 ? 0 : seconds(random);
    const int32_t chosen = BlocksWorthLoading(wait_s, load_s, compute_s);
    ASSERT_LE(chosen, static_cast<int32_t>(blocks));
    const double saved_s = Saved(chosen, wait_s, load_s, compute_s);
    ASSERT_GE(saved_s, -1e-9);
    for (int32_t other = 0; other <= static_cast<int32_t>(blocks); ++other) {
      ASSERT_LE(Saved(other, wait_s, load_s, compute_s), saved_s + 1e-9);
    }
    ++(chosen == 0 ? none : chosen == static_cast<int32_t>(blocks) ? all : some);
  }
  EXPECT_GT(std::min({none, some, all}), 50);
}

TEST(PromotionTest, AQueueInFrontMakesComputingCheaper) {
  const std::vector<double> load_s(10, 1), compute_s(10, 2);
  EXPECT_EQ(BlocksWorthLoading(9, load_s, compute_s), 10);
  EXPECT_EQ(BlocksWorthLoading(11, load_s, compute_s), 0);
}

}  // namespace
}  // namespace trivium::worker
