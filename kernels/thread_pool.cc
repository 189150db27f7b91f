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
// Enough for a disturbed thread to leave work to the others, few enough that taking one costs
// nothing beside doing it.
constexpr int64_t kPiecesPerThread = 4;

// Of state_.
constexpr uint32_t kInside = (1u << 10) - 1;
constexpr uint32_t kOpen = 1u << 10;
constexpr uint32_t kCall = 1u << 11;  // its multiples number the calls

constexpr uint32_t CallOf(uint32_t state) { return state / kCall; }

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
  KERNELS_CHECK(threads >= 1 && threads <= static_cast<int>(kInside));
  workers_.reserve(threads - 1);
  for (int thread = 1; thread < threads; ++thread) {
    workers_.emplace_back([this, thread, on_start] { Work(thread, on_start); });
  }
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  state_.fetch_add(kCall, std::memory_order_release);
  state_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

int64_t ThreadPool::PieceOf(int64_t n, int64_t grain) const {
  grain = std::max<int64_t>(grain, 1);
  if (threads() == 1 || n < 2 * grain) return n;
  const int64_t pieces = threads() * kPiecesPerThread;
  return std::max(grain, (n + pieces - 1) / pieces);
}

void ThreadPool::Run(Body body, const void* context, int64_t n, int64_t piece) {
  body_ = body;
  context_ = context;
  n_ = n;
  piece_ = piece;
  next_.store(0, std::memory_order_relaxed);
  const uint32_t call = CallOf(state_.load(std::memory_order_relaxed)) + 1;
  state_.store(call * kCall | kOpen, std::memory_order_release);
  state_.notify_all();
  TakePieces(0);
  uint32_t state = state_.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen;
  while ((state & kInside) != 0) {
    AwaitChange(state_, state);
    state = state_.load(std::memory_order_acquire);
  }
}

void ThreadPool::TakePieces(int thread) {
  for (;;) {
    const int64_t begin = next_.fetch_add(piece_, std::memory_order_relaxed);
    if (begin >= n_) return;
    body_(context_, begin, std::min(begin + piece_, n_), thread);
  }
}

void ThreadPool::Work(int thread, void (*on_start)()) {
  if (on_start != nullptr) on_start();
  uint32_t done = 0;  // the last call that this thread took part in
  uint32_t state = state_.load(std::memory_order_acquire);
  while (!stop_) {
    if ((state & kOpen) == 0 || CallOf(state) == done) {
      AwaitChange(state_, state);
      state = state_.load(std::memory_order_acquire);
    } else if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) {
      done = CallOf(state);
      TakePieces(thread);
      state = state_.fetch_sub(1, std::memory_order_acq_rel) - 1;
      if ((state & (kOpen | kInside)) == 0) state_.notify_all();
    }
  }
}

}  // namespace trivium::kernels
