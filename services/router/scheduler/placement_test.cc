// Properties of the choice over random clusters, against the rules written out over all pairs.
#include "services/router/scheduler/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

namespace trivium::router {
namespace {

using testing::HasSubstr;

WorkerView Worker(Role role) {
  return {.role = role,
          .condition = WorkerCondition::kReady,
          .epoch = 1,
          .numerics_class = "batch_invariant/a",
          .wire_format = 1,
          .blocks_total = 100,
          .blocks_free = 100,
          .block_tokens = 16,
          .requests = 0,
          .requests_max = 8,
          .prompt_tokens_waiting = 0,
          .expected_output_tokens = 0,
          .blocks_spare = 0,
          .is_full = false,
          .own_requests = 0,
          .own_blocks = 0,
          .own_blocks_unseen = 0,
          .own_prompt_tokens = 0};
}

ClusterSnapshot RandomCluster(std::mt19937_64& random) {
  const char* const kClasses[] = {"fast/a", "fast/b", "batch_invariant/a", "batch_invariant/b"};
  ClusterSnapshot cluster;
  for (size_t i = 1 + random() % 8; i > 0; --i) {
    WorkerView worker = Worker(random() % 2 == 0 ? Role::kPrefill : Role::kDecode);
    worker.condition = static_cast<WorkerCondition>(random() % 3 == 0 ? random() % 5 : 0);
    worker.numerics_class = kClasses[random() % (1 + random() % 4)];
    worker.wire_format = 1 + (random() % 8 == 0);
    worker.blocks_total = static_cast<int32_t>(random() % 120);
    worker.blocks_free =
        worker.blocks_total == 0 ? 0 : static_cast<int32_t>(random() % (worker.blocks_total + 1));
    worker.requests = static_cast<int32_t>(random() % 10);
    worker.prompt_tokens_waiting = static_cast<int64_t>(random() % 1500);
    worker.expected_output_tokens = static_cast<int32_t>(random() % 3 * 40);
    worker.blocks_spare = static_cast<int32_t>(random() % 8);
    worker.is_full = random() % 8 == 0;
    worker.own_requests = static_cast<int32_t>(random() % 4);
    worker.own_blocks = static_cast<int64_t>(random() % 30);
    worker.own_blocks_unseen = static_cast<int64_t>(random() % (worker.own_blocks + 1));
    worker.own_prompt_tokens = static_cast<int64_t>(random() % 1500);
    cluster.workers.push_back(worker);
  }
  return cluster;
}

RequestShape RandomShape(std::mt19937_64& random, size_t workers) {
  RequestShape shape{.prompt_tokens = 1 + static_cast<int32_t>(random() % 1000),
                     .output_tokens = 1 + static_cast<int32_t>(random() % 600),
                     .choices = random() % 3 == 0 ? 1 + static_cast<int32_t>(random() % 10) : 1,
                     .in_full = random() % 3 == 0,
                     .preemptions = static_cast<int32_t>(random() % 4),
                     .has_begun = random() % 2 == 0,
                     .turn = random(),
                     .decode_before = kNoWorker,
                     .blame = {}};
  if (random() % 3 == 0) shape.decode_before = random() % workers;
  if (random() % 3 == 0) shape.blame.push_back({random() % workers, 1 + int(random() % 3)});
  return shape;
}

bool MayPair(const WorkerView& p, const WorkerView& d) {
  const bool both_fast = p.numerics_class[0] == 'f' && d.numerics_class[0] == 'f';
  return p.role == Role::kPrefill && d.role == Role::kDecode && p.wire_format == d.wire_format &&
         (both_fast || p.numerics_class == d.numerics_class);
}

bool Ready(const WorkerView& w) { return w.condition == WorkerCondition::kReady; }

int64_t Needs(const WorkerView& w, const RequestShape& s) {
  if (w.role == Role::kPrefill) return (s.prompt_tokens + 15) / 16;
  const int64_t one = (s.prompt_tokens + s.output_tokens + 15) / 16;
  return one + (s.choices - 1) * (one - s.prompt_tokens / 16);
}

int32_t Places(const WorkerView& w, const RequestShape& s) {
  return w.role == Role::kPrefill ? 1 : s.choices;
}

bool CouldHold(const WorkerView& w, const RequestShape& s) {
  return Needs(w, s) <= w.blocks_total && Places(w, s) <= w.requests_max;
}

int64_t EverNeeds(const WorkerView& w, const RequestShape& s) {
  if (w.role == Role::kDecode) return Needs(w, s);
  return (s.prompt_tokens + s.output_tokens - 1 + 15) / 16;
}

bool CouldEverHold(const WorkerView& w, const RequestShape& s) {
  return EverNeeds(w, s) <= w.blocks_total && Places(w, s) <= w.requests_max;
}

int64_t NeedsAtFirst(const WorkerView& w, const RequestShape& s) {
  RequestShape reserved = s;
  const bool in_full = w.expected_output_tokens == 0 || s.in_full || s.preemptions >= 3;
  if (!in_full) reserved.output_tokens = std::min(s.output_tokens, w.expected_output_tokens);
  return Needs(w, reserved);
}

bool Fits(const WorkerView& w, const RequestShape& s, const ClusterSnapshot& cluster) {
  if (w.is_full) return false;
  if (std::max(w.requests, w.own_requests) + Places(w, s) > w.requests_max) return false;
  const auto index = static_cast<WorkerIndex>(&w - cluster.workers.data());
  const bool is_blamed = std::any_of(s.blame.begin(), s.blame.end(),
                                     [&](const WorkerBlame& one) { return one.worker == index; });
  const bool is_idle = w.requests == 0 && w.own_requests == 0 && (s.has_begun || !is_blamed);
  const bool has_room =
      NeedsAtFirst(w, s) <= w.blocks_free - w.blocks_spare - w.own_blocks_unseen &&
      NeedsAtFirst(w, s) <= w.blocks_total - w.own_blocks;
  const bool may_ask = is_idle && NeedsAtFirst(w, s) <= w.blocks_free - w.own_blocks;
  if (!has_room && !may_ask) return false;
  return w.role == Role::kDecode ||
         std::max(w.prompt_tokens_waiting, w.own_prompt_tokens) < kPrefillBacklogTokens;
}

// What is known of a cluster and a request by trying every pair.
struct Facts {
  bool has_ready[2] = {false, false}, may_pair = false, could_hold = false, fits = false;
  bool never[2] = {true, true}, has_known[2] = {false, false};
};
Facts Examine(const ClusterSnapshot& cluster, const RequestShape& shape) {
  Facts facts;
  for (const WorkerView& w : cluster.workers) {
    const int role = w.role == Role::kDecode;
    facts.has_ready[role] |= Ready(w);
    if (w.condition == WorkerCondition::kRefused) continue;
    facts.has_known[role] = true;
    facts.never[role] &= w.blocks_total > 0 && !CouldEverHold(w, shape);
  }
  for (const WorkerView& p : cluster.workers) {
    for (const WorkerView& d : cluster.workers) {
      if (!Ready(p) || !Ready(d) || !MayPair(p, d)) continue;
      facts.may_pair = true;
      if (!CouldHold(p, shape) || !CouldHold(d, shape)) continue;
      facts.could_hold = true;
      facts.fits |= Fits(p, shape, cluster) && Fits(d, shape, cluster);
    }
  }
  return facts;
}

void ExpectSound(const ClusterSnapshot& cluster, const RequestShape& shape, const Facts& facts,
                 const absl::StatusOr<Placement>& placement) {
  const bool never =
      (facts.has_known[0] && facts.never[0]) || (facts.has_known[1] && facts.never[1]);
  if (never) {
    EXPECT_EQ(placement.status().code(), absl::StatusCode::kInvalidArgument);
  } else if (!facts.may_pair) {
    EXPECT_EQ(placement.status().code(), absl::StatusCode::kUnavailable);
    if (facts.has_ready[0] != facts.has_ready[1]) {
      EXPECT_THAT(Message(placement.status()),
                  HasSubstr(facts.has_ready[0] ? "decode" : "prefill"));
    }
  } else if (!facts.could_hold) {
    EXPECT_EQ(placement.status().code(), absl::StatusCode::kFailedPrecondition);
  } else if (!facts.fits) {
    EXPECT_EQ(placement.status().code(), absl::StatusCode::kResourceExhausted);
  } else {
    ASSERT_TRUE(placement.ok()) << placement.status();
    const WorkerView& p = cluster.workers.at(placement->prefill);
    const WorkerView& d = cluster.workers.at(placement->decode);
    EXPECT_TRUE(Ready(p) && Ready(d) && MayPair(p, d));
    EXPECT_TRUE(Fits(p, shape, cluster) && Fits(d, shape, cluster));
    EXPECT_LE(Needs(d, shape), d.blocks_total) << "it could not grow to its end";
  }
}

// Half of its blocks are kept by floors and pins, and nobody runs there: to wait would not help.
TEST(PlacementTest, AnIdleWorkerIsAskedForWhatItKeepsWhereNoOtherHasRoom) {
  WorkerView keeper = Worker(Role::kDecode);
  keeper.blocks_spare = 50;
  ClusterSnapshot cluster{{Worker(Role::kPrefill), keeper}};
  RequestShape shape;
  shape.prompt_tokens = 100;
  shape.output_tokens = 860;  // 60 blocks
  EXPECT_EQ(Choose(cluster, shape)->decode, 1u);
  shape.blame = {{1, 2}};
  EXPECT_TRUE(absl::IsResourceExhausted(Choose(cluster, shape).status())) << "it has refused";
  shape.has_begun = true;
  EXPECT_EQ(Choose(cluster, shape)->decode, 1u) << "which it does not do for good";
  cluster.workers[1].requests = 1;
  EXPECT_TRUE(absl::IsResourceExhausted(Choose(cluster, shape).status()))
      << "it may give its blocks back";
  cluster.workers[1].requests = 0;
  cluster.workers.push_back(Worker(Role::kDecode));
  cluster.workers[2].requests = 7;
  EXPECT_EQ(Choose(cluster, shape)->decode, 2u);
}

TEST(PlacementTest, SoundAndCompleteOverRandomClusters) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  int placed = 0;
  for (int round = 0; round < 30000; ++round) {
    const ClusterSnapshot cluster = RandomCluster(random);
    const RequestShape shape = RandomShape(random, cluster.workers.size());
    const absl::StatusOr<Placement> placement = Choose(cluster, shape);
    ExpectSound(cluster, shape, Examine(cluster, shape), placement);
    EXPECT_EQ(placement.ok() ? *placement : Placement(), [&] {
      auto again = Choose(cluster, shape);
      return again.ok() ? *again : Placement();
    }());
    placed += placement.ok();
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_GT(placed, 400);
}

// Among workers alike in all else, nobody with less to do is passed over.
TEST(PlacementTest, LeastLoadedOfEachStage) {
  std::mt19937_64 random(11);
  for (int round = 0; round < 5000; ++round) {
    ClusterSnapshot cluster;
    for (int i = 0; i < 6; ++i) {
      WorkerView worker = Worker(i < 3 ? Role::kPrefill : Role::kDecode);
      worker.requests = static_cast<int32_t>(random() % 7);
      worker.own_requests = static_cast<int32_t>(random() % 7);
      worker.prompt_tokens_waiting = static_cast<int64_t>(random() % 1000);
      worker.own_prompt_tokens = static_cast<int64_t>(random() % 1000);
      cluster.workers.push_back(worker);
    }
    const auto placement = Choose(cluster, {.prompt_tokens = 10,
                                            .output_tokens = 10,
                                            .in_full = false,
                                            .preemptions = 0,
                                            .turn = random(),
                                            .decode_before = kNoWorker,
                                            .blame = {}});
    ASSERT_TRUE(placement.ok());
    const auto backlog = [&](WorkerIndex i) {
      return std::max(cluster.workers[i].prompt_tokens_waiting,
                      cluster.workers[i].own_prompt_tokens);
    };
    const auto requests = [&](WorkerIndex i) {
      return std::max(cluster.workers[i].requests, cluster.workers[i].own_requests);
    };
    for (WorkerIndex i = 0; i < 3; ++i) {
      EXPECT_LE(backlog(placement->prefill), backlog(i));
      EXPECT_LE(requests(placement->decode), requests(3 + i));
    }
  }
}

TEST(PlacementTest, ARequestIsTakenOnlyWhereALaterAttemptCouldBePrefilled) {
  ClusterSnapshot cluster{{Worker(Role::kPrefill), Worker(Role::kDecode)}};
  cluster.workers[0].blocks_total = cluster.workers[0].blocks_free = 10;
  RequestShape shape{.prompt_tokens = 100,
                     .output_tokens = 61,
                     .in_full = false,
                     .preemptions = 0,
                     .turn = 0,
                     .decode_before = kNoWorker,
                     .blame = {}};
  EXPECT_TRUE(Choose(cluster, shape).ok());
  shape.output_tokens = 62;
  EXPECT_THAT(Message(Choose(cluster, shape).status()), HasSubstr("any prefill worker holds: 160"));
  // What was accepted stays so, however far the answer has come.
  shape.output_tokens = 61;
  for (; shape.output_tokens > 0; ++shape.prompt_tokens, --shape.output_tokens) {
    EXPECT_TRUE(Choose(cluster, shape).ok()) << shape.output_tokens;
  }
}

TEST(PlacementTest, TiesTakeTurns) {
  ClusterSnapshot cluster;
  for (int i = 0; i < 8; ++i)
    cluster.workers.push_back(Worker(i < 4 ? Role::kPrefill : Role::kDecode));
  std::set<WorkerIndex> prefill, decode;
  for (uint64_t turn = 0; turn < 4; ++turn) {
    const auto placement = Choose(cluster, {.prompt_tokens = 1,
                                            .output_tokens = 1,
                                            .in_full = false,
                                            .preemptions = 0,
                                            .turn = turn,
                                            .decode_before = kNoWorker,
                                            .blame = {}});
    ASSERT_TRUE(placement.ok());
    prefill.insert(placement->prefill);
    decode.insert(placement->decode);
  }
  EXPECT_EQ(prefill.size(), 4u);
  EXPECT_EQ(decode.size(), 4u);
}

TEST(PlacementTest, ARetryKeepsItsDecodeWorkerUntilThatIsToBlame) {
  ClusterSnapshot cluster;
  for (int i = 0; i < 4; ++i)
    cluster.workers.push_back(Worker(i < 2 ? Role::kPrefill : Role::kDecode));
  RequestShape shape{.prompt_tokens = 1,
                     .output_tokens = 1,
                     .in_full = false,
                     .preemptions = 0,
                     .turn = 0,
                     .decode_before = 3,
                     .blame = {{0, 2}, {3, 1}}};
  cluster.workers[3].requests = 5;
  EXPECT_EQ(*Choose(cluster, shape), (Placement{1, 3}));
  shape.blame = {{0, 2}, {1, 2}, {3, 2}};
  EXPECT_EQ(Choose(cluster, shape)->decode, 2u);
  shape.blame = {{3, 2}};
  EXPECT_EQ(Choose(cluster, shape)->decode, 2u);
}

}  // namespace
}  // namespace trivium::router
