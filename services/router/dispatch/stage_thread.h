// Test support: simulated workers that answer as fast as they are stepped, on a thread of their
// own, while time passes. Thread-safety: `steps_left` from any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <random>
#include <thread>

#include "services/router/dispatch/dispatch_fixture.h"

namespace trivium::router {

class StageThread {
 public:
  static constexpr int64_t kNoLimit = int64_t{1} << 40;

  explicit StageThread(DispatchFixture* fixture)
      : thread_([this, fixture] {
          std::mt19937_64 random(1);
          while (!is_over_) {
            if (steps_left <= 0 || !fixture->cluster.StepRandomCall(random, 0)) {
              std::this_thread::yield();
            } else {
              --steps_left;
            }
            fixture->Pass(Dispatcher::kTickInterval);
          }
        }) {}
  ~StageThread() {
    is_over_ = true;
    thread_.join();
  }

  std::atomic<int64_t> steps_left{kNoLimit};  // that the workers still make

 private:
  std::atomic<bool> is_over_{false};
  std::thread thread_;
};

}  // namespace trivium::router
