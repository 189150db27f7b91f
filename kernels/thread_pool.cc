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
// A piece is one part in so many of what is left of a share: a disturbed thread leaves most of it
// to the others, and all end together.
constexpr int64_t kPartsOfRest = 4;
// Pieces at the end of a share are smaller than what is worth waking a thread for.
constexpr int64_t kLeastPiecesPerGrain = 4;

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

ThreadPool::ThreadPool(int threads, void (*on_start)())
    : shares_(std::make_unique<Share[]>(static_cast<size_t>(std::max(threads, 1)))) {
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

void ThreadPool::Run(Body body, const void* context, int64_t n, int64_t grain) {
  body_ = body;
  context_ = context;
  least_piece_ = std::max<int64_t>(1, grain / kLeastPiecesPerGrain);
  for (int64_t t = 0; t < threads(); ++t) {
    shares_[t].next.store(n * t / threads(), std::memory_order_relaxed);
    shares_[t].end = n * (t + 1) / threads();
  }
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
  for (int i = 0; i < threads(); ++i) TakeFrom(shares_[(thread + i) % threads()], thread);
}

void ThreadPool::TakeFrom(Share& share, int thread) {
  int64_t begin = share.next.load(std::memory_order_relaxed);
  while (begin < share.end) {
    const int64_t rest = share.end - begin;
    const int64_t end = begin + std::min(rest, std::max(least_piece_, rest / kPartsOfRest));
    if (!share.next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
    body_(context_, begin, end, thread);
    begin = share.next.load(std::memory_order_relaxed);
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
