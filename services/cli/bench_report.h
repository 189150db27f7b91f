// What a bench run measured, reduced to percentiles. Stateless but for the report, which one thread
// owns.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/base/status.h"

namespace trivium::cli {

// Of one request, by the client's clock. Times count from when the request was due, so that one
// that was sent late is not measured as a fast one; in a closed loop it is due when it is sent.
struct BenchSample {
  absl::StatusCode code = absl::StatusCode::kOk;
  double first_token_s = 0;  // to the first token
  double total_s = 0;        // to the end of the stream
  double late_s = 0;         // to the call
  int tokens = 0;
  int64_t kv_bytes = 0;
  int attempts = 1;
  bool warm_up = false;  // counted as finished and in nothing else
  bool dropped = false;  // was due and not sent, because too many were outstanding
};

// What a request must keep to, to count as served well; unset: anything.
struct BenchTargets {
  std::optional<double> ttft_ms, tpot_ms;
};

// The p-th percentile, 0 … 100, of a non-empty list; linear between the two nearest ranks.
double Percentile(std::vector<double> values, double p);

class BenchReport {
 public:
  explicit BenchReport(uint64_t seed, BenchTargets targets = {}) : seed_(seed), targets_(targets) {}

  void Add(const BenchSample& sample);
  // Of the measured part.
  void SetElapsed(double seconds) { elapsed_s_ = seconds; }

  int finished() const { return warm_up_ + dropped_ + ok_ + failed(); }
  int failed() const;
  int64_t tokens() const { return tokens_; }

  std::string Text() const;
  std::string Json() const;

 private:
  bool MeetsTargets(double ttft_ms, std::optional<double> tpot_ms) const;
  bool has_targets() const { return targets_.ttft_ms || targets_.tpot_ms; }
  double PerSecond(double count) const;

  uint64_t seed_;
  BenchTargets targets_;
  double elapsed_s_ = 0;
  int ok_ = 0, warm_up_ = 0, dropped_ = 0, retried_ = 0, met_ = 0;
  int64_t tokens_ = 0, kv_bytes_ = 0;
  std::vector<double> first_token_ms_, per_token_ms_, total_ms_, late_ms_;
  std::map<std::string, int> errors_;  // by the code's name
};

}  // namespace trivium::cli
