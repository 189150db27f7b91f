#include "services/router/api/response_outlet.h"

#include <utility>

namespace trivium::router {

void ResponseOutlet::OnDelta(const v1::Delta& delta) {
  std::unique_lock lock(mutex_);
  if (is_broken_) return;
  const size_t bytes = delta.ByteSizeLong();
  if (!deltas_.empty() && last_bytes_ + bytes <= kDeltaBytesMax) {
    v1::Delta& last = deltas_.back();
    last.mutable_text()->append(delta.text());
    last.mutable_tokens()->MergeFrom(delta.tokens());
    last.mutable_prompt_tokens()->MergeFrom(delta.prompt_tokens());
    last_bytes_ += bytes;
  } else {
    deltas_.push_back(delta);
    last_bytes_ = bytes;
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
    deltas_.clear();
    done_.reset();
  }
  Proceed(std::move(lock));
}

// Whoever sets is_writing_ or is_finished_ is the only one to call the writer.
void ResponseOutlet::Proceed(std::unique_lock<std::mutex> lock) {
  if (is_writing_ || is_finished_) return;
  if (!deltas_.empty() || done_.has_value()) {
    is_writing_ = true;
    if (!deltas_.empty()) {
      *writing_.mutable_delta() = std::move(deltas_.front());
      deltas_.pop_front();
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
