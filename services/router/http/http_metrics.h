// What the HTTP door counts. Thread-safety: all methods, any thread.
#pragma once

#include <array>
#include <map>

#include "common/telemetry/metrics.h"

namespace trivium::router::http {

// Why a request, or a whole connection, was refused or given up.
enum class Refusal : uint8_t {
  kConnections,
  kMalformed,
  kHeaderBytes,
  kHeaderTimeout,
  kBodyBytes,
  kBodyMemory,
  kBodyTimeout,
  kSlowReader,
  kCount
};

class HttpMetrics {
 public:
  explicit HttpMetrics(telemetry::Metrics* metrics);

  void Connections(int open);
  void Refused(Refusal reason);
  void Answered(int status);  // one of those that HTTP names; others count as "other"
  void ClientLeft();          // before the end of its answer

 private:
  telemetry::Gauge& connections_;
  telemetry::Counter &client_left_, &other_;
  std::array<telemetry::Counter*, static_cast<size_t>(Refusal::kCount)> refused_;
  std::map<int, telemetry::Counter*> answered_;  // by status, of those that this server gives
};

}  // namespace trivium::router::http
