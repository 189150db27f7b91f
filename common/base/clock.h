// Monotonic time behind an interface, so that leases and timeouts can be tested without sleeping.
// Both clocks are safe from any thread.
#pragma once

#include <atomic>
#include <chrono>

namespace trivium {

using Duration = std::chrono::nanoseconds;
using TimePoint = std::chrono::time_point<std::chrono::steady_clock, Duration>;

class Clock {
 public:
  virtual ~Clock() = default;
  virtual TimePoint Now() const = 0;
  static Clock& Real();
};

// A clock that stands still until it is told to advance.
class VirtualClock final : public Clock {
 public:
  TimePoint Now() const override { return TimePoint(Duration(now_ns_.load())); }
  void Advance(Duration by) { now_ns_ += by.count(); }

 private:
  std::atomic<int64_t> now_ns_{1};
};

inline Clock& Clock::Real() {
  struct RealClock final : Clock {
    TimePoint Now() const override { return std::chrono::steady_clock::now(); }
  };
  static RealClock clock;
  return clock;
}

}  // namespace trivium
