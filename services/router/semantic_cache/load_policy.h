// How loaded the cluster is, from 0 to 1, for policies that answer more from the cache when it is.
//
// The larger of two parts, how far the time to first token (of the slowest twentieth) and the queue
// are between their marks, smoothed over ten seconds. What is told changes at most every five
// seconds and by at least a tenth, and comes back to exactly 0 and 1.
// Thread-safety: all methods, any thread. Time passes by Update alone.
#pragma once

#include <deque>
#include <mutex>
#include <utility>

#include "common/base/clock.h"

namespace trivium::router {

class LoadPolicy {
 public:
  struct Options {
    double ttft_low_s = 1, ttft_high_s = 5;
    double queue_low = 4, queue_high = 32;  // requests waiting
  };
  explicit LoadPolicy(Options options) : options_(options) {}

  void FirstToken(TimePoint now, double ttft_s);
  float Update(TimePoint now, double queue);

 private:
  double SlowTtft(TimePoint now);

  const Options options_;
  std::mutex mutex_;
  std::deque<std::pair<TimePoint, double>> ttfts_;  // the latest, at most kTtftsMax
  double level_ = 0;
  float told_ = 0;
  TimePoint last_{}, changed_{};
};

}  // namespace trivium::router
