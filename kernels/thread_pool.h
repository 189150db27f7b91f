// A small pool with a static partition: the work items of a call always go to the same threads.
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
  // different in each concurrent call. Ranges hold at least `grain` items where n allows it; when
  // one range is left it runs in the caller and wakes nobody. Returns when all are done.
  template <typename Fn>
  void ParallelFor(int64_t n, int64_t grain, const Fn& fn) {
    if (n <= 0) return;
    const int64_t parts = Parts(n, grain);
    if (parts == 1) return fn(int64_t{0}, n, 0);
    Run([](const void* context, int64_t begin, int64_t end,
           int thread) { (*static_cast<const Fn*>(context))(begin, end, thread); },
        &fn, n, parts);
  }

 private:
  using Body = void (*)(const void* context, int64_t begin, int64_t end, int thread);

  int64_t Parts(int64_t n, int64_t grain) const;
  void Run(Body body, const void* context, int64_t n, int64_t parts);
  void RunPart(int thread) const;
  void Work(int thread, void (*on_start)());

  std::vector<std::thread> workers_;
  Body body_ = nullptr;  // the current call; published by generation_
  const void* context_ = nullptr;
  int64_t n_ = 0;
  int64_t parts_ = 0;
  bool stop_ = false;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<uint32_t> pending_{0};
};

}  // namespace trivium::kernels
