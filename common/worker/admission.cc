#include "common/worker/admission.h"

namespace trivium::worker {
absl::Status Admission::Enter(int32_t places) {
  std::lock_guard lock(mutex_);
  if (draining_) {
    ++refused_;
    return Unavailable("draining: the worker takes no new request");
  }
  if (places > requests_max_) {
    ++refused_;
    return InvalidArgument("choices is {}, this worker takes {} at once", places, requests_max_);
  }
  if (requests_ > requests_max_ - places) {
    ++refused_;
    return RetryLater(fmt::format("{} requests are running or waiting", requests_));
  }
  requests_ += places;
  return absl::OkStatus();
}

void Admission::Leave(int32_t places) {
  std::lock_guard lock(mutex_);
  TRIVIUM_CHECK(requests_ >= places, "a request left that never entered");
  requests_ -= places;
}

void Admission::Drain() {
  std::lock_guard lock(mutex_);
  draining_ = true;
}

bool Admission::draining() const {
  std::lock_guard lock(mutex_);
  return draining_;
}

int32_t Admission::requests() const {
  std::lock_guard lock(mutex_);
  return requests_;
}

int64_t Admission::refused() const {
  std::lock_guard lock(mutex_);
  return refused_;
}

absl::Status RetryLater(std::string_view reason) {
  const auto hint_ms = std::chrono::duration_cast<std::chrono::milliseconds>(kRetryHint).count();
  return ResourceExhausted("{}; retry in {} ms", reason, hint_ms);
}

}  // namespace trivium::worker
