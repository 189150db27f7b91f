// An HTTP/1.1 server on one thread of its own: it reads requests within stated limits, hands each
// to a handler, and writes the answers in the order of the requests. A client that leaves is
// noticed while its answer is being made.
// Thread-safety: all methods, any thread, but Start and the destructor.
#pragma once

#include <memory>
#include <string>

#include "common/base/clock.h"
#include "common/base/status.h"
#include "common/net/server.h"
#include "common/telemetry/metrics.h"
#include "services/router/http/message.h"

namespace trivium::router::http {

// What one client may take of this process; all from HttpConfig.
struct Limits {
  int connections_max = 1024;
  size_t header_bytes_max = 16 << 10;
  size_t body_bytes_max = 8 << 20;
  size_t body_memory_bytes = 256 << 20;
  Duration header_timeout = std::chrono::seconds(10);
  Duration body_timeout = std::chrono::seconds(60);
  Duration idle_timeout = std::chrono::seconds(75);
  Duration write_timeout = std::chrono::seconds(30);
};

class Server final : public net::Door {
 public:
  struct Options {
    std::string listen;          // host:port; port 0 picks one
    bool loopback_only = false;  // refuse any other address
    Limits limits;
  };
  // INVALID_ARGUMENT for a bad address, UNAVAILABLE when it is taken or none of this machine's.
  // `handler` and `metrics` outlive the server.
  static absl::StatusOr<std::unique_ptr<Server>> Start(Options options, Handler* handler,
                                                       telemetry::Metrics* metrics);
  ~Server() override;  // aborts what still runs

  int port() const;
  // New connections are refused from now on; what was asked already is answered, and each
  // connection closes after it.
  void Drain() override;
  void AwaitClosed() override;
  void Abort() override;

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace trivium::router::http
