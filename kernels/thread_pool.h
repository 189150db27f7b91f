// A small pool. Each thread has a share of the work of a call, which it takes piece by piece; who
// is done takes pieces of the others' shares, so that one whose core is disturbed takes less, and
// one that sleeps through a call is not waited for.
//
// Thread-safety: ParallelFor is called by one thread at a time, never from inside a body.
// Invariants: threads() - 1 workers exist for the life of the pool and the caller takes part, so
// that no more than threads() threads ever run. Workers and the caller spin for some microseconds
// and then sleep, so that an idle or crowded pool does not hold a core.
//
// A step makes some hundred calls of a few microseconds, so a call costs few transfers of cache
// lines between cores: all that a worker needs to begin lies in one line, and it says once that it
// is done.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
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
  // different in each concurrent call. `grain` items are worth another thread: where n is less than
  // twice that, one range runs in the caller and wakes nobody. Returns when all are done.
  template <typename Fn>
  void ParallelFor(int64_t n, int64_t grain, const Fn& fn) {
    if (n <= 0) return;
    if (threads() == 1 || n < 2 * std::max<int64_t>(1, grain)) return fn(int64_t{0}, n, 0);
    Run([](const void* context, int64_t begin, int64_t end,
           int thread) { (*static_cast<const Fn*>(context))(begin, end, thread); },
        &fn, n, grain);
  }

 private:
  using Body = void (*)(const void* context, int64_t begin, int64_t end, int thread);

  // What nobody has taken yet of one thread's part of a call. The number of the call and how many
  // units are left change together, and who has changed them holds the call open until he says that
  // he is done: only then may he read the rest.
  struct alignas(64) Share {
    std::atomic<uint64_t> open{0};  // call, units left
    std::atomic<uint32_t> least_piece{1};
    Body body = nullptr;
    const void* context = nullptr;
    int64_t n = 0;
    int64_t unit = 1;  // items
    int64_t end = 0;   // in units
  };

  void Run(Body body, const void* context, int64_t n, int64_t grain);
  void TakePieces(int thread);
  uint32_t TakeFrom(Share& share, int thread);
  void Work(int thread, void (*on_start)());
  void AwaitCall(const Share& share, uint32_t done);
  void AwaitOthers();

  std::vector<std::thread> workers_;
  std::unique_ptr<Share[]> shares_;  // [threads]
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<uint32_t> call_{0};  // where workers sleep
  alignas(64) std::atomic<uint32_t> left_{0};  // units of the call that are not done
};

}  // namespace trivium::kernels
