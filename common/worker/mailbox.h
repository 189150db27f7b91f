// The commands of one engine thread, in the order of Post. Never refuses a command while open: what
// a request may post is a handful, and the number of requests is bounded by Admission.
// Thread-safety: all methods, any thread; one thread takes.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include "common/base/clock.h"

namespace trivium::worker {

template <typename Command>
class Mailbox {
 public:
  // False after Close: the command is dropped.
  bool Post(Command command) {
    {
      std::lock_guard lock(mutex_);
      if (closed_) return false;
      commands_.push_back(std::move(command));
    }
    ready_.notify_one();
    return true;
  }

  // All commands so far. Waits for one, at most `wait`; without a limit until there is one or
  // Close.
  std::deque<Command> Take(std::optional<Duration> wait) {
    std::unique_lock lock(mutex_);
    const auto ready = [this] { return closed_ || !commands_.empty(); };
    if (!wait.has_value()) {
      ready_.wait(lock, ready);
    } else if (wait->count() > 0) {
      ready_.wait_for(lock, *wait, ready);
    }
    return std::exchange(commands_, {});
  }

  void Close() {
    {
      std::lock_guard lock(mutex_);
      closed_ = true;
    }
    ready_.notify_all();
  }
  bool closed() const {
    std::lock_guard lock(mutex_);
    return closed_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<Command> commands_;
  bool closed_ = false;
};

}  // namespace trivium::worker
