// A few threads for work that is too long for a gRPC thread: tokenising. Bounded: what does not fit
// is refused at once.
// Thread-safety: Run, any thread. The destructor finishes what was taken.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace trivium::router {

class TaskPool {
 public:
  TaskPool(int threads, size_t tasks_max) : tasks_max_(tasks_max) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
  }
  ~TaskPool() {
    {
      std::lock_guard lock(mutex_);
      is_closing_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  // False: `tasks_max` wait already, and `task` is not run.
  bool Run(std::function<void()> task) {
    {
      std::lock_guard lock(mutex_);
      if (tasks_.size() >= tasks_max_) return false;
      tasks_.push_back(std::move(task));
    }
    wake_.notify_one();
    return true;
  }

 private:
  void Work() {
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, [&] { return is_closing_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      const std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      lock.lock();
    }
  }

  const size_t tasks_max_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  bool is_closing_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace trivium::router
