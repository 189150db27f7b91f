#include "common/transfer/ucx_link.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>

#include "common/transfer/address.h"
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

// Openings of the two messages that make a pipe; anything else on a door is ignored.
constexpr std::string_view kHello = "TXHELLO1";
constexpr std::string_view kWelcome = "TXWELCM1";

std::span<const uint8_t> AsBytes(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}
bool Opens(const Incoming& message, std::string_view opening) {
  return !message.parked && std::ranges::equal(message.header, AsBytes(opening));
}

// Every connection has a pipe: a pair of workers, one on either side, that serve nobody else.
// Senders on one host share the receive queue of a worker, and one that stops or dies while it
// fills its place in the queue blocks all that is behind it; so nobody shares a queue. A pipe is
// made through the door, the worker whose address is the link's: Hello carries the address of the
// caller's end, Welcome, the first message of the new pipe, that of the other.
class UcxLink final : public Link {
 public:
  static absl::StatusOr<std::unique_ptr<Link>> Make(const UcxLinkOptions& options);
  ~UcxLink() override;

  const std::string& address() const override { return door_->address(); }
  absl::StatusOr<Connection> Connect(const std::string& address) override;
  void Send(Connection connection, std::span<const uint8_t> header, Buffer payload) override;
  void Receive(uint64_t parked, Buffer into, uint64_t cookie) override;
  void Discard(uint64_t parked) override;
  void ForceClose(Connection connection) override;
  bool Progress(LinkEvents& events) override;
  void Wait(Duration at_most) override;
  void Wake() override;
  int64_t outstanding() const override;

 private:
  struct Pipe {
    std::unique_ptr<UcxWorker> worker;
    std::unique_ptr<UcxWorker> knock;  // carries Hello to the other door; gone once welcomed
    std::string other_door;
    bool claimed = false;   // somebody here answers on it
    bool reported = false;  // as lost
    TimePoint last_used{};
    std::vector<std::pair<std::vector<uint8_t>, Buffer>> queue;  // until welcomed
  };
  using Pipes = std::map<Connection, Pipe>;

  UcxLink() = default;
  absl::StatusOr<Pipes::iterator> AddPipe(const std::string& other_door);
  absl::Status Knock(Connection id, Pipe& pipe);
  void Answer(const Incoming& hello);
  void OnWelcome(Pipe& pipe, const Incoming& welcome);
  void ClosePipe(Pipes::iterator it);
  void CloseUnclaimed();
  bool Harvest(Connection id, Pipe& pipe, LinkEvents& events);
  absl::Status Watch(int fd);
  absl::StatusOr<Buffer> Pack(std::string_view bytes);

  std::unique_ptr<UcxContext> door_context_, pipe_context_;
  std::unique_ptr<UcxWorker> door_;
  BufferPool small_buffers_{kMaxAddressBytes, 2 * static_cast<int>(kMaxPipes)};
  int wake_fd_ = -1, epoll_fd_ = -1;
  Connection next_connection_ = 1;
  Pipes pipes_;
  std::vector<UcxWorker::Received> leftover_;  // of closed pipes
};

absl::StatusOr<std::unique_ptr<Link>> UcxLink::Make(const UcxLinkOptions& options) {
  std::unique_ptr<UcxLink> link(new UcxLink);
  UcxLinkOptions door = options;
  // The door's queue is shared by its nature, so it is none that a stopped process could block.
  door.transports = "tcp,self";
  ASSIGN_OR_RETURN(link->door_context_, UcxContext::Create(door));
  ASSIGN_OR_RETURN(link->pipe_context_, UcxContext::Create(options));
  ASSIGN_OR_RETURN(link->door_, UcxWorker::Create(*link->door_context_, 0));
  link->wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  link->epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  RETURN_IF_ERROR(link->Watch(link->wake_fd_));
  RETURN_IF_ERROR(link->Watch(link->door_->event_fd()));
  return std::unique_ptr<Link>(std::move(link));
}

UcxLink::~UcxLink() {
  pipes_.clear();
  door_.reset();
  pipe_context_.reset();
  door_context_.reset();
  if (wake_fd_ >= 0) close(wake_fd_);
  if (epoll_fd_ >= 0) close(epoll_fd_);
}

absl::Status UcxLink::Watch(int fd) {
  epoll_event event = {};
  event.events = EPOLLIN;
  event.data.fd = fd;
  if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) != 0) {
    return Unavailable("transfer: no event descriptor to be had");
  }
  return absl::OkStatus();
}

absl::StatusOr<Buffer> UcxLink::Pack(std::string_view bytes) {
  if (bytes.size() > kMaxAddressBytes) return InvalidArgument("transfer: an address too long");
  Buffer buffer = small_buffers_.Take(bytes.size());
  if (buffer.empty()) return ResourceExhausted("transfer: too many connections at once");
  std::memcpy(buffer.bytes().data(), bytes.data(), bytes.size());
  return buffer;
}

absl::StatusOr<UcxLink::Pipes::iterator> UcxLink::AddPipe(const std::string& other_door) {
  if (pipes_.size() >= kMaxPipes) return ResourceExhausted("transfer: {} connections", kMaxPipes);
  const Connection id = next_connection_++;
  Pipe pipe;
  ASSIGN_OR_RETURN(pipe.worker, UcxWorker::Create(*pipe_context_, id << 32));
  RETURN_IF_ERROR(Watch(pipe.worker->event_fd()));
  pipe.other_door = other_door;
  pipe.last_used = Clock::Real().Now();
  return pipes_.emplace(id, std::move(pipe)).first;
}

absl::StatusOr<Connection> UcxLink::Connect(const std::string& address) {
  for (auto& [id, pipe] : pipes_) {
    if (pipe.claimed || pipe.reported || pipe.other_door != address) continue;
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
  ASSIGN_OR_RETURN(pipe.knock, UcxWorker::Create(*door_context_, 0));
  RETURN_IF_ERROR(Watch(pipe.knock->event_fd()));
  RETURN_IF_ERROR(pipe.knock->Connect(pipe.other_door));
  const size_t door_bytes = door_->address().size();
  std::string ends = {static_cast<char>(door_bytes >> 8), static_cast<char>(door_bytes)};
  ends += door_->address() + pipe.worker->address();
  ASSIGN_OR_RETURN(Buffer payload, Pack(EncodeAddress({LinkKind::kUcx, id, ends})));
  pipe.knock->Send(AsBytes(kHello), std::move(payload));
  return absl::OkStatus();
}

void UcxLink::Answer(const Incoming& hello) {
  const auto ends =
      DecodeAddress(std::string(hello.payload.begin(), hello.payload.end()), LinkKind::kUcx);
  if (!ends.ok() || ends->link.size() < 2) return;
  const std::string& link = ends->link;
  const size_t door_bytes =
      size_t{static_cast<uint8_t>(link[0])} << 8 | static_cast<uint8_t>(link[1]);
  if (link.size() <= 2 + door_bytes) return;
  CloseUnclaimed();
  const auto it = AddPipe(link.substr(2, door_bytes));
  if (!it.ok()) return;
  UcxWorker& worker = *(*it)->second.worker;
  auto welcome = Pack(EncodeAddress({LinkKind::kUcx, ends->transport_id, worker.address()}));
  if (!welcome.ok() || !worker.Connect(link.substr(2 + door_bytes)).ok()) return ClosePipe(*it);
  worker.Send(AsBytes(kWelcome), *std::move(welcome));
}

void UcxLink::OnWelcome(Pipe& pipe, const Incoming& welcome) {
  const auto end =
      DecodeAddress(std::string(welcome.payload.begin(), welcome.payload.end()), LinkKind::kUcx);
  if (!end.ok() || !pipe.worker->Connect(end->link).ok()) return;  // the peer's lease runs out
  pipe.knock.reset();
  for (auto& [header, payload] : std::exchange(pipe.queue, {})) {
    pipe.worker->Send(header, std::move(payload));
  }
}

void UcxLink::Send(Connection connection, std::span<const uint8_t> header, Buffer payload) {
  const auto it = pipes_.find(connection);
  if (it == pipes_.end()) return;
  Pipe& pipe = it->second;
  if (pipe.worker->connected()) return pipe.worker->Send(header, std::move(payload));
  pipe.queue.emplace_back(std::vector<uint8_t>(header.begin(), header.end()), std::move(payload));
}

void UcxLink::Receive(uint64_t parked, Buffer into, uint64_t cookie) {
  const auto it = pipes_.find(parked >> 32);
  if (it == pipes_.end()) {
    leftover_.push_back({cookie, std::move(into), false});
  } else {
    it->second.worker->Receive(parked, std::move(into), cookie);
  }
}

void UcxLink::Discard(uint64_t parked) {
  const auto it = pipes_.find(parked >> 32);
  if (it != pipes_.end()) it->second.worker->Discard(parked);
}

void UcxLink::ClosePipe(Pipes::iterator it) {
  UcxWorker& worker = *it->second.worker;
  worker.Close();
  for (auto& received : worker.TakeReceived()) leftover_.push_back(std::move(received));
  pipes_.erase(it);
}

void UcxLink::ForceClose(Connection connection) {
  const auto found = pipes_.find(connection);
  if (found == pipes_.end()) return;
  const std::string other_door = found->second.other_door;
  // Whatever else the same peer has opened here goes too: it is as lost.
  for (auto it = pipes_.begin(); it != pipes_.end();) {
    const auto next = std::next(it);
    if (it == found || (!it->second.claimed && it->second.other_door == other_door)) ClosePipe(it);
    it = next;
  }
}

void UcxLink::CloseUnclaimed() {
  const TimePoint now = Clock::Real().Now();
  for (auto it = pipes_.begin(); it != pipes_.end();) {
    const auto next = std::next(it);
    const Pipe& pipe = it->second;
    if (!pipe.claimed && (pipe.worker->broken() || now - pipe.last_used > kUnclaimed))
      ClosePipe(it);
    it = next;
  }
}

bool UcxLink::Harvest(Connection id, Pipe& pipe, LinkEvents& events) {
  bool happened = false;
  for (Incoming& message : pipe.worker->TakeMessages()) {
    happened = true;
    pipe.last_used = Clock::Real().Now();
    if (!pipe.worker->connected() && Opens(message, kWelcome)) {
      OnWelcome(pipe, message);
    } else {
      events.OnMessage(std::move(message));
    }
  }
  for (UcxWorker::Received& received : pipe.worker->TakeReceived()) {
    happened = true;
    events.OnReceived(received.cookie, std::move(received.buffer), received.ok);
  }
  const bool broken = pipe.worker->broken() || (pipe.knock != nullptr && pipe.knock->broken());
  if (broken && pipe.claimed && !pipe.reported) {
    happened = pipe.reported = true;
    events.OnConnectionLost(id);
  }
  return happened;
}

bool UcxLink::Progress(LinkEvents& events) {
  bool happened = false;
  for (int turn = 0; turn < kProgressBurst; ++turn) {
    bool moved = door_->Progress();
    for (auto& [id, pipe] : pipes_) {
      moved = pipe.worker->Progress() || moved;
      if (pipe.knock != nullptr) moved = pipe.knock->Progress() || moved;
    }
    happened = happened || moved;
    if (!moved) break;
  }
  for (const Incoming& message : door_->TakeMessages()) {
    if (message.parked) door_->Discard(*message.parked);
    if (Opens(message, kHello)) Answer(message);
  }
  for (auto& [id, pipe] : pipes_) happened = Harvest(id, pipe, events) || happened;
  for (UcxWorker::Received& received : std::exchange(leftover_, {})) {
    events.OnReceived(received.cookie, std::move(received.buffer), received.ok);
  }
  return happened;
}

void UcxLink::Wait(Duration at_most) {
  if (!leftover_.empty() || !door_->Arm()) return;
  for (auto& [id, pipe] : pipes_) {
    if (!pipe.worker->Arm() || (pipe.knock != nullptr && !pipe.knock->Arm())) return;
  }
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(at_most).count();
  epoll_event event = {};
  epoll_wait(epoll_fd_, &event, 1, static_cast<int>(ms));
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
  for (const auto& [id, pipe] : pipes_) {
    count += pipe.worker->outstanding() + static_cast<int64_t>(pipe.queue.size());
  }
  return count;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Link>> MakeUcxLink(const UcxLinkOptions& options) {
  return UcxLink::Make(options);
}

absl::StatusOr<std::unique_ptr<Transport>> MakeUcxTransport(TransportOptions options) {
  UcxLinkOptions link_options{options.transports, options.interface};
  return MakeTransport(std::move(options), LinkKind::kUcx,
                       [link_options] { return MakeUcxLink(link_options); });
}

}  // namespace trivium::transfer
