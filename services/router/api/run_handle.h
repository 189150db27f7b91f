// What a door of the router keeps of a request that it has handed on, whatever protocol it speaks.
// Thread-safety: all methods, any thread.
#pragma once

#include <memory>
#include <mutex>

#include "common/base/clock.h"
#include "services/router/dispatch/request_run.h"

namespace trivium::router {

// When a client that found no room should come back.
inline constexpr Duration kRetryAfter = std::chrono::seconds(1);

// A run that may be cancelled before it exists: the client can leave while its prompt is still
// being tokenised. Does not keep the run: one that has ended needs no cancelling.
class RunHandle {
 public:
  void Cancel() {
    std::unique_lock lock(mutex_);
    is_cancelled_ = true;
    const std::shared_ptr<RequestRun> run = run_.lock();
    lock.unlock();
    if (run != nullptr) run->Cancel();
  }
  // Null: it was refused.
  void Set(const std::shared_ptr<RequestRun>& run) {
    std::unique_lock lock(mutex_);
    run_ = run;
    const bool cancel = is_cancelled_;
    lock.unlock();
    if (cancel && run != nullptr) run->Cancel();
  }

 private:
  std::mutex mutex_;
  std::weak_ptr<RequestRun> run_;
  bool is_cancelled_ = false;
};

}  // namespace trivium::router
