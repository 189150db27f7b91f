// The OpenAI-compatible API: which path and method does what, over the same validator, dispatcher
// and task pool as gRPC.
// Thread-safety: all methods, any thread; none blocks.
#pragma once

#include <memory>
#include <string>

#include "common/telemetry/metrics.h"
#include "services/router/api/openai/question.h"
#include "services/router/api/task_pool.h"
#include "services/router/api/validation.h"
#include "services/router/dispatch/dispatcher.h"
#include "services/router/dispatch/router_metrics.h"
#include "services/router/http/message.h"

namespace trivium::router::openai {

class OpenAiHandler final : public http::Handler {
 public:
  // Everything outlives the handler.
  struct Parts {
    const RequestValidator* validator = nullptr;
    Dispatcher* dispatcher = nullptr;
    TaskPool* tasks = nullptr;
    RouterMetrics* metrics = nullptr;
    const telemetry::Metrics* registry = nullptr;  // what /metrics shows
  };
  explicit OpenAiHandler(Parts parts);

  std::optional<http::Response> Refuse(const http::RequestHead& head) override;
  void Handle(http::Request request, std::shared_ptr<http::Exchange> exchange) override;
  http::Response Error(int status, std::string_view message) const override;

 private:
  using Exchange = std::shared_ptr<http::Exchange>;
  void Enqueue(const Exchange& exchange, std::function<void()> task);
  void Answer(Endpoint endpoint, const std::string& body, const Exchange& exchange);
  void Start(const Question& question, const Exchange& exchange);
  http::Response Models() const;
  http::Response OneModel(const std::string& name) const;
  std::string ModelCard() const;

  const Parts parts_;
  const int64_t started_;  // seconds since 1970
};

}  // namespace trivium::router::openai
