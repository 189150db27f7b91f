#include "services/cli/bench_report.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "services/cli/table.h"

namespace trivium::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kShown[] = {50, 90, 99};

Json PercentilesJson(const std::vector<double>& values) {
  if (values.empty()) return nullptr;
  Json object;
  for (const double p : kShown) object[fmt::format("p{}", p)] = Percentile(values, p);
  return object;
}

std::vector<std::string> PercentilesRow(const std::string& name,
                                        const std::vector<double>& values) {
  std::vector<std::string> row = {name};
  for (const double p : kShown) {
    row.push_back(values.empty() ? "-" : fmt::format("{:.2f}", Percentile(values, p)));
  }
  return row;
}

}  // namespace

double Percentile(std::vector<double> values, double p) {
  TRIVIUM_CHECK(!values.empty() && p >= 0 && p <= 100, "percentile {} of {}", p, values.size());
  std::sort(values.begin(), values.end());
  const double rank = p / 100 * static_cast<double>(values.size() - 1);
  const auto below = static_cast<size_t>(std::floor(rank));
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (rank - std::floor(rank)) * (values[above] - values[below]);
}

void BenchReport::Add(const BenchSample& sample) {
  if (sample.warm_up || sample.dropped) {
    ++(sample.warm_up ? warm_up_ : dropped_);
    return;
  }
  if (sample.code != absl::StatusCode::kOk) {
    ++errors_[absl::StatusCodeToString(sample.code)];
    return;
  }
  ++ok_;
  retried_ += sample.attempts > 1;
  tokens_ += sample.tokens;
  kv_bytes_ += sample.kv_bytes;
  first_token_ms_.push_back(sample.first_token_s * 1e3);
  total_ms_.push_back(sample.total_s * 1e3);
  late_ms_.push_back(sample.late_s * 1e3);
  std::optional<double> per_token_ms;
  if (sample.tokens > 1) {
    per_token_ms = (sample.total_s - sample.first_token_s) * 1e3 / (sample.tokens - 1);
    per_token_ms_.push_back(*per_token_ms);
  }
  met_ += MeetsTargets(sample.first_token_s * 1e3, per_token_ms);
}

bool BenchReport::MeetsTargets(double ttft_ms, std::optional<double> tpot_ms) const {
  if (targets_.ttft_ms && ttft_ms > *targets_.ttft_ms) return false;
  return !targets_.tpot_ms || !tpot_ms || *tpot_ms <= *targets_.tpot_ms;
}

double BenchReport::PerSecond(double count) const { return count / std::max(elapsed_s_, 1e-9); }

int BenchReport::failed() const {
  int failed = 0;
  for (const auto& [code, count] : errors_) failed += count;
  return failed;
}

std::string BenchReport::Text() const {
  const int due = ok_ + failed() + dropped_;
  std::string text = fmt::format(
      "{} requests in {:.2f} s (seed {}): {} good, {} failed, {} tried again\n"
      "{:.1f} tokens/s, {:.2f} requests/s, {} bytes of KV moved\n",
      due, elapsed_s_, seed_, ok_, failed(), retried_, PerSecond(static_cast<double>(tokens_)),
      PerSecond(ok_), kv_bytes_);
  if (dropped_ > 0) text += fmt::format("{} dropped: too many were outstanding\n", dropped_);
  if (warm_up_ > 0) text += fmt::format("{} more to warm up, not measured\n", warm_up_);
  if (has_targets()) {
    text +=
        fmt::format("{} of {} within the targets: {:.2f} requests/s\n", met_, due, PerSecond(met_));
  }
  text += Table({{"ms", "p50", "p90", "p99"},
                 PercentilesRow("time to first token", first_token_ms_),
                 PercentilesRow("time per token after it", per_token_ms_),
                 PercentilesRow("whole request", total_ms_)});
  for (const auto& [code, count] : errors_) text += fmt::format("error {}: {}\n", code, count);
  return text;
}

std::string BenchReport::Json() const {
  using Object = nlohmann::ordered_json;
  const auto target = [](std::optional<double> ms) { return ms ? Object(*ms) : Object(nullptr); };
  Object goodput = nullptr;
  if (has_targets()) {
    goodput = {{"ttft_slo_ms", target(targets_.ttft_ms)},
               {"tpot_slo_ms", target(targets_.tpot_ms)},
               {"requests", met_},
               {"requests_per_second", PerSecond(met_)}};
  }
  const Object object = {{"seed", seed_},
                         {"elapsed_s", elapsed_s_},
                         {"requests",
                          {{"good", ok_},
                           {"failed", failed()},
                           {"dropped", dropped_},
                           {"warm_up", warm_up_},
                           {"retried", retried_}}},
                         {"errors", errors_},
                         {"output_tokens", tokens_},
                         {"tokens_per_second", PerSecond(static_cast<double>(tokens_))},
                         {"requests_per_second", PerSecond(ok_)},
                         {"goodput", goodput},
                         {"kv_bytes_moved", kv_bytes_},
                         {"ttft_ms", PercentilesJson(first_token_ms_)},
                         {"tpot_ms", PercentilesJson(per_token_ms_)},
                         {"e2e_ms", PercentilesJson(total_ms_)},
                         {"sent_late_ms", PercentilesJson(late_ms_)}};
  return object.dump(2) + "\n";
}

}  // namespace trivium::cli
