#include "services/router/http/http_metrics.h"

#include <string>

namespace trivium::router::http {
namespace {

constexpr const char* kRefusals[] = {"connections", "malformed",   "header_bytes", "header_timeout",
                                     "body_bytes",  "body_memory", "body_timeout", "slow_reader"};
static_assert(std::size(kRefusals) == static_cast<size_t>(Refusal::kCount));
constexpr int kStatuses[] = {200, 400, 401, 403, 404, 405, 408, 413, 415, 417, 431, 500, 503, 504};

telemetry::Counter& Requests(telemetry::Metrics* metrics, const std::string& status) {
  return metrics->AddCounter("router_http_requests_total", "Answered HTTP requests by status",
                             {{"status", status}});
}

}  // namespace

HttpMetrics::HttpMetrics(telemetry::Metrics* metrics)
    : connections_(metrics->AddGauge("router_http_connections", "Open HTTP connections")),
      client_left_(metrics->AddCounter("router_http_clients_left_total",
                                       "HTTP clients that left before the end of their answer")),
      other_(Requests(metrics, "other")) {
  for (size_t i = 0; i < refused_.size(); ++i) {
    refused_[i] = &metrics->AddCounter("router_http_refused_total",
                                       "HTTP requests and connections beyond a limit",
                                       {{"reason", kRefusals[i]}});
  }
  for (const int status : kStatuses) {
    answered_[status] = &Requests(metrics, std::to_string(status));
  }
}

void HttpMetrics::Connections(int open) { connections_.Set(open); }
void HttpMetrics::Refused(Refusal reason) { refused_[static_cast<size_t>(reason)]->Add(); }
void HttpMetrics::ClientLeft() { client_left_.Add(); }
void HttpMetrics::Answered(int status) {
  const auto found = answered_.find(status);
  (found == answered_.end() ? other_ : *found->second).Add();
}

}  // namespace trivium::router::http
