#include "services/router/api/response_outlet.h"

#include <utility>

namespace trivium::router {

void ResponseOutlet::OnDelta(const v1::Delta& delta) {
  std::unique_lock lock(mutex_);
  if (is_broken_) return;
  if (delta_.has_value()) {
    delta_->mutable_text()->append(delta.text());
    delta_->mutable_tokens()->MergeFrom(delta.tokens());
    delta_->mutable_prompt_tokens()->MergeFrom(delta.prompt_tokens());
  } else {
    delta_ = delta;
  }
  Proceed(std::move(lock));
}

void ResponseOutlet::OnDone(const v1::Done& done) {
  std::unique_lock lock(mutex_);
  if (!is_broken_) done_ = done;
  end_ = absl::OkStatus();
  Proceed(std::move(lock));
}

void ResponseOutlet::OnError(const absl::Status& status) {
  std::unique_lock lock(mutex_);
  end_ = status;
  Proceed(std::move(lock));
}

void ResponseOutlet::Written(bool ok) {
  std::unique_lock lock(mutex_);
  is_writing_ = false;
  if (!ok) {
    is_broken_ = true;
    delta_.reset();
    done_.reset();
  }
  Proceed(std::move(lock));
}

// Whoever sets is_writing_ or is_finished_ is the only one to call the writer.
void ResponseOutlet::Proceed(std::unique_lock<std::mutex> lock) {
  if (is_writing_ || is_finished_) return;
  if (delta_.has_value() || done_.has_value()) {
    is_writing_ = true;
    if (delta_.has_value()) {
      *writing_.mutable_delta() = *std::exchange(delta_, std::nullopt);
    } else {
      *writing_.mutable_done() = *std::exchange(done_, std::nullopt);
    }
    lock.unlock();
    writer_->Write(writing_);
  } else if (end_.has_value()) {
    is_finished_ = true;
    const absl::Status end = *end_;
    lock.unlock();
    writer_->Finish(end);
  }
}

}  // namespace trivium::router
