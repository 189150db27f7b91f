#include "common/worker/admission.h"

namespace trivium::worker {
absl::Status Admission::Enter() {
  std::lock_guard lock(mutex_);
  if (draining_) {
    ++refused_;
    return Unavailable("draining: the worker takes no new request");
  }
  if (requests_ >= requests_max_) {
    ++refused_;
    return RetryLater(fmt::format("{} requests are running or waiting", requests_));
  }
  ++requests_;
  return absl::OkStatus();
}

void Admission::Leave() {
  std::lock_guard lock(mutex_);
  TRIVIUM_CHECK(requests_ > 0, "a request left that never entered");
  --requests_;
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
