// One run of bench: sends single requests, collects what they measured and shows how far it is. The
// loops decide when to send. All methods may be called from any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "services/cli/arrivals.h"
#include "services/cli/bench_report.h"
#include "services/cli/client.h"
#include "services/cli/options.h"

namespace trivium::cli {

class BenchRun {
 public:
  using Clock = std::chrono::steady_clock;

  // The run starts now.
  BenchRun(const Options& options, uint64_t seed, int requests);

  // Blocks until the answer to request number `index` has ended. `due` is when it should have been
  // sent: times count from there.
  void Send(int index, const Arrival& arrival, Clock::time_point due);
  // Counts a request that was due and is not sent.
  void Drop(const Arrival& arrival);
  // Until `requests` have ended: a bar on a terminal, else a line every tenth of the run.
  void ShowProgress();

  Clock::time_point started() const { return started_; }
  BenchReport Report();

 private:
  BenchSample Measure(int index, const Arrival& arrival, Clock::time_point due);
  void Add(const BenchSample& sample);
  void RememberError(const absl::Status& status);
  void PrintProgress(bool terminal) const;
  bool IsWarmUp(const Arrival& arrival) const;

  const Options& options_;
  const uint64_t seed_;
  const int requests_;
  Client client_;
  const Clock::time_point started_;
  std::mutex mutex_;
  std::condition_variable changed_;
  BenchReport report_;
  bool error_shown_ = false;
};

// Each of --concurrency slots sends its next request when its last one has ended.
BenchReport RunClosedLoop(const Options& options, uint64_t seed);
// Each request is sent when it is due, whatever the others do. What is due while
// --outstanding-max are under way is dropped and counted: sent later, it would be another load.
BenchReport RunOpenLoop(const Options& options, uint64_t seed, const std::vector<Arrival>& plan);

}  // namespace trivium::cli
