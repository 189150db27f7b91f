#include "services/router/membership/watch_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "common/net/server.h"
#include "trivium/v1/stage.grpc.pb.h"

namespace trivium::router {
namespace {

constexpr Duration kBackoffMin = std::chrono::milliseconds(100);
constexpr Duration kBackoffMax = std::chrono::seconds(1);

}  // namespace

// One worker's stream, or the pause before the next one.
class WatchClients::Watcher {
 public:
  Watcher(WorkerIndex worker, const std::shared_ptr<grpc::Channel>& channel,
          const std::string& cluster_token, const WatchHandlers& handlers)
      : worker_(worker),
        stub_(v1::Worker::NewStub(channel)),
        cluster_token_(cluster_token),
        handlers_(handlers) {}

  ~Watcher() {
    std::unique_lock lock(mutex_);
    if (stream_ != nullptr) stream_->context.TryCancel();
    ended_.wait(lock, [&] { return stream_ == nullptr; });
  }

  void Tick(TimePoint now) {
    std::lock_guard lock(mutex_);
    if (stream_ != nullptr) return;
    if (!is_due_set_) {
      due_ = now + backoff_;
      is_due_set_ = true;
    }
    if (now < due_) return;
    is_due_set_ = false;
    backoff_ = std::clamp(backoff_ * 2, kBackoffMin, kBackoffMax);
    stream_ = std::make_unique<Stream>(*this);
    if (!cluster_token_.empty()) {
      stream_->context.AddMetadata(net::kClusterTokenKey, cluster_token_);
    }
    stub_->async()->Watch(&stream_->context, &stream_->request, stream_.get());
    stream_->StartRead(&stream_->state);
    stream_->StartCall();
  }

 private:
  struct Stream final : grpc::ClientReadReactor<v1::WorkerState> {
    explicit Stream(Watcher& watcher_of) : watcher(watcher_of) {}
    void OnReadDone(bool ok) override {
      if (!ok) return;
      if (!watcher.OnState(state)) context.TryCancel();
      StartRead(&state);
    }
    void OnDone(const grpc::Status& status) override { watcher.OnEnd(status); }

    Watcher& watcher;
    grpc::ClientContext context;
    v1::WatchRequest request;
    v1::WorkerState state;
  };

  // False: the stream is to end.
  bool OnState(const v1::WorkerState& state) {
    const bool goes_on = handlers_.on_state(worker_, state);
    std::lock_guard lock(mutex_);
    if (goes_on) backoff_ = Duration(0);
    return goes_on;
  }

  void OnEnd(const grpc::Status& status) {
    handlers_.on_end(worker_, net::FromGrpc(status));
    std::unique_ptr<Stream> gone;
    std::lock_guard lock(mutex_);
    gone = std::move(stream_);
    backoff_ = std::max(backoff_, kBackoffMin);
    ended_.notify_all();
  }

  const WorkerIndex worker_;
  const std::unique_ptr<v1::Worker::Stub> stub_;
  const std::string cluster_token_;
  const WatchHandlers handlers_;
  std::mutex mutex_;
  std::condition_variable ended_;
  std::unique_ptr<Stream> stream_;
  bool is_due_set_ = false;
  TimePoint due_;
  Duration backoff_{};
};

WatchClients::WatchClients(const std::vector<std::shared_ptr<grpc::Channel>>& channels,
                           std::string cluster_token, WatchHandlers handlers) {
  for (WorkerIndex i = 0; i < channels.size(); ++i) {
    watchers_.push_back(std::make_unique<Watcher>(i, channels[i], cluster_token, handlers));
  }
}

WatchClients::~WatchClients() = default;

void WatchClients::Tick(TimePoint now) {
  for (const auto& watcher : watchers_) watcher->Tick(now);
}

}  // namespace trivium::router
