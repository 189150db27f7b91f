// Policies over one trace, as a table:
//   simulation_bench [--workers 1000] [--requests 1000000] [--rate 2900] [--hot 0.5]
//                    [--policy predicted_cost]
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <string>

#include "services/router/planner/simulator.h"

namespace trivium::router {
namespace {

void Print(const char* name, const SimClusterOptions& options,
           const std::vector<SimRequest>& trace) {
  const auto begin = std::chrono::steady_clock::now();
  const SimReport report = Simulate(options, trace);
  const double took_s =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const auto& busy = report.prefill_busy_s;
  const auto share = [&](int64_t tokens) {
    return static_cast<double>(tokens) / static_cast<double>(report.prompt_tokens);
  };
  fmt::print(
      "{}: cached {:.3f} of at most {:.3f}; first token hot p50 {:.3f} s p99 {:.3f} s, others p50 "
      "{:.3f} s p99 {:.3f} s; longest wait of others {:.2f} s; busy {:.3f}, most to mean {:.2f}; "
      "refused {}; simulated {:.0f} s in {:.1f} s\n",
      name, share(report.cached_tokens), share(report.cached_tokens_bound),
      report.hot_first_token.p50_s, report.hot_first_token.p99_s, report.other_first_token.p50_s,
      report.other_first_token.p99_s, report.other_wait_most_s,
      std::accumulate(busy.begin(), busy.end(), 0.0) /
          (report.end_s * static_cast<double>(busy.size())),
      report.prefill_most_to_mean, report.refused, report.end_s, took_s);
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  int workers = 1000;
  TraceOptions trace{.requests = 1000000, .requests_per_s = 0};
  std::string policy = "predicted_cost";
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--workers") workers = std::atoi(argv[i + 1]);
    if (flag == "--requests") trace.requests = std::atoll(argv[i + 1]);
    if (flag == "--rate") trace.requests_per_s = std::atof(argv[i + 1]);
    if (flag == "--hot") trace.hot_share = std::atof(argv[i + 1]);
    if (flag == "--policy") policy = argv[i + 1];
  }
  if (trace.requests_per_s <= 0) trace.requests_per_s = 2.5 * workers / 2;
  SimClusterOptions options;
  options.prefill_workers = workers / 2;
  options.decode_workers = workers - workers / 2;
  options.policy = PolicyNamed(policy);
  Print(policy.c_str(), options, MakeTrace(trace));
  return 0;
}

}  // namespace
}  // namespace trivium::router

int main(int argc, char** argv) { return trivium::router::Main(argc, argv); }
