// Where a run's answer becomes the answer to an HTTP request: as one object, or as a stream.
// Thread-safety: all methods, any thread; deltas of several runs may come at once.
#pragma once

#include <memory>
#include <mutex>

#include "services/router/api/openai/answer_json.h"
#include "services/router/api/response_outlet.h"
#include "services/router/http/exchange.h"

namespace trivium::router::openai {

class WholeAnswer final : public ResponseSink {
 public:
  WholeAnswer(AnswerHead head, std::shared_ptr<http::Exchange> exchange)
      : json_(std::move(head)), exchange_(std::move(exchange)) {}

  void OnDelta(const v1::Delta& delta) override;
  void OnDone(const v1::Done& done) override;
  void OnError(const absl::Status& status) override;

 private:
  std::mutex mutex_;
  WholeJson json_;
  const std::shared_ptr<http::Exchange> exchange_;
};

// The head is sent with the first event, so that an error before it has its own HTTP status.
class StreamAnswer final : public ResponseSink,
                           public ResponseWriter,
                           public std::enable_shared_from_this<StreamAnswer> {
 public:
  StreamAnswer(AnswerHead head, std::shared_ptr<http::Exchange> exchange)
      : outlet_(this), json_(std::move(head)), exchange_(std::move(exchange)) {}

  void OnDelta(const v1::Delta& delta) override { outlet_.OnDelta(delta); }
  void OnDone(const v1::Done& done) override { outlet_.OnDone(done); }
  void OnError(const absl::Status& status) override { outlet_.OnError(status); }

  // For the outlet.
  void Write(const v1::GenerateResponse& response) override;
  void Finish(const absl::Status& status) override;

 private:
  ResponseOutlet outlet_;
  StreamJson json_;  // one call at a time, as all below
  const std::shared_ptr<http::Exchange> exchange_;
  bool has_begun_ = false;
};

}  // namespace trivium::router::openai
