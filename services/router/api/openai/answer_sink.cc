#include "services/router/api/openai/answer_sink.h"

#include "services/router/api/openai/error.h"

namespace trivium::router::openai {

void WholeAnswer::OnDelta(const v1::Delta& delta) {
  const std::lock_guard lock(mutex_);
  json_.Add(delta);
}

void WholeAnswer::OnDone(const v1::Done& done) {
  const std::lock_guard lock(mutex_);
  exchange_->Send({.status = 200, .body = json_.Finish(done)});
}

void WholeAnswer::OnError(const absl::Status& status) { exchange_->Send(ErrorResponse(status)); }

void StreamAnswer::Write(const v1::GenerateResponse& response) {
  std::string events =
      response.has_done() ? json_.Finish(response.done()) : json_.Add(response.delta());
  // Nothing is decided yet: nothing to tell.
  if (events.empty()) return outlet_.Written(true);
  if (!std::exchange(has_begun_, true)) {
    exchange_->BeginStream({.status = 200,
                            .body = "",
                            .content_type = "text/event-stream; charset=utf-8",
                            .headers = {{"Cache-Control", "no-cache"}}});
  }
  exchange_->Write(std::move(events),
                   [self = shared_from_this()](bool ok) { self->outlet_.Written(ok); });
}

void StreamAnswer::Finish(const absl::Status& status) {
  if (!status.ok() && !has_begun_) return exchange_->Send(ErrorResponse(status));
  if (!status.ok()) exchange_->Write("data: " + ErrorJson(status) + "\n\n", [](bool) {});
  exchange_->End();
}

}  // namespace trivium::router::openai
