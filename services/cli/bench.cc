#include "services/cli/bench.h"

#include <cstdio>
#include <random>

#include "services/cli/bench_run.h"
#include "services/cli/commands.h"

namespace trivium::cli {
namespace {

absl::StatusOr<BenchReport> RunLoop(const Options& options, uint64_t seed) {
  if (!options.bench.open_loop()) return RunClosedLoop(options, seed);
  ASSIGN_OR_RETURN(const std::vector<Arrival> plan, PlanArrivals(options.bench, seed));
  return RunOpenLoop(options, seed, plan);
}

}  // namespace

std::vector<int32_t> RandomPrompt(const BenchOptions& options, uint64_t seed, int index,
                                  int tokens) {
  std::seed_seq sequence{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
                         static_cast<uint32_t>(index)};
  std::mt19937_64 random(sequence);
  const uint64_t range = static_cast<uint64_t>(options.token_id_max) - options.token_id_min + 1;
  std::vector<int32_t> ids(tokens);
  for (int32_t& id : ids) id = options.token_id_min + static_cast<int32_t>(random() % range);
  return ids;
}

absl::StatusOr<std::vector<Arrival>> PlanArrivals(const BenchOptions& options, uint64_t seed) {
  if (!options.trace.empty()) {
    return ReadTrace(options.trace,
                     static_cast<size_t>(options.requests.value_or(kBenchRequestsMax)));
  }
  PoissonClock clock(options.rate, seed);
  std::vector<Arrival> plan(static_cast<size_t>(options.RequestCount()));
  for (Arrival& arrival : plan) {
    arrival = {clock.Next(), options.prompt_tokens, options.max_tokens};
  }
  return plan;
}

int RunBench(const Options& options) {
  const uint64_t drawn = (uint64_t{std::random_device()()} << 32) | std::random_device()();
  // A cluster that is not there fails once and not once a request.
  if (const auto status = Client(options.router, 0, options.api_key).ClusterStatus();
      !status.ok()) {
    return Fail(status.status());
  }
  const auto report = RunLoop(options, options.bench.seed.value_or(drawn));
  if (!report.ok()) return Fail(report.status());
  std::fputs((options.json ? report->Json() : report->Text()).c_str(), stdout);
  return report->failed() == 0 ? 0 : 1;
}

}  // namespace trivium::cli
