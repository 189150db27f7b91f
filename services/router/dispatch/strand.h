// Runs tasks one at a time in the order they were posted, on the threads that post them: whoever
// finds the strand idle runs everything that is there. No thread of its own, and Post never waits
// for a task of another thread; a task posted by a task runs after it.
// Thread-safety: any thread. The strand must outlive its tasks: tasks hold its owner.
#pragma once

#include <deque>
#include <functional>
#include <mutex>
#include <utility>

namespace trivium::router {

class Strand {
 public:
  void Post(std::function<void()> task) {
    {
      std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(task));
      if (std::exchange(is_running_, true)) return;
    }
    while (std::function<void()> next = TakeNext()) next();
  }

 private:
  std::function<void()> TakeNext() {
    std::lock_guard lock(mutex_);
    if (tasks_.empty()) {
      is_running_ = false;
      return nullptr;
    }
    std::function<void()> next = std::move(tasks_.front());
    tasks_.pop_front();
    return next;
  }

  std::mutex mutex_;
  std::deque<std::function<void()>> tasks_;
  bool is_running_ = false;
};

}  // namespace trivium::router
