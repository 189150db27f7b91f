// The gRPC server that every service runs: health per service name, reflection, keepalive bounds,
// the cluster token, and graceful drain on SIGTERM / SIGINT. And the other side: channels with the
// same settings. Thread-safety: Start and WaitForShutdown on the main thread; the rest any thread.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/clock.h"
#include "common/base/status.h"
#include "common/net/text.h"

namespace trivium::net {

inline constexpr char kClusterTokenKey[] = "trivium-cluster-token";
inline constexpr char kRequestIdKey[] = "trivium-request-id";
inline constexpr int kMessageBytesMax = 16 << 20;

// Blocks SIGTERM and SIGINT, with `reloads` SIGHUP too, in the calling thread and all that it starts
// later, and ignores SIGPIPE: first thing in main, before any other thread.
void BlockShutdownSignals(bool reloads = false);

struct ServerOptions {
  std::string listen;                    // host:port; port 0 picks one
  std::vector<grpc::Service*> services;  // not owned; outlive the server
  bool loopback_only = false;            // refuse any other address: no cluster token is configured
  int drain_timeout_s = 30;
};

// Another door of the same process, which ends together with the server. All methods: any thread.
class Door {
 public:
  virtual ~Door() = default;
  virtual void Drain() = 0;        // no new connections or requests; returns at once
  virtual void AwaitClosed() = 0;  // until the last request has ended
  virtual void Abort() = 0;        // cancels what still runs, so that AwaitClosed returns
};

class Server {
 public:
  // INVALID_ARGUMENT for a bad address, UNAVAILABLE "address in use" when the port is taken.
  static absl::StatusOr<std::unique_ptr<Server>> Start(ServerOptions options);
  ~Server();  // cancels what still runs

  int port() const;  // 0 on a unix socket
  // Waits for SIGTERM, SIGINT or Shutdown(). Then health says NOT_SERVING, `on_drain` is called
  // (stop taking new work; end streams like Watch, which do not end by themselves, once the rest is
  // done), and calls in flight may end for drain_timeout_s before they are cancelled. A second
  // signal cancels them at once, a third ends the process, and so does a call that has not ended 10
  // s after it was cancelled. `door`, where there is one, lives by the same rules. Until then
  // `on_reload`, where there is one, is called at each SIGHUP.
  void WaitForShutdown(const std::function<void()>& on_drain, Door* door = nullptr,
                       const std::function<void()>& on_reload = nullptr);
  void Shutdown();                // from any thread
  void SetServing(bool serving);  // what health says of every service; true from Start on

 private:
  Server();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A channel from router to worker or from client to router: BDP probing off (a slow reader holds at
// most 64 KiB), reconnect backoff of at most 1 s, keepalive 5 s.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address);

// Codes map one to one. The message is made valid UTF-8 and cut to what 4 KiB of trailers hold.
grpc::Status ToGrpc(const absl::Status& status);
// The same with a google.rpc.RetryInfo: when the caller should try again.
grpc::Status ToGrpc(const absl::Status& status, Duration retry_after);
absl::Status FromGrpc(const grpc::Status& status);
// That hint; nullopt when the status carries none.
std::optional<Duration> RetryAfter(const grpc::Status& status);

// UNAUTHENTICATED unless the call carries `token`; constant time. An empty token admits everybody.
grpc::Status CheckClusterToken(const grpc::CallbackServerContext& context, std::string_view token);

}  // namespace trivium::net
