#include <algorithm>
#include <deque>
#include <thread>

#include "services/cli/bench_run.h"

namespace trivium::cli {
namespace {

using Clock = BenchRun::Clock;

// Threads that send what is handed to them: one more whenever none is idle, up to a bound, because
// a call blocks its thread until its answer has ended.
class Senders {
 public:
  Senders(BenchRun* run, int threads_max) : run_(run), threads_max_(threads_max) {}

  // Ends when all that was handed over has ended.
  ~Senders() {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
    }
    waiting_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  // False, and nothing is sent, while `threads_max` are under way.
  bool Offer(int index, const Arrival& arrival, Clock::time_point due) {
    const std::lock_guard lock(mutex_);
    if (outstanding_ == threads_max_) return false;
    ++outstanding_;
    jobs_.push_back({index, arrival, due});
    if (outstanding_ > static_cast<int>(threads_.size())) {
      threads_.emplace_back([this] { RunThread(); });
    }
    waiting_.notify_one();
    return true;
  }

 private:
  struct Job {
    int index;
    Arrival arrival;
    Clock::time_point due;
  };

  void RunThread() {
    std::unique_lock lock(mutex_);
    while (true) {
      waiting_.wait(lock, [this] { return closed_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      const Job job = jobs_.front();
      jobs_.pop_front();
      lock.unlock();
      run_->Send(job.index, job.arrival, job.due);
      lock.lock();
      --outstanding_;
    }
  }

  BenchRun* const run_;
  const int threads_max_;
  std::mutex mutex_;
  std::condition_variable waiting_;
  std::deque<Job> jobs_;  // never more than there are threads
  std::vector<std::thread> threads_;
  int outstanding_ = 0;
  bool closed_ = false;
};

Clock::time_point DueTime(Clock::time_point start, const Arrival& arrival) {
  return start +
         std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(arrival.at_s));
}

void RunSlot(const Options& options, BenchRun* run, std::atomic<int>* next) {
  const int requests = options.bench.RequestCount();
  for (int index; (index = next->fetch_add(1)) < requests;) {
    const auto now = Clock::now();
    run->Send(index,
              {.at_s = std::chrono::duration<double>(now - run->started()).count(),
               .prompt_tokens = options.bench.prompt_tokens,
               .output_tokens = options.bench.max_tokens},
              now);
  }
}

}  // namespace

BenchReport RunClosedLoop(const Options& options, uint64_t seed) {
  const int requests = options.bench.RequestCount();
  BenchRun run(options, seed, requests);
  std::atomic<int> next{0};
  std::vector<std::thread> slots;
  for (int i = 0; i < std::min(options.bench.concurrency, requests); ++i) {
    slots.emplace_back([&] { RunSlot(options, &run, &next); });
  }
  run.ShowProgress();
  for (std::thread& slot : slots) slot.join();
  return run.Report();
}

BenchReport RunOpenLoop(const Options& options, uint64_t seed, const std::vector<Arrival>& plan) {
  BenchRun run(options, seed, static_cast<int>(plan.size()));
  std::thread dispatcher([&] {
    Senders senders(&run, options.bench.outstanding_max);
    for (size_t i = 0; i < plan.size(); ++i) {
      const Clock::time_point due = DueTime(run.started(), plan[i]);
      std::this_thread::sleep_until(due);
      if (!senders.Offer(static_cast<int>(i), plan[i], due)) run.Drop(plan[i]);
    }
  });
  run.ShowProgress();
  dispatcher.join();
  return run.Report();
}

}  // namespace trivium::cli
