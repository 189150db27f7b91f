#include "common/net/health.h"

namespace trivium::net {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

// One Watch stream: at most one write in flight, and only the newest state is kept behind it. The
// service's mutex guards all members; gRPC is called with it held, which never calls back inline.
class HealthService::Watcher final : public grpc::ServerWriteReactor<HealthCheckResponse> {
 public:
  Watcher(HealthService* service, std::string name) : service_(service), name_(std::move(name)) {}

  // Sends the state unless it is what was sent last; after the last state ends the stream.
  void Advance() {
    if (writing_ || finished_) return;
    const Serving state = service_->StateOf(name_);
    if (!sent_ || response_.status() != state) {
      response_.set_status(state);
      sent_ = writing_ = true;
      StartWrite(&response_);
    } else if (service_->closed_) {
      End(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server is shutting down"));
    }
  }
  void End(const grpc::Status& status) {
    if (!finished_) Finish(status);
    finished_ = true;
  }

  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(service_->mutex_);
    writing_ = false;
    if (ok) {
      Advance();
    } else {
      End(grpc::Status::CANCELLED);
    }
  }
  void OnCancel() override {
    const std::lock_guard lock(service_->mutex_);
    End(grpc::Status::CANCELLED);
  }
  void OnDone() override {
    service_->Remove(this);
    delete this;
  }

 private:
  HealthService* const service_;
  const std::string name_;
  HealthCheckResponse response_;
  bool sent_ = false, writing_ = false, finished_ = false;
};

void HealthService::SetNames(const std::vector<std::string>& names) {
  const std::lock_guard lock(mutex_);
  names_.insert(names.begin(), names.end());
  WakeAll();
}

void HealthService::SetServing(bool serving) {
  const std::lock_guard lock(mutex_);
  serving_ = serving && !closed_;
  WakeAll();
}

void HealthService::Close() {
  const std::lock_guard lock(mutex_);
  serving_ = false;
  closed_ = true;
  WakeAll();
}

void HealthService::WakeAll() {
  for (Watcher* watcher : watchers_) watcher->Advance();
}

void HealthService::Remove(Watcher* watcher) {
  const std::lock_guard lock(mutex_);
  watchers_.erase(watcher);
}

HealthService::Serving HealthService::StateOf(const std::string& name) const {
  if (names_.count(name) == 0) return HealthCheckResponse::SERVICE_UNKNOWN;
  return serving_ ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
}

grpc::ServerUnaryReactor* HealthService::Check(grpc::CallbackServerContext* context,
                                               const HealthCheckRequest* request,
                                               HealthCheckResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  {
    const std::lock_guard lock(mutex_);
    response->set_status(StateOf(request->service()));
  }
  const bool known = response->status() != HealthCheckResponse::SERVICE_UNKNOWN;
  reactor->Finish(known ? grpc::Status::OK
                        : grpc::Status(grpc::StatusCode::NOT_FOUND, "no such service here"));
  return reactor;
}

grpc::ServerWriteReactor<HealthCheckResponse>* HealthService::Watch(
    grpc::CallbackServerContext*, const HealthCheckRequest* request) {
  auto* watcher = new Watcher(this, request->service());
  const std::lock_guard lock(mutex_);
  if (watchers_.size() >= kWatchersMax) {
    watcher->End(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "too many health watchers"));
    return watcher;
  }
  watchers_.insert(watcher);
  watcher->Advance();
  return watcher;
}

}  // namespace trivium::net
