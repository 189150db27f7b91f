#include "common/worker/watch_service.h"

#include <utility>

#include "common/base/clock.h"
#include "common/worker/kv_feed.h"
#include "common/worker/stream_reactor.h"

namespace trivium::worker {
namespace {

constexpr Duration kIntervalMin = std::chrono::milliseconds(20);
constexpr Duration kIntervalMax = std::chrono::milliseconds(500);
// Routers are few; more watchers than this are a mistake or an attack.
constexpr size_t kWatchersMax = 256;

bool HasNothingLeft(const v1::WorkerState& state) {
  return state.draining() && state.requests_running() == 0 && state.requests_waiting() == 0;
}

}  // namespace

class WatchService::Watcher final : public StreamReactor<v1::WorkerState> {
 public:
  explicit Watcher(WatchService& service) : service_(service), feed_(service.kv_events_) {}

  void OnCancel() override { Close(absl::CancelledError("cancelled by the caller")); }
  void OnDone() override {
    service_.Forget(this);
    delete this;
  }

  // Sends what is new. Skipped while the last state is still being written: the next turn has a
  // newer one. One caller at a time.
  void Offer(const v1::WorkerState& state, const std::string& content, TimePoint now) {
    if (!idle()) return;
    const bool last = HasNothingLeft(state);
    v1::KvEvents events;
    const bool has_events = feed_.Next(&events);
    if (!last && !has_events && content == sent_content_ && now - sent_at_ < kIntervalMax) return;
    sent_content_ = content;
    sent_at_ = now;
    v1::WorkerState next = state;
    if (has_events) *next.mutable_kv_events() = std::move(events);
    next.set_sequence(++sequence_);
    Push(std::move(next));
    if (last) Close(absl::OkStatus());
  }

 private:
  ~Watcher() override = default;

  WatchService& service_;
  KvFeed feed_;
  std::string sent_content_;
  TimePoint sent_at_{};
  uint64_t sequence_ = 0;
};

WatchService::WatchService(std::function<v1::WorkerState()> state, const kv::EventLog& kv_events,
                           std::string cluster_token)
    : state_(std::move(state)), kv_events_(kv_events), cluster_token_(std::move(cluster_token)) {
  thread_ = std::thread([this] { Run(); });
}

WatchService::~WatchService() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  stopped_.notify_all();
  thread_.join();
}

grpc::ServerWriteReactor<v1::WorkerState>* WatchService::Watch(grpc::CallbackServerContext* context,
                                                               const v1::WatchRequest*) {
  auto* watcher = new Watcher(*this);
  const grpc::Status allowed = net::CheckClusterToken(*context, cluster_token_);
  std::lock_guard lock(mutex_);
  if (!allowed.ok()) {
    watcher->Close(net::FromGrpc(allowed));
  } else if (watchers_.size() >= kWatchersMax) {
    watcher->Close(ResourceExhausted("{} watchers are connected", watchers_.size()));
  } else {
    watchers_.insert(watcher);
    const v1::WorkerState state = state_();
    watcher->Offer(state, state.SerializeAsString(), Clock::Real().Now());
  }
  return watcher;
}

void WatchService::Run() {
  std::unique_lock lock(mutex_);
  while (!stopped_.wait_for(lock, kIntervalMin, [this] { return stop_; })) Tick();
}

// Under the lock, so that no watcher goes away meanwhile.
void WatchService::Tick() {
  if (watchers_.empty()) return;
  const v1::WorkerState state = state_();
  const std::string content = state.SerializeAsString();
  const TimePoint now = Clock::Real().Now();
  for (Watcher* watcher : watchers_) watcher->Offer(state, content, now);
}

void WatchService::Forget(Watcher* watcher) {
  std::lock_guard lock(mutex_);
  watchers_.erase(watcher);
}

}  // namespace trivium::worker
