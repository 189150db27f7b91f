// What a bench run measured, reduced to percentiles. Stateless but for the report, which one thread
// owns.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/base/status.h"

namespace trivium::cli {

// Of one request, by the client's clock.
struct BenchSample {
  absl::StatusCode code = absl::StatusCode::kOk;
  double first_token_s = 0;  // from the call to the first token
  double total_s = 0;        // from the call to the end of the stream
  int tokens = 0;
  int64_t kv_bytes = 0;
  int attempts = 1;
};

// The p-th percentile, 0 … 100, of a non-empty list; linear between the two nearest ranks.
double Percentile(std::vector<double> values, double p);

class BenchReport {
 public:
  explicit BenchReport(uint64_t seed) : seed_(seed) {}

  void Add(const BenchSample& sample);
  void SetElapsed(double seconds) { elapsed_s_ = seconds; }

  int finished() const { return ok_ + failed(); }
  int failed() const;
  int64_t tokens() const { return tokens_; }

  std::string Text() const;
  std::string Json() const;

 private:
  uint64_t seed_;
  double elapsed_s_ = 0;
  int ok_ = 0;
  int retried_ = 0;
  int64_t tokens_ = 0, kv_bytes_ = 0;
  std::vector<double> first_token_ms_, per_token_ms_, total_ms_;
  std::map<std::string, int> errors_;  // by the code's name
};

}  // namespace trivium::cli
