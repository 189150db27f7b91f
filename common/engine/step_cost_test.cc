#include "common/engine/step_cost.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace trivium::engine {
namespace {

struct Truth {
  double a, b, c;
  double operator()(int64_t rows, int64_t keys) const {
    return a + b * static_cast<double>(rows) + c * static_cast<double>(keys);
  }
};

void Feed(StepCost& cost, const Truth& truth, int steps, double noise, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(1, noise);
  for (int i = 0; i < steps; ++i) {
    const int64_t rows = random() % 512 + 1;
    const int64_t keys = KeysOfRange(random() % 1500, rows);
    cost.Observe(rows, keys, truth(rows, keys) * normal(random));
  }
}

TEST(StepCostTest, FindsTheCoefficientsOfAnExactLaw) {
  const Truth truth{2e-3, 1.5e-4, 3e-8};
  StepCost cost;
  EXPECT_EQ(cost.Predict(100, 1000), 0);
  Feed(cost, truth, 200, 0, 1);
  EXPECT_NEAR(cost.coefficients().a, truth.a, 1e-6);
  EXPECT_NEAR(cost.coefficients().b, truth.b, 1e-7);
  EXPECT_NEAR(cost.coefficients().c, truth.c, 3e-11);
  EXPECT_EQ(cost.coefficients().observations, 200);
}

TEST(StepCostTest, PredictsWithinAFewPercentUnderNoise) {
  const Truth truth{2e-3, 1.5e-4, 3e-8};
  StepCost cost;
  Feed(cost, truth, 2000, 0.1, 2);
  for (const int64_t rows : {64, 256, 512}) {
    const int64_t keys = KeysOfRange(500, rows);
    EXPECT_NEAR(cost.Predict(rows, keys) / truth(rows, keys), 1, 0.1) << rows;
  }
}

TEST(StepCostTest, FollowsAMachineThatBecomesSlower) {
  StepCost cost;
  Feed(cost, {2e-3, 1.5e-4, 3e-8}, 500, 0, 3);
  Feed(cost, {4e-3, 3e-4, 6e-8}, 800, 0, 4);
  EXPECT_NEAR(cost.coefficients().b, 3e-4, 1e-6);
}

TEST(StepCostTest, OneStepHeldUpHardlyMatters) {
  const Truth truth{2e-3, 1.5e-4, 3e-8};
  StepCost cost;
  Feed(cost, truth, 300, 0.02, 6);
  cost.Observe(16, 16000, 30.0);
  EXPECT_NEAR(cost.Predict(16, 16000) / truth(16, 16000), 1, 0.15);
}

// Of new steps about as many lie below the bound as two standard deviations say.
TEST(StepCostTest, BoundsWhatStepsTake) {
  const Truth truth{2e-3, 1.5e-4, 3e-8};
  std::mt19937 random(7);
  for (const double noise : {0.02, 0.1}) {
    StepCost cost;
    Feed(cost, truth, 1000, noise, 8);
    std::normal_distribution<double> normal(1, noise);
    int below = 0;
    for (int i = 0; i < 2000; ++i) {
      const int64_t rows = random() % 512 + 1;
      const int64_t keys = KeysOfRange(random() % 1500, rows);
      below += truth(rows, keys) * normal(random) <= cost.PredictAtMost(rows, keys) ? 1 : 0;
      EXPECT_LE(cost.PredictAtMost(rows, keys), truth(rows, keys) * (1 + 5 * noise));
    }
    EXPECT_GT(below, 1880);
  }
}

// A machine that has decoded for long knows little of long steps, until it has seen one.
TEST(StepCostTest, TrustsNoLawBeyondWhatItHasSeen) {
  const Truth truth{2e-3, 1.5e-4, 3e-8};
  StepCost cost;
  EXPECT_EQ(cost.PredictAtMost(1, 1), std::numeric_limits<double>::infinity());
  for (int i = 0; i < 2000; ++i) cost.Observe(4, 400 + i % 300, truth(4, 400 + i % 300));
  EXPECT_LE(cost.PredictAtMost(4, 500), 1.2 * truth(4, 500));
  EXPECT_GT(cost.PredictAtMost(512, KeysOfRange(0, 512)), 3 * truth(512, KeysOfRange(0, 512)));
  for (const int64_t rows : {16, 32, 128}) {
    cost.Observe(rows, KeysOfRange(0, rows), truth(rows, KeysOfRange(0, rows)));
  }
  EXPECT_LE(cost.PredictAtMost(256, KeysOfRange(0, 256)), 1.5 * truth(256, KeysOfRange(0, 256)));
}

TEST(StepCostTest, StaysFiniteWhenTheLoadNeverVaries) {
  StepCost cost;
  for (int i = 0; i < 100000; ++i) cost.Observe(1, 100, 5e-3);
  EXPECT_NEAR(cost.Predict(1, 100), 5e-3, 1e-6);
  Feed(cost, {2e-3, 1.5e-4, 3e-8}, 1500, 0, 5);
  EXPECT_NEAR(cost.coefficients().b, 1.5e-4, 1e-6);
}

TEST(StepCostTest, IgnoresWhatIsNoMeasurement) {
  StepCost cost;
  cost.Observe(1, 1, std::nan(""));
  cost.Observe(1, 1, std::numeric_limits<double>::infinity());
  cost.Observe(1, 1, -1);
  cost.Observe(-1, 1, 1);
  EXPECT_EQ(cost.coefficients().observations, 0);
}

TEST(StepCostTest, KeysOfRangeCountsEveryVisibleKey) {
  for (int64_t position = 0; position < 5; ++position) {
    for (int64_t rows = 0; rows < 6; ++rows) {
      int64_t keys = 0;
      for (int64_t i = 0; i < rows; ++i) keys += position + i + 1;
      EXPECT_EQ(KeysOfRange(position, rows), keys);
    }
  }
}

}  // namespace
}  // namespace trivium::engine
