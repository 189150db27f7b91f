// What a request's cache hits, queues, speeds and batches do to its placement: always both halves.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>

#include "services/router/scheduler/decision.h"
#include "services/router/scheduler/ledger.h"
#include "services/router/scheduler/scheduler_fixture.h"

namespace trivium::router {
namespace {

RequestShape Prompt(int32_t tokens, std::vector<Held> held = {}) {
  RequestShape shape;
  shape.prompt_tokens = tokens;
  shape.output_tokens = 64;
  shape.needs_prefill_worker = true;
  shape.held = std::move(held);
  return shape;
}

Decision Decide(const ClusterSnapshot& cluster, const RequestShape& shape) {
  Decision decision;
  const absl::StatusOr<Placement> placement = Choose(cluster, shape, &decision);
  EXPECT_TRUE(placement.ok()) << placement.status();
  if (placement.ok()) {
    EXPECT_EQ(*placement, decision.placement);
  }
  return decision;
}

TEST(PlacementCostTest, AHitDrawsTheRequestAndNoHitSpreads) {
  const ClusterSnapshot cluster = Cluster(4, 4);
  std::map<WorkerIndex, int> prefill, decode;
  for (uint64_t turn = 0; turn < 40; ++turn) {
    RequestShape shape = Prompt(1000, {{2, 992, 992, 992}, {5, 992, 992, 992}});
    shape.turn = turn;
    const Decision hit = Decide(cluster, shape);
    EXPECT_EQ(hit.placement, (Placement{2, 5}));
    EXPECT_EQ(hit.reason, PlacementReason::kCacheHit);
    EXPECT_EQ(hit.prefill.front().estimate.cached_tokens, 992);
    shape.held = {};
    const Decision cold = Decide(cluster, shape);
    EXPECT_EQ(cold.reason, PlacementReason::kLeastLoaded);
    ++prefill[cold.placement.prefill];
    ++decode[cold.placement.decode];
  }
  for (WorkerIndex i = 0; i < 4; ++i) {
    EXPECT_EQ(prefill[i], 10);
    EXPECT_EQ(decode[4 + i], 10);
  }
}

TEST(PlacementCostTest, ByLoadAloneNothingElseCounts) {
  ClusterSnapshot cluster = Cluster(3, 3);
  cluster.policy = PolicyNamed("least_loaded");
  for (WorkerIndex i = 0; i < 6; ++i) {
    cluster.workers[i].prompt_tokens_waiting = i == 2 ? 10 : 20;
    cluster.workers[i].requests = i == 4 ? 1 : 2;
  }
  cluster.workers[2].step_cost.per_row_s *= 50;
  cluster.workers[4].step_cost.per_row_s *= 50;
  const Decision decision = Decide(cluster, Prompt(1000));
  EXPECT_EQ(decision.placement, (Placement{2, 4}));
  EXPECT_EQ(decision.reason, PlacementReason::kLeastLoaded);
  cluster.policy = Policy::kPredictedCost;
  const Placement by_cost = Decide(cluster, Prompt(1000)).placement;
  EXPECT_NE(by_cost.prefill, 2u);
  EXPECT_NE(by_cost.decode, 4u);
}

TEST(PlacementCostTest, InTurnMeansInTurnAmongThoseWithRoomWhateverTheirLoad) {
  ClusterSnapshot cluster = Cluster(3, 2);
  cluster.policy = PolicyNamed("round_robin");
  cluster.workers[0].prompt_tokens_waiting = 500;
  cluster.workers[3].requests = 40;
  RequestShape shape = Prompt(1000);
  for (shape.turn = 0; shape.turn < 12; ++shape.turn) {
    const Decision decision = Decide(cluster, shape);
    EXPECT_EQ(decision.placement, (Placement{shape.turn % 3, 3 + shape.turn % 2}));
    EXPECT_EQ(decision.reason, PlacementReason::kInTurn);
  }
  cluster.workers[1].prompt_tokens_waiting = kPrefillBacklogTokens;
  shape.turn = 1;
  EXPECT_EQ(Decide(cluster, shape).placement.prefill, 2u);
  shape.blame = {{2, 1}};
  EXPECT_EQ(Decide(cluster, shape).placement.prefill, 0u);
}

// The bound: a holder is worth at most a queue of what it saves and a quarter more, for the time of
// the worker that it saves.
TEST(PlacementCostTest, AHolderIsPassedOverOnceItsQueueCostsMoreThanTheHitSaves) {
  ClusterSnapshot cluster = Cluster(2, 1);
  const RequestShape shape = Prompt(600, {{0, 480, 480, 480}});
  int32_t last_hit = -10;
  for (int32_t waiting = 0; waiting < 1024 + 480; waiting += 10) {
    cluster.workers[0].prompt_tokens_waiting = waiting;
    const Decision decision = Decide(cluster, shape);
    const bool is_hit = decision.placement.prefill == 0;
    EXPECT_EQ(decision.reason, is_hit ? PlacementReason::kCacheHit : PlacementReason::kHolderBusy);
    EXPECT_TRUE(!is_hit || last_hit == waiting - 10) << "it comes back at " << waiting;
    if (is_hit) last_hit = waiting;
  }
  EXPECT_GT(last_hit, 480);
  EXPECT_LT(last_hit, 480 * 5 / 4 + 20);
}

TEST(PlacementCostTest, ABurstStaysWithTheFirstUntilOthersAreCheaper) {
  for (const bool is_expected : {true, false}) {
    ClusterSnapshot cluster = Cluster(4, 4);
    Ledger ledger(&cluster);
    std::map<WorkerIndex, int> at;
    for (uint64_t ticket = 1; ticket <= 8; ++ticket) {
      RequestShape shape = Prompt(1000);
      shape.turn = ticket;
      for (const auto& [worker, count] : at) {
        if (is_expected) shape.held.push_back({worker, 976, 976, 976});
      }
      Decision decision;
      if (!Choose(cluster, shape, &decision).ok()) break;
      ledger.Charge(ticket, decision.placement, shape);
      ++at[decision.placement.prefill];
    }
    const auto most = std::max_element(
        at.begin(), at.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
    EXPECT_EQ(at.size(), is_expected ? 1u : 4u);
    EXPECT_EQ(most->second, is_expected ? 8 : 2);
  }
}

TEST(PlacementCostTest, TiersCountForWhatTheySaveLessTheirLoading) {
  ClusterSnapshot cluster = Cluster(3, 1);
  // Computing a token takes 1 ms, loading one from disk 0.1: any tier beats nothing, hot the
  // others.
  EXPECT_EQ(Decide(cluster, Prompt(1000, {{1, 0, 0, 800}})).placement.prefill, 1u);
  EXPECT_EQ(Decide(cluster, Prompt(1000, {{0, 0, 0, 800}, {1, 0, 800, 800}})).placement.prefill,
            1u);
  EXPECT_EQ(Decide(cluster, Prompt(1000, {{0, 0, 800, 800}, {2, 800, 800, 800}})).placement.prefill,
            2u);
  EXPECT_EQ(Decide(cluster, Prompt(1000, {{0, 800, 800, 800}, {2, 0, 992, 992}})).placement.prefill,
            2u);
  // Where computing is faster than the disk, what lies there is worth nothing.
  for (WorkerView& worker : cluster.workers) worker.step_cost = {.per_row_s = 1e-5};
  const Decision decision = Decide(cluster, Prompt(1000, {{1, 0, 0, 800}}));
  EXPECT_EQ(decision.reason, PlacementReason::kHolderBusy);
  for (const Candidate& candidate : decision.prefill) {
    EXPECT_EQ(candidate.estimate.cached_tokens, 0);
  }
}

TEST(PlacementCostTest, MeasuredLoadSpeedsStandInForGuesses) {
  ClusterSnapshot cluster = Cluster(2, 1);
  const RequestShape shape = Prompt(1000, {{0, 0, 0, 800}, {1, 0, 0, 800}});
  const auto loaded = [&](WorkerIndex worker) {
    const Decision decision = Decide(cluster, shape);
    EXPECT_EQ(decision.placement.prefill, worker);
    return decision.prefill.front().estimate;
  };
  cluster.workers[0].disk_load_bytes_per_s = 1e8;
  EXPECT_NEAR(loaded(1).load_s, 800 * 23040 / 2e8, 1e-9) << "a guess is better than that";
  cluster.workers[1].disk_load_bytes_per_s = 5e7;
  EXPECT_NEAR(loaded(0).load_s, 800 * 23040 / 1e8, 1e-9);
  cluster.workers[0].disk_load_bytes_per_s = cluster.workers[1].disk_load_bytes_per_s = 1e6;
  EXPECT_EQ(Decide(cluster, shape).prefill.front().estimate.cached_tokens, 0) << "not worth it";
}

// It has only ever decoded one token at a time, and its fit puts all of a step's time into the
// base.
TEST(PlacementCostTest, ADecodeWorkersTierIsWorthLoadingWhateverItThinksOfRows) {
  ClusterSnapshot cluster = Cluster(1, 1);
  RequestShape shape = Prompt(160, {{1, 0, 128, 128}});
  shape.needs_prefill_worker = false;
  for (const double per_row_s : {1e-9, 1e-3, 3e-3}) {
    cluster.workers[1].step_cost = {.per_row_s = per_row_s, .base_s = 17e-3};
    const Decision decision = Decide(cluster, shape);
    EXPECT_EQ(decision.placement.prefill, kNoWorker) << per_row_s;
    ASSERT_EQ(decision.decode.size(), 1u);
    EXPECT_EQ(decision.decode.front().estimate.cached_tokens, 128) << per_row_s;
  }
}

TEST(PlacementCostTest, SpeedsCountOnceTheyDifferByMoreThanNoise) {
  ClusterSnapshot cluster = Cluster(2, 1);
  cluster.workers[0].prompt_tokens_waiting = 100;
  cluster.workers[1].step_cost.per_row_s = 1.2e-3;
  EXPECT_EQ(Decide(cluster, Prompt(500)).placement.prefill, 1u);
  cluster.workers[1].step_cost.per_row_s = 3e-3;
  EXPECT_EQ(Decide(cluster, Prompt(500)).placement.prefill, 0u);
  cluster.workers[1].step_cost = {};  // not measured yet: as fast as the fastest
  EXPECT_EQ(Decide(cluster, Prompt(500)).placement.prefill, 1u);
}

TEST(PlacementCostTest, ADecodeWorkerIsChosenForWhatItHoldsItsBatchItsLineAndItsRoom) {
  ClusterSnapshot cluster = Cluster(1, 2);
  const std::vector<Held> held = {{1, 1984, 1984, 1984}};
  EXPECT_EQ(Decide(cluster, Prompt(2000, held)).placement.decode, 1u);
  cluster.workers[1].requests = 40;
  EXPECT_EQ(Decide(cluster, Prompt(2000, held)).placement.decode, 2u);
  cluster.workers[1].requests = 0;
  cluster.workers[1].transfer_bytes_per_s = 1e9;
  cluster.workers[2].transfer_bytes_per_s = 1e8;
  EXPECT_EQ(Decide(cluster, Prompt(2000)).placement.decode, 1u);
  std::swap(cluster.workers[1].transfer_bytes_per_s, cluster.workers[2].transfer_bytes_per_s);
  EXPECT_EQ(Decide(cluster, Prompt(2000)).placement.decode, 2u);
  cluster.workers[2].transfer_bytes_per_s = cluster.workers[1].transfer_bytes_per_s;
  cluster.workers[2].blocks_free = 150;
  EXPECT_EQ(Decide(cluster, Prompt(2000)).placement.decode, 1u);
}

TEST(PlacementCostTest, BlameAndTheDecodeWorkerBeforeComeFirst) {
  const ClusterSnapshot cluster = Cluster(2, 2);
  RequestShape shape = Prompt(1000, {{0, 992, 992, 992}, {2, 992, 992, 992}});
  shape.blame = {{0, 2}};
  shape.decode_before = 3;
  const Decision decision = Decide(cluster, shape);
  EXPECT_EQ(decision.placement, (Placement{1, 3}));
  EXPECT_EQ(decision.reason, PlacementReason::kRetry);
}

TEST(PlacementCostTest, OnePairWithRoomIsSaidSo) {
  ClusterSnapshot cluster = Cluster(2, 2);
  cluster.workers[0].is_full = cluster.workers[3].is_full = true;
  EXPECT_EQ(Decide(cluster, Prompt(100)).reason, PlacementReason::kOnlyFit);
}

ClusterSnapshot RandomCluster(std::mt19937_64& random) {
  ClusterSnapshot cluster = Cluster(12, 12);
  for (WorkerView& worker : cluster.workers) {
    worker.condition = random() % 8 == 0 ? WorkerCondition::kSuspect : WorkerCondition::kReady;
    worker.requests = static_cast<int32_t>(random() % 20);
    worker.prompt_tokens_waiting = static_cast<int64_t>(random() % 1500);
    worker.blocks_free = static_cast<int32_t>(random() % 4000);
    worker.step_cost.per_row_s =
        random() % 4 == 0 ? 0 : 1e-3 * static_cast<double>(1 + random() % 5);
    worker.transfer_bytes_per_s = 1e8 * static_cast<double>(random() % 20);
    if (random() % 4 == 0) worker.numerics_class = "fast/b";
    if (random() % 4 == 0) worker.numerics_class = "batch_invariant/a";
  }
  return cluster;
}

// The same workers in another order: the same costs, so the same choice but among equals.
TEST(PlacementCostTest, TheOrderOfWorkersDoesNotMatter) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  int placed = 0;
  for (int round = 0; round < 3000; ++round) {
    const ClusterSnapshot cluster = RandomCluster(random);
    RequestShape shape = Prompt(1 + static_cast<int32_t>(random() % 3000));
    for (WorkerIndex i = 0; i < cluster.workers.size(); ++i) {
      const auto hot = static_cast<int32_t>(random() % static_cast<uint64_t>(shape.prompt_tokens));
      if (hot > 0 && random() % 3 == 0) shape.held.push_back({i, hot / 2, hot, hot});
    }
    std::vector<WorkerIndex> order(cluster.workers.size());
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    ClusterSnapshot mixed;
    mixed.kv_bytes_per_token = cluster.kv_bytes_per_token;
    RequestShape mixed_shape = shape;
    mixed_shape.held.clear();
    for (WorkerIndex i = 0; i < order.size(); ++i) {
      mixed.workers.push_back(cluster.workers[order[i]]);
      Held held = HeldBy(shape, order[i]);
      held.worker = i;
      if (held.disk_tokens > 0) mixed_shape.held.push_back(held);
    }
    Decision a, b, again;
    const auto first = Choose(cluster, shape, &a);
    const auto second = Choose(mixed, mixed_shape, &b);
    ASSERT_EQ(first.status(), second.status());
    if (!first.ok()) continue;
    ++placed;
    ASSERT_EQ(*first, *Choose(cluster, shape, &again));
    EXPECT_EQ(a.reason, b.reason);
    for (auto candidates : {&Decision::prefill, &Decision::decode}) {
      ASSERT_EQ((a.*candidates).size(), (b.*candidates).size());
      for (size_t i = 0; i < (a.*candidates).size(); ++i) {
        ASSERT_EQ((a.*candidates)[i].estimate.total_s(), (b.*candidates)[i].estimate.total_s());
      }
      // The one taken comes first, and none is cheaper.
      for (const Candidate& other : a.*candidates) {
        EXPECT_LE((a.*candidates)[0].estimate.total_s(), other.estimate.total_s());
      }
    }
  }
  EXPECT_GT(placed, 1000);
}

// The next turn of a chat: the last answer's KV lies at its decode worker alone.
TEST(PlacementCostTest, TheHolderOfAllButALittlePrefillsItself) {
  ClusterSnapshot cluster = Cluster(2, 2);
  RequestShape shape = Prompt(1000, {{2, 960, 960, 960}});
  EXPECT_NE(Decide(cluster, shape).placement.prefill, kNoWorker) << "it needs a prefill worker";
  shape.needs_prefill_worker = false;
  const Decision local = Decide(cluster, shape);
  EXPECT_EQ(local.placement, (Placement{kNoWorker, 2}));
  EXPECT_EQ(local.reason, PlacementReason::kLocal);
  EXPECT_EQ(local.decode.front().estimate.cached_tokens, 960);
  EXPECT_NE(Decide(cluster, Prompt(1000)).reason, PlacementReason::kLocal) << "nothing is held";
  shape.held = {{2, 720, 720, 720}};
  EXPECT_NE(Decide(cluster, shape).reason, PlacementReason::kLocal) << "too many rows are missing";
  shape.held = {{2, 320, 640, 960}};
  EXPECT_EQ(Decide(cluster, shape).reason, PlacementReason::kLocal) << "what tiers hold is loaded";
  cluster.workers[2].disk_load_bytes_per_s = 1e6;
  EXPECT_NE(Decide(cluster, shape).reason, PlacementReason::kLocal) << "it takes too long";
}

TEST(PlacementCostTest, ABusyHolderDoesNotPrefill) {
  ClusterSnapshot cluster = Cluster(2, 2);
  RequestShape shape = Prompt(1000, {{0, 960, 960, 960}, {2, 960, 960, 960}});
  shape.needs_prefill_worker = false;
  EXPECT_EQ(Decide(cluster, shape).placement.prefill, kNoWorker);
  cluster.workers[2].requests = 32;
  EXPECT_NE(Decide(cluster, shape).placement.prefill, kNoWorker) << "32 answers would wait for it";
  cluster.workers[2].requests = 0;
  Ledger ledger(&cluster);
  ledger.Charge(1, {kNoWorker, 2}, shape);
  EXPECT_EQ(cluster.workers[2].own_prompt_tokens, 40);
  for (uint64_t ticket = 2; ticket < 7; ++ticket) ledger.Charge(ticket, {kNoWorker, 2}, shape);
  EXPECT_NE(Decide(cluster, shape).placement.prefill, kNoWorker) << "240 rows wait there";
  for (uint64_t ticket = 1; ticket < 7; ++ticket) ledger.FirstToken(ticket);
  EXPECT_EQ(cluster.workers[2].own_prompt_tokens, 0);
  for (uint64_t ticket = 1; ticket < 7; ++ticket) ledger.Release(ticket);
  EXPECT_EQ(Decide(cluster, shape).placement.prefill, kNoWorker);
}

}  // namespace
}  // namespace trivium::router
