// What an engine thread last said about its load, for whoever watches the worker.
// Thread-safety: all methods, any thread.
#pragma once

#include <cstdint>
#include <mutex>

namespace trivium::worker {

struct Load {
  uint64_t steps = 0;
  int32_t requests_running = 0;
  int32_t requests_waiting = 0;
  int32_t requests_max = 0;  // running and waiting together
  int64_t prompt_tokens_waiting = 0;
  int32_t expected_output_tokens = 0;  // see kv::TokensToReserve
  int32_t blocks_spare = 0;            // that a new request has to leave free
  // Slices of pictures: waiting or being encoded, together at most, and what one took lately.
  int32_t slices_waiting = 0, slices_max = 0;
  double seconds_per_slice = 0;  // 0: not measured
  bool draining = false;
};

class LoadBoard {
 public:
  // All but `draining`, which has its own setter and never goes back.
  void Set(const Load& load) {
    std::lock_guard lock(mutex_);
    const bool draining = load_.draining;
    load_ = load;
    load_.draining = draining;
  }
  void SetDraining() {
    std::lock_guard lock(mutex_);
    load_.draining = true;
  }
  Load Get() const {
    std::lock_guard lock(mutex_);
    return load_;
  }

 private:
  mutable std::mutex mutex_;
  Load load_;
};

}  // namespace trivium::worker
