#include "services/cli/bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "services/cli/bench_report.h"

namespace trivium::cli {
namespace {

using testing::HasSubstr;

TEST(PercentileTest, Table) {
  EXPECT_EQ(Percentile({7}, 0), 7);
  EXPECT_EQ(Percentile({7}, 99), 7);
  EXPECT_EQ(Percentile({4, 1, 3, 2}, 0), 1);
  EXPECT_EQ(Percentile({4, 1, 3, 2}, 100), 4);
  EXPECT_EQ(Percentile({4, 1, 3, 2}, 50), 2.5);
  EXPECT_DOUBLE_EQ(Percentile({10, 20, 30, 40, 50}, 90), 46);
}

// The definition, without sorting: as many values lie below as the rank says.
TEST(PercentileTest, LiesBetweenItsNeighbours) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<double> values(1 + random() % 40);
    for (double& value : values) value = random() % 20;
    for (const double p : {0.0, 12.5, 50.0, 90.0, 99.0, 100.0}) {
      const double result = Percentile(values, p);
      const double rank = p / 100 * static_cast<double>(values.size() - 1);
      const auto below =
          std::count_if(values.begin(), values.end(), [&](double v) { return v < result; });
      const auto up_to =
          std::count_if(values.begin(), values.end(), [&](double v) { return v <= result; });
      EXPECT_LE(static_cast<double>(below), rank + 1);
      EXPECT_GT(static_cast<double>(up_to), rank - 1e-9);
    }
  }
}

BenchSample Good(double first_token_s, double total_s, int tokens) {
  BenchSample sample;
  sample.first_token_s = first_token_s;
  sample.total_s = total_s;
  sample.tokens = tokens;
  sample.kv_bytes = 1000;
  return sample;
}

TEST(BenchReportTest, FiguresAndErrors) {
  BenchReport report(42);
  report.Add(Good(0.1, 1.1, 11));
  report.Add(Good(0.3, 0.3, 1));  // one token: nothing after the first to time
  BenchSample bad;
  bad.code = absl::StatusCode::kResourceExhausted;
  report.Add(bad);
  report.Add(bad);
  bad.code = absl::StatusCode::kUnavailable;
  report.Add(bad);
  report.SetElapsed(2);
  EXPECT_EQ(report.finished(), 5);
  EXPECT_EQ(report.failed(), 3);
  const auto json = nlohmann::json::parse(report.Json());
  EXPECT_EQ(json["seed"], 42);
  EXPECT_EQ(json["requests"]["good"], 2);
  EXPECT_EQ(json["errors"], nlohmann::json({{"RESOURCE_EXHAUSTED", 2}, {"UNAVAILABLE", 1}}));
  EXPECT_EQ(json["output_tokens"], 12);
  EXPECT_EQ(json["tokens_per_second"], 6.0);
  EXPECT_EQ(json["kv_bytes_moved"], 2000);
  EXPECT_NEAR(json["ttft_ms"]["p50"], 200, 1e-9);
  EXPECT_NEAR(json["tpot_ms"]["p99"], 100, 1e-9);
  EXPECT_NEAR(json["e2e_ms"]["p90"], 1020, 1e-9);
  EXPECT_THAT(report.Text(), HasSubstr("error RESOURCE_EXHAUSTED: 2\n"));
  EXPECT_THAT(report.Text(), HasSubstr("time per token after it  100.00  100.00   100.00\n"));
}

TEST(BenchReportTest, GoodputCountsWhatMeetsBothTargets) {
  BenchReport report(1, {.ttft_ms = 200, .tpot_ms = 100});
  report.Add(Good(0.2, 1.2, 11));   // both just met
  report.Add(Good(0.21, 0.3, 11));  // first token too late
  report.Add(Good(0.1, 1.2, 11));   // tokens too slow
  report.Add(Good(0.1, 0.1, 1));    // no token after the first
  BenchSample other;
  other.code = absl::StatusCode::kUnavailable;
  report.Add(other);
  report.SetElapsed(4);
  const auto json = nlohmann::json::parse(report.Json());
  EXPECT_EQ(json["goodput"]["requests"], 2);
  EXPECT_EQ(json["goodput"]["requests_per_second"], 0.5);
  EXPECT_EQ(json["goodput"]["ttft_slo_ms"], 200);
  EXPECT_THAT(report.Text(), HasSubstr("2 of 5 within the targets: 0.50 requests/s\n"));
}

TEST(BenchReportTest, WarmUpAndDroppedAreCountedAndNotMeasured) {
  BenchReport report(1);
  BenchSample sample = Good(9, 9, 5);
  sample.warm_up = true;
  report.Add(sample);
  sample = BenchSample();
  sample.dropped = true;
  report.Add(sample);
  sample.warm_up = true;  // dropped while warming up: not measured either
  report.Add(sample);
  report.Add(Good(1, 1, 1));
  report.SetElapsed(1);
  EXPECT_EQ(report.finished(), 4);
  const auto json = nlohmann::json::parse(report.Json());
  EXPECT_EQ(json["requests"]["good"], 1);
  EXPECT_EQ(json["requests"]["dropped"], 1);
  EXPECT_EQ(json["requests"]["warm_up"], 2);
  EXPECT_EQ(json["output_tokens"], 1);
  EXPECT_EQ(json["ttft_ms"]["p99"], 1000);
  EXPECT_TRUE(json["goodput"].is_null());
  EXPECT_THAT(report.Text(), HasSubstr("1 dropped: too many were outstanding\n"));
}

TEST(PlanArrivalsTest, PoissonOfTheGivenLengths) {
  BenchOptions options;
  options.rate = 5;
  options.requests = 50;
  options.prompt_tokens = 7;
  options.max_tokens = 9;
  const auto plan = PlanArrivals(options, 3);
  ASSERT_EQ(plan->size(), 50u);
  PoissonClock clock(5, 3);
  for (const Arrival& arrival : *plan) {
    EXPECT_EQ(arrival.at_s, clock.Next());
    EXPECT_EQ(arrival.prompt_tokens, 7);
    EXPECT_EQ(arrival.output_tokens, 9);
  }
}

TEST(BenchReportTest, NothingGood) {
  BenchReport report(1);
  EXPECT_TRUE(nlohmann::json::parse(report.Json())["ttft_ms"].is_null());
  EXPECT_THAT(report.Text(), HasSubstr("whole request            -    -    -\n"));
}

TEST(RandomPromptTest, FreshForEachRequestAndFixedBySeed) {
  BenchOptions options;
  options.token_id_min = 5;
  options.token_id_max = 9;
  const auto prompt = RandomPrompt(options, 1, 0, 200);
  EXPECT_EQ(prompt.size(), 200u);
  EXPECT_EQ(*std::min_element(prompt.begin(), prompt.end()), 5);
  EXPECT_EQ(*std::max_element(prompt.begin(), prompt.end()), 9);
  EXPECT_EQ(RandomPrompt(options, 1, 0, 200), prompt);
  EXPECT_NE(RandomPrompt(options, 1, 1, 200), prompt);
  EXPECT_NE(RandomPrompt(options, uint64_t{1} << 32 | 1, 0, 200), prompt);
}

}  // namespace
}  // namespace trivium::cli
