#include "kernels/thread_pool.h"

#include <immintrin.h>

#include <algorithm>
#include <chrono>

#include "kernels/check.h"

namespace trivium::kernels {
namespace {

constexpr int kMostThreads = 1024;
// Long enough to bridge the gap between two operations of a step, short enough that a thread whose
// partner lost its core gives its own away soon.
constexpr std::chrono::microseconds kSpin{20};
constexpr int kPausesPerLook = 16;
// A piece is one part in so many of what is left of a share: a disturbed thread leaves most of it
// to the others, and all end together.
constexpr uint32_t kPartsOfRest = 4;
// Pieces at the end of a share are smaller than what is worth waking a thread for.
constexpr int64_t kLeastPiecesPerGrain = 4;
// Items of larger calls are handed out several at a time.
constexpr int64_t kMostUnits = int64_t{1} << 30;

constexpr uint64_t OpenOf(uint32_t call, int64_t left) {
  return uint64_t{call} << 32 | static_cast<uint32_t>(left);
}
constexpr uint32_t CallOf(uint64_t open) { return static_cast<uint32_t>(open >> 32); }
constexpr uint32_t LeftOf(uint64_t open) { return static_cast<uint32_t>(open); }

// Whether `met` came true within kSpin.
template <typename Met>
bool Spin(const Met& met) {
  std::chrono::steady_clock::time_point deadline{};
  for (;;) {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (met()) return true;
      _mm_pause();
    }
    const auto now = std::chrono::steady_clock::now();
    if (deadline == decltype(deadline)()) deadline = now + kSpin;
    if (now >= deadline) return false;
  }
}

}  // namespace

ThreadPool::ThreadPool(int threads, void (*on_start)())
    : shares_(std::make_unique<Share[]>(static_cast<size_t>(std::max(threads, 1)))) {
  KERNELS_CHECK(threads >= 1 && threads <= kMostThreads);
  workers_.reserve(threads - 1);
  for (int thread = 1; thread < threads; ++thread) {
    workers_.emplace_back([this, thread, on_start] { Work(thread, on_start); });
  }
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  call_.fetch_add(1, std::memory_order_release);
  call_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Run(Body body, const void* context, int64_t n, int64_t grain) {
  const int64_t unit = (n + kMostUnits - 1) / kMostUnits, units = (n + unit - 1) / unit;
  const uint32_t call = call_.load(std::memory_order_relaxed) + 1;
  const int64_t least = std::max<int64_t>(1, grain / unit / kLeastPiecesPerGrain);
  left_.store(static_cast<uint32_t>(units), std::memory_order_relaxed);
  // The others' first, so that they begin while the rest is written.
  for (int64_t t = threads() - 1; t >= 0; --t) {
    Share& share = shares_[t];
    share.least_piece.store(static_cast<uint32_t>(std::min(least, kMostUnits)),
                            std::memory_order_relaxed);
    share.body = body;
    share.context = context;
    share.n = n;
    share.unit = unit;
    share.end = units * (t + 1) / threads();
    share.open.store(OpenOf(call, share.end - units * t / threads()), std::memory_order_release);
  }
  call_.store(call, std::memory_order_seq_cst);
  call_.notify_all();
  TakePieces(0);
  AwaitOthers();
}

void ThreadPool::AwaitOthers() {
  const auto is_done = [this] { return left_.load(std::memory_order_acquire) == 0; };
  if (Spin(is_done)) return;
  for (;;) {
    const uint32_t left = left_.load(std::memory_order_acquire);
    if (left == 0) return;
    left_.wait(left, std::memory_order_acquire);
  }
}

void ThreadPool::TakePieces(int thread) {
  uint32_t taken = 0;
  for (int i = 0; i < threads(); ++i) {
    taken += TakeFrom(shares_[(thread + i) % threads()], thread);
  }
  if (taken == 0) return;
  // Releases what was written, to the caller.
  if (left_.fetch_sub(taken, std::memory_order_acq_rel) == taken && thread != 0) {
    left_.notify_all();
  }
}

uint32_t ThreadPool::TakeFrom(Share& share, int thread) {
  uint32_t taken = 0;
  uint64_t open = share.open.load(std::memory_order_acquire);
  while (LeftOf(open) > 0) {
    const uint32_t left = LeftOf(open), least = share.least_piece.load(std::memory_order_relaxed);
    const uint32_t piece = std::min(left, std::max(least, left / kPartsOfRest));
    if (!share.open.compare_exchange_weak(open, open - piece, std::memory_order_acquire)) continue;
    taken += piece;
    const int64_t begin = (share.end - left) * share.unit;
    share.body(share.context, begin, std::min(begin + piece * share.unit, share.n), thread);
    open = share.open.load(std::memory_order_acquire);
  }
  return taken;
}

void ThreadPool::AwaitCall(const Share& share, uint32_t done) {
  const auto is_new = [&] { return CallOf(share.open.load(std::memory_order_acquire)) != done; };
  if (Spin(is_new)) return;
  const uint32_t call = call_.load(std::memory_order_seq_cst);
  if (stop_ || is_new()) return;
  call_.wait(call, std::memory_order_acquire);
}

void ThreadPool::Work(int thread, void (*on_start)()) {
  if (on_start != nullptr) on_start();
  const Share& own = shares_[thread];
  uint32_t done = 0;  // the last call that this thread has seen
  while (!stop_) {
    const uint32_t call = CallOf(own.open.load(std::memory_order_acquire));
    if (call == done) {
      AwaitCall(own, done);
    } else {
      done = call;
      TakePieces(thread);
    }
  }
}

}  // namespace trivium::kernels
