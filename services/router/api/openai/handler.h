// The OpenAI-compatible API: which path and method does what, over the same validator, dispatcher
// and task pool as gRPC. All but /health asks who calls, by the same keys in the headers of the
// same names. Thread-safety: all methods, any thread; none blocks.
#pragma once

#include <memory>
#include <string>

#include "common/telemetry/metrics.h"
#include "services/router/api/backend.h"
#include "services/router/api/openai/question.h"
#include "services/router/http/message.h"

namespace trivium::router::openai {

class OpenAiHandler final : public http::Handler {
 public:
  // `registry` is what /metrics shows; it outlives the handler.
  OpenAiHandler(const Backend& backend, const telemetry::Metrics* registry);

  std::optional<http::Response> Refuse(const http::RequestHead& head) override;
  void Handle(http::Request request, std::shared_ptr<http::Exchange> exchange) override;
  http::Response Error(int status, std::string_view message) const override;

 private:
  using Exchange = std::shared_ptr<http::Exchange>;
  void Enqueue(const Exchange& exchange, std::function<void()> task);
  absl::StatusOr<Caller> CallerOf(const http::RequestHead& head) const;
  absl::Status Admit(const http::RequestHead& head) const;
  void Answer(Endpoint endpoint, const Caller& caller, const std::string& body,
              const Exchange& exchange);
  void Start(const Question& question, const Caller& caller, const Exchange& exchange);
  http::Response Models() const;
  http::Response OneModel(const std::string& name) const;
  std::string ModelCard() const;

  const Backend backend_;
  const telemetry::Metrics& registry_;
  const int64_t started_;  // seconds since 1970
};

}  // namespace trivium::router::openai
