#include "common/transfer/in_process_link.h"

#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <unordered_map>

#include "common/transfer/loop.h"

namespace trivium::transfer {
namespace {

struct Parcel {
  std::vector<uint8_t> header;
  Buffer payload;
};

// Where other links leave messages. Outlives its link while somebody is connected to it.
class Inbox {
 public:
  bool Put(Parcel parcel) {
    std::lock_guard lock(mutex_);
    if (closed_) return false;
    parcels_.push_back(std::move(parcel));
    ring_ = true;
    bell_.notify_one();
    return true;
  }
  std::deque<Parcel> TakeAll() {
    std::lock_guard lock(mutex_);
    return std::exchange(parcels_, {});
  }
  void Ring() {
    std::lock_guard lock(mutex_);
    ring_ = true;
    bell_.notify_one();
  }
  void Wait(Duration at_most) {
    std::unique_lock lock(mutex_);
    bell_.wait_for(lock, at_most, [&] { return ring_; });
    ring_ = false;
  }
  // Those that are connected hear of the end.
  void Watch(std::shared_ptr<Inbox> watcher) {
    std::lock_guard lock(mutex_);
    watchers_.push_back(std::move(watcher));
  }
  void Close() {
    std::vector<std::weak_ptr<Inbox>> watchers;
    {
      std::lock_guard lock(mutex_);
      closed_ = true;
      parcels_.clear();
      watchers.swap(watchers_);
    }
    for (const auto& weak : watchers) {
      if (const auto watcher = weak.lock()) watcher->Ring();
    }
  }
  bool closed() const {
    std::lock_guard lock(mutex_);
    return closed_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable bell_;
  bool ring_ = false, closed_ = false;
  std::deque<Parcel> parcels_;
  std::vector<std::weak_ptr<Inbox>> watchers_;
};

class Registry {
 public:
  static Registry& Get() {
    static Registry registry;
    return registry;
  }
  std::string Add(std::shared_ptr<Inbox> inbox) {
    std::lock_guard lock(mutex_);
    const std::string name = fmt::format("in-process:{}", next_++);
    inboxes_[name] = std::move(inbox);
    return name;
  }
  std::shared_ptr<Inbox> Find(const std::string& name) {
    std::lock_guard lock(mutex_);
    const auto it = inboxes_.find(name);
    return it == inboxes_.end() ? nullptr : it->second;
  }
  void Remove(const std::string& name) {
    std::lock_guard lock(mutex_);
    inboxes_.erase(name);
  }

 private:
  std::mutex mutex_;
  uint64_t next_ = 1;
  std::map<std::string, std::shared_ptr<Inbox>> inboxes_;
};

class InProcessLink final : public Link {
 public:
  InProcessLink() : inbox_(std::make_shared<Inbox>()), address_(Registry::Get().Add(inbox_)) {}
  ~InProcessLink() override {
    Registry::Get().Remove(address_);
    inbox_->Close();
  }

  const std::string& address() const override { return address_; }

  absl::StatusOr<Connection> Connect(const std::string& address) override {
    auto other = Registry::Get().Find(address);
    if (other == nullptr) return Unavailable("transfer: no transport at this address");
    other->Watch(inbox_);
    connections_[next_connection_] = {std::move(other), false};
    return next_connection_++;
  }

  void Send(Connection connection, std::span<const uint8_t> header, Buffer payload) override {
    const auto it = connections_.find(connection);
    if (it == connections_.end()) return;
    it->second.inbox->Put({{header.begin(), header.end()}, std::move(payload)});
  }

  void Receive(uint64_t parked, Buffer into, uint64_t cookie) override {
    auto node = parked_.extract(parked);
    const bool ok = !node.empty() && node.mapped().bytes().size() == into.bytes().size();
    if (ok) std::memcpy(into.bytes().data(), node.mapped().bytes().data(), into.bytes().size());
    received_.push_back({cookie, std::move(into), ok});
  }

  void ReceiveRows(uint64_t parked, std::shared_ptr<ArrivingRows> into, uint64_t cookie) override {
    auto node = parked_.extract(parked);
    const bool ok = !node.empty() && node.mapped().bytes().size() == into->bytes();
    if (ok) into->Write(0, node.mapped().bytes());
    received_.push_back({cookie, {}, ok});
  }

  void Discard(uint64_t parked) override { parked_.erase(parked); }
  void ForceClose(Connection connection) override { connections_.erase(connection); }

  bool Progress(LinkEvents& events) override {
    bool happened = false;
    for (Parcel& parcel : inbox_->TakeAll()) {
      events.OnMessage(Unpack(std::move(parcel)));
      happened = true;
    }
    for (Received& received : std::exchange(received_, {})) {
      events.OnReceived(received.cookie, std::move(received.buffer), received.ok);
      happened = true;
    }
    for (auto& [id, other] : connections_) {
      if (other.reported || !other.inbox->closed()) continue;
      other.reported = true;
      events.OnConnectionLost(id);
      happened = true;
    }
    return happened;
  }

  void Wait(Duration at_most) override {
    if (received_.empty()) inbox_->Wait(at_most);
  }
  void Wake() override { inbox_->Ring(); }
  int64_t outstanding() const override { return static_cast<int64_t>(received_.size()); }

 private:
  struct Other {
    std::shared_ptr<Inbox> inbox;
    bool reported = false;  // as lost
  };
  struct Received {
    uint64_t cookie;
    Buffer buffer;
    bool ok;
  };

  Incoming Unpack(Parcel parcel) {
    Incoming message;
    message.header = std::move(parcel.header);
    if (message.header.size() > kHeaderBytes) message.header.resize(kHeaderBytes + 1);
    message.payload_bytes = parcel.payload.bytes().size();
    if (message.payload_bytes > kInlineBytes) {
      message.parked = next_parked_;
      parked_.emplace(next_parked_++, std::move(parcel.payload));
    } else {
      message.payload.assign(parcel.payload.bytes().begin(), parcel.payload.bytes().end());
    }
    return message;
  }

  const std::shared_ptr<Inbox> inbox_;
  const std::string address_;
  Connection next_connection_ = 1;
  std::map<Connection, Other> connections_;
  uint64_t next_parked_ = 1;
  std::unordered_map<uint64_t, Buffer> parked_;
  std::vector<Received> received_;
};

}  // namespace

std::unique_ptr<Link> MakeInProcessLink() { return std::make_unique<InProcessLink>(); }

absl::StatusOr<std::unique_ptr<Transport>> MakeInProcessTransport(TransportOptions options) {
  return MakeTransport(
      std::move(options), LinkKind::kInProcess,
      []() -> absl::StatusOr<std::unique_ptr<Link>> { return MakeInProcessLink(); });
}

}  // namespace trivium::transfer
