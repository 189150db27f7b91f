// The queue behind one stream of events of which only one may be written at a time. Knows no gRPC:
// its caller writes or finishes when told to. Events leave in the order of Push; after Close those
// still queued leave first.
//
// Bound: the producer's; a request has at most max_tokens events for each of its choices, one for
// each step of its prompt where that is scored, and two more.
// Thread-safety: all methods, any thread. current() and TakeStatus() belong to whoever was told
// kWrite or kFinish. kFinish is said exactly once, and never while a write is in flight.
#pragma once

#include <deque>
#include <mutex>
#include <utility>

#include "common/base/status.h"

namespace trivium::worker {

template <typename Event>
class Outbox {
 public:
  enum class Next : uint8_t { kNothing, kWrite, kFinish };

  // Dropped after Close, and after a write has failed.
  Next Push(Event event) {
    std::lock_guard lock(mutex_);
    if (closed_ || broken_) return Next::kNothing;
    queue_.push_back(std::move(event));
    return writing_ ? Next::kNothing : WriteFront();
  }

  // The first call decides the status.
  Next Close(absl::Status status) {
    std::lock_guard lock(mutex_);
    if (closed_) return Next::kNothing;
    closed_ = true;
    status_ = std::move(status);
    return writing_ ? Next::kNothing : Next::kFinish;
  }

  // The write told last has ended.
  Next WriteDone(bool ok) {
    std::lock_guard lock(mutex_);
    writing_ = false;
    if (!ok) {
      broken_ = true;
      queue_.clear();
    }
    if (!queue_.empty()) return WriteFront();
    return closed_ ? Next::kFinish : Next::kNothing;
  }

  // Whether an event pushed now would be written at once.
  bool idle() const {
    std::lock_guard lock(mutex_);
    return !writing_ && !closed_ && !broken_;
  }

  const Event& current() const { return current_; }
  absl::Status TakeStatus() { return std::move(status_); }

 private:
  Next WriteFront() {
    current_ = std::move(queue_.front());
    queue_.pop_front();
    writing_ = true;
    return Next::kWrite;
  }

  mutable std::mutex mutex_;
  std::deque<Event> queue_;
  Event current_;
  absl::Status status_;
  bool writing_ = false, closed_ = false, broken_ = false;
};

}  // namespace trivium::worker
