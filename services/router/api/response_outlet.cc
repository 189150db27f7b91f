#include "services/router/api/response_outlet.h"

#include <algorithm>
#include <utility>

namespace trivium::router {

void ResponseOutlet::OnDelta(const v1::Delta& delta) {
  std::unique_lock lock(mutex_);
  if (is_broken_) return;
  const size_t bytes = delta.ByteSizeLong();
  const auto last = std::find_if(waiting_.rbegin(), waiting_.rend(), [&](const Waiting& one) {
    return one.delta.choice() == delta.choice();
  });
  if (last != waiting_.rend() && last->bytes + bytes <= kDeltaBytesMax) {
    last->delta.mutable_text()->append(delta.text());
    last->delta.mutable_tokens()->MergeFrom(delta.tokens());
    last->delta.mutable_prompt_tokens()->MergeFrom(delta.prompt_tokens());
    last->bytes += bytes;
  } else {
    waiting_.push_back({delta, bytes});
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
    waiting_.clear();
    done_.reset();
  }
  Proceed(std::move(lock));
}

// Whoever sets is_writing_ or is_finished_ is the only one to call the writer.
void ResponseOutlet::Proceed(std::unique_lock<std::mutex> lock) {
  if (is_writing_ || is_finished_) return;
  if (!waiting_.empty() || done_.has_value()) {
    is_writing_ = true;
    if (!waiting_.empty()) {
      *writing_.mutable_delta() = std::move(waiting_.front().delta);
      waiting_.pop_front();
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
