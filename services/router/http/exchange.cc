#include "services/router/http/exchange.h"

#include <utility>

namespace trivium::router::http {

void Exchange::Send(Response response) {
  std::lock_guard lock(mutex_);
  if (is_closed_) return;
  ready_.whole = std::move(response);
  ready_.is_end = true;
  Wake();
}

void Exchange::BeginStream(Response head) {
  std::lock_guard lock(mutex_);
  if (is_closed_) return;
  ready_.head = std::move(head);
  Wake();
}

void Exchange::Write(std::string bytes, Done done) {
  std::unique_lock lock(mutex_);
  if (is_closed_) {
    lock.unlock();
    return done(false);
  }
  ready_.bytes += bytes;
  ready_.done.push_back(std::move(done));
  Wake();
}

void Exchange::End() {
  std::lock_guard lock(mutex_);
  if (is_closed_) return;
  ready_.is_end = true;
  Wake();
}

void Exchange::OnGone(std::function<void()> call) {
  std::unique_lock lock(mutex_);
  if (!is_closed_) {
    on_gone_ = std::move(call);
  } else if (is_gone_) {
    lock.unlock();
    call();
  }
}

Exchange::Ready Exchange::Take() {
  std::lock_guard lock(mutex_);
  return std::exchange(ready_, Ready());
}

void Exchange::Close(bool is_gone) {
  std::unique_lock lock(mutex_);
  if (std::exchange(is_closed_, true)) return;
  is_gone_ = is_gone;
  const std::vector<Done> unwritten = std::move(ready_.done);
  const std::function<void()> on_gone = std::exchange(on_gone_, nullptr);
  ready_ = Ready();
  lock.unlock();
  if (is_gone && on_gone) on_gone();
  for (const Done& done : unwritten) done(false);
}

}  // namespace trivium::router::http
