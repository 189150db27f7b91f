// A small pool whose threads take the work of a call piece by piece, so that one whose core is
// disturbed takes less of it, and one that sleeps through a call is not waited for.
//
// Thread-safety: ParallelFor is called by one thread at a time, never from inside a body.
// Invariants: threads() - 1 workers exist for the life of the pool and the caller takes part, so
// that no more than threads() threads ever run. Workers and the caller spin for some microseconds
// and then sleep, so that an idle or crowded pool does not hold a core.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace trivium::kernels {

class ThreadPool {
 public:
  // `on_start`, if given, runs once in each worker before its first item.
  explicit ThreadPool(int threads, void (*on_start)() = nullptr);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls fn(begin, end, thread) with disjoint ranges that cover 0 … n - 1; thread < threads() is
  // different in each concurrent call. Ranges but the last hold at least `grain` items; where n is
  // less than twice that, one range runs in the caller and wakes nobody. Returns when all are done.
  template <typename Fn>
  void ParallelFor(int64_t n, int64_t grain, const Fn& fn) {
    if (n <= 0) return;
    const int64_t piece = PieceOf(n, grain);
    if (piece >= n) return fn(int64_t{0}, n, 0);
    Run([](const void* context, int64_t begin, int64_t end,
           int thread) { (*static_cast<const Fn*>(context))(begin, end, thread); },
        &fn, n, piece);
  }

 private:
  using Body = void (*)(const void* context, int64_t begin, int64_t end, int thread);

  int64_t PieceOf(int64_t n, int64_t grain) const;
  void Run(Body body, const void* context, int64_t n, int64_t piece);
  void TakePieces(int thread);
  void Work(int thread, void (*on_start)());

  std::vector<std::thread> workers_;
  // The current call: written while nobody is inside, published by state_.
  Body body_ = nullptr;
  const void* context_ = nullptr;
  int64_t n_ = 0;
  int64_t piece_ = 0;
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<int64_t> next_{0};  // first item that nobody has taken
  // The number of the call, whether workers may still come in, and how many are inside.
  alignas(64) std::atomic<uint32_t> state_{0};
};

}  // namespace trivium::kernels
