// Whether looking pays: the hit rate of each category against the one at which a hit saves what the
// misses cost, h* = (t_look + t_insert) / (t_model + t_insert - t_fetch), from times that were
// measured here.
//
// A category whose hit rate was below h* for three windows of ten minutes is looked up in one of
// fifty requests only, until these hit often enough. Windows of few look-ups say nothing.
// Thread-safety: all methods, any thread. Time passes by Tick alone.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "common/base/clock.h"

namespace trivium::router {

class BreakEven {
 public:
  static constexpr Duration kWindow = std::chrono::minutes(10);
  static constexpr int kWindowsBelow = 3, kSample = 50;
  static constexpr uint64_t kLooksMin = 20;  // in a window

  explicit BreakEven(size_t categories) : categories_(categories) {}

  // Whether this request is to be looked up.
  bool ShouldLook(size_t category);
  void Looked(size_t category, bool has_hit, double seconds);  // embedding and search
  void Fetched(double seconds);
  void Inserted(double seconds);
  void Answered(double seconds);  // by the model
  void Tick(TimePoint now);

  struct State {
    bool is_suspended = false;
    double hit_rate = 0;    // smoothed over windows; of the running one before the first has ended
    double break_even = 0;  // 1 where nothing is known to be saved
    uint64_t passed = 0;    // requests that were not looked up
  };
  State state(size_t category) const;

 private:
  struct Category {
    uint64_t looks = 0, hits = 0, asked = 0, passed = 0;  // looks and hits of this window
    double rate = -1;                                     // below 0: no window has ended
    int below = 0;
    bool is_suspended = false;
  };
  double Threshold() const;
  void EndWindow(Category* category) const;

  mutable std::mutex mutex_;
  std::vector<Category> categories_;
  double look_s_ = 0, fetch_s_ = 0, insert_s_ = 0, model_s_ = 0;  // smoothed; 0: not measured yet
  TimePoint window_began_{};
};

}  // namespace trivium::router
