// Policies side by side over the same traces, and what the scheduler promises to everybody.
#include "services/router/planner/simulator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

namespace trivium::router {
namespace {

double CachedShare(const SimReport& report) {
  return static_cast<double>(report.cached_tokens) / static_cast<double>(report.prompt_tokens);
}
double BoundShare(const SimReport& report) {
  return static_cast<double>(report.cached_tokens_bound) /
         static_cast<double>(report.prompt_tokens);
}
double BusyShare(const SimReport& report) {
  const auto& busy = report.prefill_busy_s;
  return std::accumulate(busy.begin(), busy.end(), 0.0) /
         (report.end_s * static_cast<double>(busy.size()));
}

SimReport SimulateWith(Policy policy, const std::vector<SimRequest>& trace) {
  SimClusterOptions options;
  options.policy = policy;
  return Simulate(options, trace);
}

TEST(SimulatorTest, TheSameTraceGivesTheSameReport) {
  const std::vector<SimRequest> trace = MakeTrace({.requests = 2000, .requests_per_s = 20});
  const SimReport a = SimulateWith(Policy::kPredictedCost, trace),
                  b = SimulateWith(Policy::kPredictedCost, trace);
  EXPECT_EQ(a.prefill_busy_s, b.prefill_busy_s);
  EXPECT_EQ(a.other_first_token.p99_s, b.other_first_token.p99_s);
  EXPECT_EQ(a.cached_tokens, b.cached_tokens);
}

// One worker, one request at a time: what can be said without simulating.
TEST(SimulatorTest, ARequestAloneTakesItsArithmeticTime) {
  SimClusterOptions options;
  options.prefill_workers = options.decode_workers = 1;
  const std::vector<SimRequest> trace = {{.arrival_s = 1,
                                          .prefix = 7,
                                          .prefix_tokens = 512,
                                          .prompt_tokens = 600,
                                          .output_tokens = 11},
                                         {.arrival_s = 9,
                                          .prefix = 7,
                                          .prefix_tokens = 512,
                                          .prompt_tokens = 600,
                                          .output_tokens = 11}};
  const SimReport report = Simulate(options, trace);
  EXPECT_NEAR(report.other_first_token.most_s, 0.602, 1e-9);
  EXPECT_NEAR(report.other_first_token.p50_s, 0.002 + 0.088, 1e-9);
  EXPECT_EQ(report.cached_tokens, 512);
  EXPECT_EQ(report.prompt_tokens, 1200);
  const double decode_s = 600 * 23040 / 1e9 + 10 * (8e-3 + 2e-4);
  EXPECT_NEAR(report.end_s, 9 + 0.09 + decode_s, 1e-6);
}

TEST(SimulatorTest, CostFindsWhatIsHeldAndIsFasterThanLoadAlone) {
  const std::vector<SimRequest> trace = MakeTrace({.requests = 6000,
                                                   .requests_per_s = 20,
                                                   .hot_share = 0.3,
                                                   .prefixes = 60,
                                                   .cold_share = 0.1});
  const SimReport cost = SimulateWith(Policy::kPredictedCost, trace);
  const SimReport load = SimulateWith(Policy::kLeastLoaded, trace);
  const SimReport turns = SimulateWith(Policy::kRoundRobin, trace);
  EXPECT_GT(CachedShare(cost), 0.9 * BoundShare(cost));
  EXPECT_LT(CachedShare(load), 0.9 * CachedShare(cost));
  EXPECT_LT(CachedShare(turns), 0.9 * CachedShare(cost));
  EXPECT_LT(cost.other_first_token.p99_s, load.other_first_token.p99_s);
  EXPECT_LT(cost.hot_first_token.p99_s, turns.hot_first_token.p99_s);
}

// The bound: at 80 % load and more, nobody waits in the router for longer than 2 s because of a
// prefix that most others ask for, and no worker does more than 1.25 times the mean.
TEST(SimulatorTest, AHotPrefixNeitherStarvesOthersNorPilesUp) {
  SimClusterOptions options;
  options.prefill_workers = options.decode_workers = 32;
  const SimReport report =
      Simulate(options, MakeTrace({.requests = 50000, .requests_per_s = 190, .hot_share = 0.8}));
  EXPECT_GT(BusyShare(report), 0.8);
  EXPECT_EQ(report.refused, 0);
  EXPECT_LT(report.other_wait_most_s, 2);
  EXPECT_LT(report.prefill_most_to_mean, 1.25);
}

// Where workers idle, too: a holder's bargain is not worth that others do nothing.
TEST(SimulatorTest, WorkIsSpreadWhetherThereIsMuchOfItOrLittle) {
  SimClusterOptions options;
  options.prefill_workers = options.decode_workers = 32;
  for (const double rate : {40, 60, 83}) {
    const SimReport report =
        Simulate(options, MakeTrace({.requests = 20000, .requests_per_s = rate}));
    EXPECT_LT(BusyShare(report), 0.65);
    EXPECT_LT(report.prefill_most_to_mean, 1.25) << rate << " requests a second";
  }
}

// Two tenants send the same, each more than there is room for.
TEST(SimulatorTest, TenantsGetTokensByWeightWhoeverAsksForMore) {
  const auto shares = [](double weight) {
    const SimReport report =
        Simulate({}, MakeTrace({.requests = 6000,
                                .requests_per_s = 80,
                                .hot_share = 0.1,
                                .tenants = {{.tenant = 1}, {.tenant = 2, .weight = weight}}}));
    const SimReport::OfTenant &one = report.tenants.at(1), &two = report.tenants.at(2);
    EXPECT_GT(one.refused, 100);
    EXPECT_GT(two.refused, 100);
    return static_cast<double>(two.computed_tokens) / static_cast<double>(one.computed_tokens);
  };
  EXPECT_NEAR(shares(1), 1, 0.03);
  EXPECT_NEAR(shares(3), 3, 0.12);
}

// The bound of ageing: a request is overtaken, by its own tenant, only by those that came less than
// an age after it. Here more arrives than can be served, most of it behind a hot prefix.
TEST(SimulatorTest, AHotPrefixOvertakesNobodyForLongerThanTheAge) {
  SimClusterOptions options;
  const auto overtaken_by_s = [&](Duration age) {
    options.queue.order.age = age;
    return Simulate(options, MakeTrace({.requests = 5000, .requests_per_s = 60, .hot_share = 0.8}))
        .tenants.at(0)
        .overtaken_by_most_s;
  };
  EXPECT_LT(overtaken_by_s(std::chrono::seconds(2)), 2);
  EXPECT_GT(overtaken_by_s(std::chrono::seconds(2)), 1);
  EXPECT_GT(overtaken_by_s(scheduling::FairQueue::kNoAging), 15);
}

}  // namespace
}  // namespace trivium::router
