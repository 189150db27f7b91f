// How many requests a worker has taken, and whether it takes more; a request takes as many places
// as it has sequences. Refusals are counted. Thread-safety: all methods, any thread. Every place
// entered is left once.
#pragma once

#include <cstdint>
#include <mutex>

#include "common/base/clock.h"
#include "common/base/status.h"

namespace trivium::worker {

// About the time of a few steps: room appears when a running request ends.
inline constexpr Duration kRetryHint = std::chrono::milliseconds(50);

class Admission {
 public:
  explicit Admission(int32_t requests_max) : requests_max_(requests_max) {}

  // UNAVAILABLE while draining; RESOURCE_EXHAUSTED with a retry hint when more than requests_max
  // would be inside; INVALID_ARGUMENT when that is so in an empty worker.
  absl::Status Enter(int32_t places = 1);
  void Leave(int32_t places = 1);
  void Drain();

  bool draining() const;
  int32_t requests() const;
  int64_t refused() const;
  int32_t requests_max() const { return requests_max_; }

 private:
  const int32_t requests_max_;
  mutable std::mutex mutex_;
  int32_t requests_ = 0;
  int64_t refused_ = 0;
  bool draining_ = false;
};

// RESOURCE_EXHAUSTED whose text ends in kRetryHint.
absl::Status RetryLater(std::string_view reason);

}  // namespace trivium::worker
