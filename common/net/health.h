// grpc.health.v1.Health over the callback API. gRPC's built-in one neither ends its Watch streams
// when a server drains, so that one watcher holds the whole drain time, nor is described by
// reflection. Thread-safety: all functions, any thread.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace trivium::net {

class HealthService final : public grpc::health::v1::Health::CallbackService {
 public:
  // At most this many Watch streams; more are refused with RESOURCE_EXHAUSTED.
  static constexpr size_t kWatchersMax = 256;

  // The services that exist, besides "" for the whole server; until then every other name is
  // unknown.
  void SetNames(const std::vector<std::string>& names);
  // Of all services.
  void SetServing(bool serving);
  // Not serving for ever, and every Watch stream ends once it has said so.
  void Close();

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context,
                                  const grpc::health::v1::HealthCheckRequest* request,
                                  grpc::health::v1::HealthCheckResponse* response) override;
  grpc::ServerWriteReactor<grpc::health::v1::HealthCheckResponse>* Watch(
      grpc::CallbackServerContext* context,
      const grpc::health::v1::HealthCheckRequest* request) override;

 private:
  class Watcher;
  using Serving = grpc::health::v1::HealthCheckResponse::ServingStatus;

  Serving StateOf(const std::string& name) const;  // mutex_ held
  void Remove(Watcher* watcher);
  void WakeAll();

  mutable std::mutex mutex_;
  std::set<std::string> names_ = {""};
  std::set<Watcher*> watchers_;
  bool serving_ = false;
  bool closed_ = false;
};

}  // namespace trivium::net
