// When a prefix is pulled, from whom, and for how long it is waited for.
#include <gtest/gtest.h>

#include "services/router/scheduler/decision.h"
#include "services/router/scheduler/ledger.h"
#include "services/router/scheduler/scheduler_fixture.h"

namespace trivium::router {
namespace {

constexpr int64_t kTokenBytes = 23040;

// Two prefill workers (0, 1) and two decode workers (2, 3).
class PullPlacementTest : public testing::Test {
 protected:
  PullPlacementTest() {
    cluster_ = Cluster(2, 2);
    for (WorkerView& worker : cluster_.workers) worker.transfer_bytes_per_s = 1e9;
    shape_.prompt_tokens = 1000;
    shape_.output_tokens = 64;
    shape_.needs_prefill_worker = true;
  }

  static Held Holds(WorkerIndex worker, int32_t tokens) {
    return {worker, tokens, tokens, tokens, tokens};
  }
  Decision Decide() {
    Decision decision;
    const absl::StatusOr<Placement> placement = Choose(cluster_, shape_, &decision);
    EXPECT_TRUE(placement.ok()) << placement.status();
    return decision;
  }
  // The first worker holds the prompt and is too busy to be waited for.
  void FirstHoldsAndIsBusy(int32_t tokens = 992) {
    shape_.held = {Holds(0, tokens)};
    cluster_.workers[0].prompt_tokens_waiting = 2500;
  }

  ClusterSnapshot cluster_;
  RequestShape shape_;
};

TEST_F(PullPlacementTest, AnIdleWorkerPullsFromABusyHolder) {
  FirstHoldsAndIsBusy();
  const Decision decision = Decide();
  EXPECT_EQ(decision.reason, PlacementReason::kPull);
  EXPECT_EQ(decision.placement.prefill, 1u);
  EXPECT_EQ(decision.placement.pull.holder, 0u);
  EXPECT_EQ(decision.placement.pull.tokens, 992);
  const Estimate& estimate = decision.prefill.front().estimate;
  EXPECT_EQ(estimate.cached_tokens, 0);
  EXPECT_LT(estimate.compute_s, 0.02);
  EXPECT_NEAR(estimate.pull_s, 992 * kTokenBytes / 1e9, 0.01);
  // Computing it would take a second: that long is not waited.
  EXPECT_GT(decision.placement.pull.within_s, estimate.pull_s);
  EXPECT_LT(decision.placement.pull.within_s, 0.6);
}

TEST_F(PullPlacementTest, AnIdleHolderComputesTheRestItself) {
  shape_.held = {Holds(0, 992)};
  const Decision decision = Decide();
  EXPECT_EQ(decision.placement.prefill, 0u);
  EXPECT_EQ(decision.placement.pull, Pull());
  EXPECT_EQ(decision.reason, PlacementReason::kCacheHit);
}

TEST_F(PullPlacementTest, OnlyWhatIsCheaperThanComputingIsPulled) {
  FirstHoldsAndIsBusy();
  bool was_pulled = true;
  for (double bytes_per_s = 1e9; bytes_per_s > 1e6; bytes_per_s /= 2) {
    for (WorkerView& worker : cluster_.workers) worker.transfer_bytes_per_s = bytes_per_s;
    const Decision decision = Decide();
    const bool is_pulled = decision.placement.pull.tokens > 0;
    EXPECT_TRUE(was_pulled || !is_pulled) << "again at " << bytes_per_s;
    if (is_pulled) {
      EXPECT_LT(decision.prefill.front().estimate.pull_s, 0.5);
    }
    was_pulled = is_pulled;
  }
  EXPECT_FALSE(was_pulled);
  FirstHoldsAndIsBusy(16);
  for (WorkerView& worker : cluster_.workers) worker.step_cost.per_row_s = 1e-4;
  EXPECT_EQ(Decide().placement.pull, Pull()) << "a block is not worth two calls";
}

TEST_F(PullPlacementTest, WhatIsOnlyExpectedCannotBePulled) {
  FirstHoldsAndIsBusy();
  shape_.held[0].stored_tokens = 0;
  EXPECT_EQ(Decide().placement.pull, Pull());
}

TEST_F(PullPlacementTest, OnlyEqualKvIsPulled) {
  FirstHoldsAndIsBusy();
  const auto without = [this](const auto& change) {
    const WorkerView before = cluster_.workers[0];
    change(cluster_.workers[0]);
    const Decision decision = Decide();
    cluster_.workers[0] = before;
    return decision.placement.pull == Pull();
  };
  EXPECT_TRUE(without([](WorkerView& worker) { worker.numerics_class = "fast/b"; }));
  EXPECT_TRUE(without([](WorkerView& worker) { worker.block_tokens = 32; }));
  for (const WorkerCondition condition :
       {WorkerCondition::kDraining, WorkerCondition::kSuspect, WorkerCondition::kUnreachable}) {
    EXPECT_TRUE(without([=](WorkerView& worker) { worker.condition = condition; }));
  }
  shape_.blame = {{0, 2}};
  EXPECT_EQ(Decide().placement.pull, Pull());
}

TEST_F(PullPlacementTest, TheHolderOfMostSendsAndOfEqualsTheIdlerOne) {
  cluster_.workers[0].is_full = true;
  shape_.held = {Holds(0, 480), Holds(2, 960), Holds(3, 960)};
  cluster_.workers[2].requests = 3;
  EXPECT_EQ(Decide().placement.pull.holder, 3u);
  EXPECT_EQ(Decide().placement.pull.tokens, 960);
  cluster_.workers[3].requests = 4;
  EXPECT_EQ(Decide().placement.pull.holder, 2u);
  shape_.held[0] = Holds(0, 992);
  EXPECT_EQ(Decide().placement.pull.holder, 0u);
  // All but the last token: a row is left to be computed.
  shape_.prompt_tokens = 992;
  EXPECT_EQ(Decide().placement.pull.tokens, 976);
}

TEST_F(PullPlacementTest, ItsOwnTokensAreNotPulled) {
  cluster_.workers[0].is_full = true;
  shape_.held = {Holds(1, 960), Holds(2, 992)};
  for (WorkerView& worker : cluster_.workers) worker.step_cost.per_row_s = 1e-4;
  const Decision decision = Decide();
  EXPECT_EQ(decision.placement.pull, Pull()) << "two blocks more are not worth it";
  EXPECT_EQ(decision.prefill.front().estimate.cached_tokens, 960);
}

TEST_F(PullPlacementTest, ABusyHolderCountsWhatItsRequestsLose) {
  cluster_.workers[0].is_full = true;
  shape_.held = {Holds(2, 992)};
  const double idle = Decide().prefill.front().estimate.harm_s;
  cluster_.workers[2].requests = 20;
  EXPECT_GT(Decide().prefill.front().estimate.harm_s, idle + 0.05);
  cluster_.workers[2].requests = 64;
  for (WorkerView& worker : cluster_.workers) worker.transfer_bytes_per_s = 3e8;
  EXPECT_EQ(Decide().placement.pull, Pull()) << "its requests would lose more than is won";
}

TEST_F(PullPlacementTest, TheLedgerCountsWhatIsLeftToCompute) {
  FirstHoldsAndIsBusy();
  const Decision decision = Decide();
  Ledger ledger(&cluster_);
  ledger.Charge(1, decision.placement, shape_);
  EXPECT_EQ(cluster_.workers[1].own_prompt_tokens, 8);
  ledger.Release(1);
  EXPECT_EQ(cluster_.workers[1].own_prompt_tokens, 0);
}

// Measured slow, they end; nothing would ever measure again, so the measure is forgotten in time.
TEST_F(PullPlacementTest, SlowPullsAreLeftAloneForAWhile) {
  FirstHoldsAndIsBusy();
  for (WorkerView& worker : cluster_.workers) worker.transfer_bytes_per_s = 0;
  const Placement pulling = Decide().placement;
  ASSERT_GT(pulling.pull.tokens, 0) << "the first is tried";
  Ledger ledger(&cluster_);
  ledger.Charge(1, pulling, shape_);
  ledger.Pulled(1, 30 << 20, 0.05);
  EXPECT_NEAR(cluster_.workers[1].transfer_bytes_per_s, 6.3e8, 1e7);
  EXPECT_GT(Decide().placement.pull.tokens, 0);
  int given_up = 0;
  while (Decide().placement.pull.tokens > 0) {
    ledger.Pulled(1, 0, 0.5);
    ASSERT_LT(++given_up, 20);
  }
  EXPECT_GT(given_up, 1) << "one may be the holder's fault";
  ledger.Release(1);
  int reports = 0;
  while (Decide().placement.pull.tokens == 0) {
    ledger.OnReport(1);
    ASSERT_LT(++reports, 10000);
  }
  EXPECT_GT(reports, 100);
}

}  // namespace
}  // namespace trivium::router
