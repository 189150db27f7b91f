#include "kernels/thread_pool.h"

#include <immintrin.h>

#include <algorithm>
#include <chrono>

#include "kernels/check.h"

namespace trivium::kernels {
namespace {

// Long enough to bridge the gap between two operations of a step, short enough that a thread whose
// partner lost its core gives its own away soon.
constexpr std::chrono::microseconds kSpin{20};
constexpr int kPausesPerLook = 16;

// Returns once `value` differs from `old`.
void AwaitChange(const std::atomic<uint32_t>& value, uint32_t old) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      _mm_pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int threads, void (*on_start)()) {
  KERNELS_CHECK(threads >= 1);
  workers_.reserve(threads - 1);
  for (int thread = 1; thread < threads; ++thread) {
    workers_.emplace_back([this, thread, on_start] { Work(thread, on_start); });
  }
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

int64_t ThreadPool::Parts(int64_t n, int64_t grain) const {
  return std::clamp<int64_t>(n / std::max<int64_t>(grain, 1), 1, threads());
}

void ThreadPool::Run(Body body, const void* context, int64_t n, int64_t parts) {
  body_ = body;
  context_ = context;
  n_ = n;
  parts_ = parts;
  pending_.store(static_cast<uint32_t>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  RunPart(0);
  while (const uint32_t left = pending_.load(std::memory_order_acquire)) {
    AwaitChange(pending_, left);
  }
}

void ThreadPool::RunPart(int thread) const {
  if (thread >= parts_) return;
  body_(context_, n_ * thread / parts_, n_ * (thread + 1) / parts_, thread);
}

void ThreadPool::Work(int thread, void (*on_start)()) {
  if (on_start != nullptr) on_start();
  for (uint32_t seen = 0;; ++seen) {
    AwaitChange(generation_, seen);
    if (stop_) return;
    RunPart(thread);
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
  }
}

}  // namespace trivium::kernels
