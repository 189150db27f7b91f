// When the requests of an open-loop run are due, and how long they are. Nothing here reads a clock:
// time is what the generator adds up. One thread owns a generator; the rest is stateless.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/status.h"

namespace trivium::cli {

struct Arrival {
  double at_s = 0;  // after the start of the run; never less than that of the one before
  int prompt_tokens = 0;
  int output_tokens = 0;
};

// Times of a Poisson process: gaps are exponential and independent. The same for the same seed on
// every machine.
class PoissonClock {
 public:
  PoissonClock(double per_second, uint64_t seed) : per_second_(per_second), random_(seed) {}
  // Seconds after the start, each later than the last.
  double Next();

 private:
  const double per_second_;
  double now_s_ = 0;
  std::mt19937_64 random_;
};

// One JSON object a line with `timestamp` in ms, `input_length` or `prompt_tokens`, `output_length`
// or `output_tokens`; other fields are passed over, as are empty lines. Times count from the first.
// At most `arrivals_max`. INVALID_ARGUMENT names the line.
absl::StatusOr<std::vector<Arrival>> ParseTrace(std::string_view text, size_t arrivals_max);

// The same of a file of at most 64 MiB, or of standard input for "-".
absl::StatusOr<std::vector<Arrival>> ReadTrace(const std::string& path, size_t arrivals_max);

}  // namespace trivium::cli
