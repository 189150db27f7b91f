#include "common/transfer/ucx_link.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "common/transfer/address.h"
#include "common/transfer/frame_socket.h"
#include "common/transfer/loop.h"
#include "common/transfer/ucx_context.h"
#include "common/transfer/ucx_worker.h"

namespace trivium::transfer {
namespace {

// Turns of UCX's progress before the protocol gets its turn.
constexpr int kProgressBurst = 32;
// More than a transport ever has peers; each costs a worker.
constexpr size_t kMaxPipes = 512;
// A pipe that a peer opened and that nobody here answers on is closed after so long a silence.
constexpr Duration kUnclaimed = std::chrono::seconds(10);

// Every worker listens on a port of the range. UCX draws ports until it meets a free one, without
// end when there is none: a quarter stays free.
size_t WorkersFor(PortRange ports) {
  if (ports.first == 0) return kMaxPipes;
  return std::min(kMaxPipes, static_cast<size_t>(std::max(0, ports.count * 3 / 4 - 1)));
}

// A caller that has not said Hello for so long is turned away; so many may wait at once.
constexpr Duration kHelloWait = std::chrono::seconds(5);
constexpr size_t kMaxCallers = 64;
constexpr size_t kMaxLimbo = 64;
// How long a link that closes waits for handshakes to end.
constexpr Duration kGoodbye = std::chrono::milliseconds(300);
// Sockets are looked at after a sleep, and so often while there is no time for one.
constexpr int kSocketEvery = 64;
constexpr uint32_t kSocketEvents = EPOLLIN | EPOLLOUT | EPOLLRDHUP | static_cast<uint32_t>(EPOLLET);

std::string_view HostOf(std::string_view address) { return address.substr(0, address.rfind(':')); }

// Never destroyed, and still to be found, so that a leak checker knows that it is meant.
template <typename T>
void KeepForEver(std::unique_ptr<T> object) {
  static std::mutex mutex;
  static auto* kept = new std::vector<std::unique_ptr<T>>;
  std::lock_guard lock(mutex);
  kept->push_back(std::move(object));
}

// Every connection has a pipe: a pair of workers, one on either side, that serve nobody else.
// Senders on one host share the receive queue of a worker, and one that stops or dies while it
// fills its place in the queue blocks all that is behind it; so nobody shares a queue. A pipe is
// made over a socket: the caller's frame, Hello, has the address of its end, the answer, Welcome,
// that of the other. The socket stays open with the pipe.
class UcxLink final : public Link {
 public:
  static absl::StatusOr<std::unique_ptr<Link>> Make(const UcxLinkOptions& options);
  ~UcxLink() override;

  const std::string& address() const override { return door_.address(); }
  absl::StatusOr<Connection> Connect(const std::string& address) override;
  void Send(Connection connection, std::span<const uint8_t> header, Buffer payload) override;
  bool ReadsRows(Connection connection) const override;
  void SendRows(Connection connection, std::span<const uint8_t> header, SealedRows rows) override;
  void Receive(uint64_t parked, Buffer into, uint64_t cookie) override;
  void ReceiveRows(uint64_t parked, std::shared_ptr<ArrivingRows> into, uint64_t cookie) override;
  void Discard(uint64_t parked) override;
  void ForceClose(Connection connection) override;
  bool IsBusy(Connection connection) const override;
  bool Progress(LinkEvents& events) override;
  void Wait(Duration at_most) override;
  void Wake() override;
  int64_t outstanding() const override;

 private:
  struct Pipe {
    std::unique_ptr<UcxWorker> worker;
    FrameSocket socket;
    bool gone = false;   // the socket says so
    bool heard = false;  // a message came
    std::string other_door;
    // Of a caller. Connected to when its first message has come: two ends that connect to each
    // other at the same time end the process inside UCX.
    std::string other_end;
    bool claimed = false;   // somebody here answers on it
    bool reported = false;  // as lost
    TimePoint last_used{};
    std::vector<std::pair<std::vector<uint8_t>, Buffer>> queue;  // until welcomed
  };
  using Pipes = std::map<Connection, Pipe>;

  UcxLink() = default;
  static int64_t Outstanding(const Pipe& pipe) {
    return pipe.worker->outstanding() + static_cast<int64_t>(pipe.queue.size());
  }
  std::vector<Connection> PipesOfPeer(Connection connection) const;
  absl::StatusOr<Pipes::iterator> AddPipe(const std::string& other_door);
  absl::Status Knock(Connection id, Pipe& pipe);
  bool Answer(FrameSocket& caller);
  void OnWelcome(Connection id, Pipe& pipe);
  void PumpSockets();
  void ClosePipe(Pipes::iterator it);
  void CloseSettled();
  void Abandon(std::unique_ptr<UcxWorker>& worker);
  void CloseUnclaimed();
  bool Harvest(Connection id, Pipe& pipe, LinkEvents& events);
  absl::Status Watch(int fd, uint32_t events = EPOLLIN);

  struct Caller {
    FrameSocket socket;
    TimePoint since;
  };
  std::unique_ptr<UcxContext> context_;
  FrameListener door_;
  std::vector<Caller> callers_;
  bool has_shared_memory_ = false;
  int sockets_due_ = 0;  // turns until the sockets are looked at
  int wake_fd_ = -1, epoll_fd_ = -1;
  Connection next_connection_ = 1;
  Pipes pipes_;
  std::vector<UcxWorker::Received> leftover_;  // of closed pipes
  // Pipes that were closed before anything had come from the other side. UCX may be in the midst of
  // its handshake, and to close an endpoint there ends the process; so they go when it is over.
  std::vector<std::unique_ptr<UcxWorker>> limbo_;
  size_t abandoned_ = 0;  // workers that live on, and so must their context
  size_t workers_max_ = kMaxPipes;
};

absl::StatusOr<std::unique_ptr<Link>> UcxLink::Make(const UcxLinkOptions& options) {
  std::unique_ptr<UcxLink> link(new UcxLink);
  link->workers_max_ = WorkersFor(options.ports);
  RETURN_IF_ERROR(link->door_.Listen(options.interface, options.ports));
  ASSIGN_OR_RETURN(link->context_, UcxContext::Create(options));
  link->has_shared_memory_ = options.transports.find("posix") != std::string::npos;
  link->wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  link->epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  RETURN_IF_ERROR(link->Watch(link->wake_fd_));
  RETURN_IF_ERROR(link->Watch(link->door_.fd()));
  return std::unique_ptr<Link>(std::move(link));
}

UcxLink::~UcxLink() {
  while (!pipes_.empty()) ClosePipe(pipes_.begin());
  const TimePoint until = Clock::Real().Now() + kGoodbye;
  while (!limbo_.empty() && Clock::Real().Now() < until) {
    for (auto& worker : limbo_) worker->Progress();
    CloseSettled();
    usleep(200);
  }
  while (!limbo_.empty()) Abandon(limbo_.front());
  if (abandoned_ > 0) KeepForEver(std::move(context_));
  context_.reset();
  if (wake_fd_ >= 0) close(wake_fd_);
  if (epoll_fd_ >= 0) close(epoll_fd_);
}

absl::Status UcxLink::Watch(int fd, uint32_t events) {
  epoll_event event = {};
  event.events = events;
  event.data.fd = fd;
  if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) != 0) {
    return Unavailable("transfer: no event descriptor to be had");
  }
  return absl::OkStatus();
}

absl::StatusOr<UcxLink::Pipes::iterator> UcxLink::AddPipe(const std::string& other_door) {
  if (pipes_.size() + limbo_.size() + abandoned_ >= workers_max_) {
    return ResourceExhausted("transfer: {} connections", workers_max_);
  }
  const Connection id = next_connection_++;
  Pipe pipe;
  ASSIGN_OR_RETURN(pipe.worker, UcxWorker::Create(*context_, id << 32));
  RETURN_IF_ERROR(Watch(pipe.worker->event_fd()));
  pipe.other_door = other_door;
  pipe.last_used = Clock::Real().Now();
  return pipes_.emplace(id, std::move(pipe)).first;
}

absl::StatusOr<Connection> UcxLink::Connect(const std::string& address) {
  for (auto& [id, pipe] : pipes_) {
    if (pipe.claimed || pipe.gone || !pipe.worker->connected() || pipe.other_door != address) {
      continue;
    }
    pipe.claimed = true;
    return id;
  }
  ASSIGN_OR_RETURN(const Pipes::iterator it, AddPipe(address));
  it->second.claimed = true;
  if (absl::Status status = Knock(it->first, it->second); !status.ok()) {
    ClosePipe(it);
    return status;
  }
  return it->first;
}

absl::Status UcxLink::Knock(Connection id, Pipe& pipe) {
  ASSIGN_OR_RETURN(pipe.socket, FrameSocket::Connect(pipe.other_door));
  RETURN_IF_ERROR(Watch(pipe.socket.fd(), kSocketEvents));
  const size_t door_bytes = door_.address().size();
  std::string ends(1, static_cast<char>(door_bytes));
  ends += door_.address() + pipe.worker->address();
  const std::string hello = EncodeAddress({LinkKind::kUcx, id, ends});
  if (hello.size() > kMaxAddressBytes) return Unavailable("transfer: UCX's address is too long");
  pipe.socket.SendFrame(hello);
  pipe.gone = !pipe.socket.Pump();
  return absl::OkStatus();
}

bool UcxLink::Answer(FrameSocket& caller) {
  const auto hello = DecodeAddress(*caller.frame(), LinkKind::kUcx);
  if (!hello.ok() || hello->link.empty()) return false;
  const std::string& ends = hello->link;
  const size_t door_bytes = static_cast<uint8_t>(ends[0]);
  if (ends.size() <= 1 + door_bytes) return false;
  CloseUnclaimed();
  const auto it = AddPipe(ends.substr(1, door_bytes));
  if (!it.ok()) return false;
  Pipe& pipe = (*it)->second;
  const std::string welcome =
      EncodeAddress({LinkKind::kUcx, hello->transport_id, pipe.worker->address()});
  pipe.other_end = ends.substr(1 + door_bytes);
  pipe.socket = std::move(caller);
  pipe.socket.SendFrame(welcome);
  pipe.gone = !pipe.socket.Pump();
  return true;
}

void UcxLink::OnWelcome(Connection id, Pipe& pipe) {
  const auto end = DecodeAddress(*pipe.socket.frame(), LinkKind::kUcx);
  if (!end.ok() || end->transport_id != id || !pipe.worker->Connect(end->link).ok()) {
    pipe.gone = true;
    return;
  }
  for (auto& [header, payload] : std::exchange(pipe.queue, {})) {
    pipe.worker->Send(header, std::move(payload));
  }
}

void UcxLink::PumpSockets() {
  sockets_due_ = kSocketEvery;
  const TimePoint now = Clock::Real().Now();
  while (auto caller = door_.Accept()) {
    if (callers_.size() >= kMaxCallers || !Watch(caller->fd(), kSocketEvents).ok()) continue;
    callers_.push_back({*std::move(caller), now});
  }
  std::erase_if(callers_, [&](Caller& caller) {
    if (!caller.socket.Pump() || now - caller.since > kHelloWait) return true;
    if (!caller.socket.frame()) return false;
    Answer(caller.socket);
    return true;
  });
  for (auto& [id, pipe] : pipes_) {
    if (pipe.gone) continue;
    pipe.gone = !pipe.socket.Pump();
    if (pipe.claimed && !pipe.worker->connected() && pipe.socket.frame()) OnWelcome(id, pipe);
  }
}

void UcxLink::Send(Connection connection, std::span<const uint8_t> header, Buffer payload) {
  const auto it = pipes_.find(connection);
  if (it == pipes_.end()) return;
  Pipe& pipe = it->second;
  if (pipe.worker->connected()) return pipe.worker->Send(header, std::move(payload));
  pipe.queue.emplace_back(std::vector<uint8_t>(header.begin(), header.end()), std::move(payload));
}

// Over TCP, UCX would read them in pieces of a few kilobytes, with a system call each.
bool UcxLink::ReadsRows(Connection connection) const {
  const auto it = pipes_.find(connection);
  return has_shared_memory_ && it != pipes_.end() && it->second.worker->connected() &&
         HostOf(it->second.other_door) == HostOf(door_.address());
}

void UcxLink::SendRows(Connection connection, std::span<const uint8_t> header, SealedRows rows) {
  const auto it = pipes_.find(connection);
  if (it != pipes_.end()) it->second.worker->SendRows(header, std::move(rows));
}

void UcxLink::Receive(uint64_t parked, Buffer into, uint64_t cookie) {
  const auto it = pipes_.find(parked >> 32);
  if (it == pipes_.end()) {
    leftover_.push_back({cookie, std::move(into), false});
  } else {
    it->second.worker->Receive(parked, std::move(into), cookie);
  }
}

void UcxLink::ReceiveRows(uint64_t parked, std::shared_ptr<ArrivingRows> into, uint64_t cookie) {
  const auto it = pipes_.find(parked >> 32);
  if (it == pipes_.end()) {
    leftover_.push_back({cookie, {}, false});
  } else {
    it->second.worker->ReceiveRows(parked, std::move(into), cookie);
  }
}

void UcxLink::Discard(uint64_t parked) {
  const auto it = pipes_.find(parked >> 32);
  if (it != pipes_.end()) it->second.worker->Discard(parked);
}

void UcxLink::ClosePipe(Pipes::iterator it) {
  const bool shaking_hands =
      !it->second.heard && (it->second.worker->connected() || !it->second.other_end.empty());
  std::unique_ptr<UcxWorker> worker = std::move(it->second.worker);
  pipes_.erase(it);
  if (shaking_hands && !worker->broken()) {
    limbo_.push_back(std::move(worker));
    if (limbo_.size() > kMaxLimbo) Abandon(limbo_.front());
    return;
  }
  worker->Close();
  for (auto& received : worker->TakeReceived()) leftover_.push_back(std::move(received));
}

void UcxLink::Abandon(std::unique_ptr<UcxWorker>& worker) {
  epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, worker->event_fd(), nullptr);
  // Rather some memory than the process.
  KeepForEver(std::move(worker));
  ++abandoned_;
  std::erase(limbo_, nullptr);
}

void UcxLink::CloseSettled() {
  std::erase_if(limbo_, [](const std::unique_ptr<UcxWorker>& worker) {
    return worker->broken() || !worker->TakeMessages().empty();
  });
}

// The connection's own and whatever else the same peer has opened here.
std::vector<Connection> UcxLink::PipesOfPeer(Connection connection) const {
  std::vector<Connection> same;
  const auto found = pipes_.find(connection);
  if (found == pipes_.end()) return same;
  for (const auto& [id, pipe] : pipes_) {
    const bool opened_here = !pipe.claimed && pipe.other_door == found->second.other_door;
    if (id == connection || opened_here) same.push_back(id);
  }
  return same;
}

void UcxLink::ForceClose(Connection connection) {
  for (const Connection id : PipesOfPeer(connection)) ClosePipe(pipes_.find(id));
}

bool UcxLink::IsBusy(Connection connection) const {
  const std::vector<Connection> same = PipesOfPeer(connection);
  return std::any_of(same.begin(), same.end(),
                     [this](Connection id) { return Outstanding(pipes_.at(id)) > 0; });
}

void UcxLink::CloseUnclaimed() {
  const TimePoint now = Clock::Real().Now();
  for (auto it = pipes_.begin(); it != pipes_.end();) {
    const auto next = std::next(it);
    const Pipe& pipe = it->second;
    if (!pipe.claimed && (pipe.worker->broken() || pipe.gone || now - pipe.last_used > kUnclaimed))
      ClosePipe(it);
    it = next;
  }
}

bool UcxLink::Harvest(Connection id, Pipe& pipe, LinkEvents& events) {
  bool happened = false;
  for (Incoming& message : pipe.worker->TakeMessages()) {
    happened = true;
    pipe.heard = true;
    pipe.last_used = Clock::Real().Now();
    if (!pipe.worker->connected() && !pipe.other_end.empty()) {
      pipe.gone = !pipe.worker->Connect(pipe.other_end).ok() || pipe.gone;
    }
    events.OnMessage(std::move(message));
  }
  for (UcxWorker::Received& received : pipe.worker->TakeReceived()) {
    happened = true;
    events.OnReceived(received.cookie, std::move(received.buffer), received.ok);
  }
  const bool broken = pipe.worker->broken() || pipe.gone;
  if (broken && pipe.claimed && !pipe.reported) {
    happened = pipe.reported = true;
    events.OnConnectionLost(id);
  }
  return happened;
}

bool UcxLink::Progress(LinkEvents& events) {
  bool happened = false;
  for (int turn = 0; turn < kProgressBurst; ++turn) {
    bool moved = false;
    for (auto& worker : limbo_) moved = worker->Progress() || moved;
    for (auto& [id, pipe] : pipes_) {
      moved = pipe.worker->Progress() || moved;
    }
    happened = happened || moved;
    if (!moved) break;
  }
  if (--sockets_due_ <= 0) PumpSockets();
  CloseSettled();
  for (auto& [id, pipe] : pipes_) happened = Harvest(id, pipe, events) || happened;
  for (UcxWorker::Received& received : std::exchange(leftover_, {})) {
    events.OnReceived(received.cookie, std::move(received.buffer), received.ok);
  }
  return happened;
}

void UcxLink::Wait(Duration at_most) {
  if (!leftover_.empty()) return;
  for (auto& worker : limbo_) {
    if (!worker->Arm()) return;
  }
  for (auto& [id, pipe] : pipes_) {
    if (!pipe.worker->Arm()) return;
  }
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(at_most).count();
  epoll_event event = {};
  epoll_wait(epoll_fd_, &event, 1, static_cast<int>(ms));
  sockets_due_ = 0;
  uint64_t rings = 0;
  if (read(wake_fd_, &rings, sizeof(rings)) < 0) return;  // nobody rang
}

void UcxLink::Wake() {
  const uint64_t ring = 1;
  // Fails only when so many rings are waiting that one more tells nothing new.
  if (write(wake_fd_, &ring, sizeof(ring)) < 0) return;
}

int64_t UcxLink::outstanding() const {
  int64_t count = static_cast<int64_t>(leftover_.size());
  for (const auto& [id, pipe] : pipes_) count += Outstanding(pipe);
  return count;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Link>> MakeUcxLink(const UcxLinkOptions& options) {
  return UcxLink::Make(options);
}

absl::StatusOr<std::unique_ptr<Transport>> MakeUcxTransport(TransportOptions options) {
  UcxLinkOptions link_options{options.transports, options.interface, options.ports};
  return MakeTransport(std::move(options), LinkKind::kUcx,
                       [link_options] { return MakeUcxLink(link_options); });
}

}  // namespace trivium::transfer
