#include "common/transfer/ucx_link.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <unordered_map>
#include <unordered_set>

#include "common/transfer/loop.h"
#include "common/transfer/ucx_context.h"

namespace trivium::transfer {
namespace {

constexpr unsigned kMessageId = 1;
// Turns of UCX's progress before the protocol gets its turn.
constexpr int kProgressBurst = 32;
// How long a link that closes waits for the wire to end what is in flight.
constexpr Duration kCloseWait = std::chrono::milliseconds(500);

class UcxLink final : public Link {
 public:
  static absl::StatusOr<std::unique_ptr<Link>> Make(const UcxLinkOptions& options);
  ~UcxLink() override;

  const std::string& address() const override { return context_->address(); }
  absl::StatusOr<Connection> Connect(const std::string& address) override;
  void Send(Connection connection, std::span<const uint8_t> header, Buffer payload) override;
  void Receive(uint64_t parked, Buffer into, uint64_t cookie) override;
  void Discard(uint64_t parked) override;
  void ForceClose(Connection connection) override;
  bool Progress(LinkEvents& events) override;
  void Wait(Duration at_most) override;
  void Wake() override;
  int64_t outstanding() const override { return static_cast<int64_t>(operations_.size()); }

 private:
  // What UCX works on until it says otherwise: the memory must not move or go.
  struct Operation {
    UcxLink* link;
    std::vector<uint8_t> header;
    Buffer buffer;
    bool receives = false;
    uint64_t cookie = 0;
  };
  // The argument of the error callback; one address for one connection.
  struct Endpoint {
    UcxLink* link;
    Connection id;
    ucp_ep_h ep = nullptr;
    bool reported = false;
  };
  struct Received {
    uint64_t cookie;
    Buffer buffer;
    bool ok;
  };

  UcxLink() = default;
  void Track(Operation* operation, ucs_status_ptr_t request);
  void Finish(Operation* operation, ucs_status_t status);
  void CloseEndpoint(Endpoint& endpoint);
  static ucs_status_t OnActiveMessage(void* self, const void* header, size_t header_length,
                                      void* data, size_t length, const ucp_am_recv_param_t* param);
  static void OnSendDone(void* request, ucs_status_t status, void* operation);
  static void OnReceiveDone(void* request, ucs_status_t status, size_t length, void* operation);
  static void OnError(void* endpoint, ucp_ep_h ep, ucs_status_t status);

  std::unique_ptr<UcxContext> context_;
  int wake_fd_ = -1;
  Connection next_connection_ = 1;
  std::unordered_map<Connection, std::unique_ptr<Endpoint>> endpoints_;
  uint64_t next_parked_ = 1;
  std::unordered_map<uint64_t, void*> parked_;
  std::unordered_set<Operation*> operations_;
  // Closed endpoints whose error callback might still come. Bounded by the number of lost peers.
  std::vector<std::unique_ptr<Endpoint>> graveyard_;
  std::unordered_set<void*> closing_;  // requests of endpoints that UCX is still closing

  std::vector<Incoming> messages_;
  std::vector<Received> received_;
  std::vector<Connection> lost_;
};

absl::StatusOr<std::unique_ptr<Link>> UcxLink::Make(const UcxLinkOptions& options) {
  std::unique_ptr<UcxLink> link(new UcxLink);
  ASSIGN_OR_RETURN(link->context_, UcxContext::Create(options));
  link->wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (link->wake_fd_ < 0) return absl::InternalError("transfer: no event descriptor to be had");
  ucp_am_handler_param_t handler = {};
  handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                       UCP_AM_HANDLER_PARAM_FIELD_ARG;
  handler.id = kMessageId;
  handler.cb = &UcxLink::OnActiveMessage;
  handler.arg = link.get();
  const ucs_status_t status = ucp_worker_set_am_recv_handler(link->context_->worker(), &handler);
  if (status != UCS_OK) return UcxStatus("setting the message handler", status);
  return std::unique_ptr<Link>(std::move(link));
}

UcxLink::~UcxLink() {
  if (context_ != nullptr) {
    for (auto& [id, desc] : parked_) ucp_am_data_release(context_->worker(), desc);
    for (auto& [id, endpoint] : endpoints_) CloseEndpoint(*endpoint);
    const TimePoint until = Clock::Real().Now() + kCloseWait;
    while ((!operations_.empty() || !closing_.empty()) && Clock::Real().Now() < until) {
      ucp_worker_progress(context_->worker());
    }
    for (void* request : closing_) ucp_request_free(request);
    context_.reset();
  }
  // With the worker gone nothing can touch these buffers any more.
  for (Operation* operation : operations_) delete operation;
  if (wake_fd_ >= 0) close(wake_fd_);
}

absl::StatusOr<Connection> UcxLink::Connect(const std::string& address) {
  auto endpoint = std::make_unique<Endpoint>(Endpoint{this, next_connection_++});
  ucp_ep_params_t params = {};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(address.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = &UcxLink::OnError;
  params.err_handler.arg = endpoint.get();
  const ucs_status_t status = ucp_ep_create(context_->worker(), &params, &endpoint->ep);
  if (status != UCS_OK) return UcxStatus("connecting", status);
  const Connection id = endpoint->id;
  endpoints_.emplace(id, std::move(endpoint));
  return id;
}

void UcxLink::Send(Connection connection, std::span<const uint8_t> header, Buffer payload) {
  const auto it = endpoints_.find(connection);
  if (it == endpoints_.end() || it->second->reported) return;
  auto* operation =
      new Operation{this, {header.begin(), header.end()}, std::move(payload), false, 0};
  const std::span<const uint8_t> bytes = operation->buffer.bytes();
  ucp_request_param_t param = {};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = bytes.size() > kInlineBytes ? UCP_AM_SEND_FLAG_RNDV : UCP_AM_SEND_FLAG_EAGER;
  param.cb.send = &UcxLink::OnSendDone;
  param.user_data = operation;
  operations_.insert(operation);
  Track(operation, ucp_am_send_nbx(it->second->ep, kMessageId, operation->header.data(),
                                   operation->header.size(), bytes.data(), bytes.size(), &param));
}

void UcxLink::Receive(uint64_t parked, Buffer into, uint64_t cookie) {
  auto node = parked_.extract(parked);
  if (node.empty()) {
    received_.push_back({cookie, std::move(into), false});
    return;
  }
  auto* operation = new Operation{this, {}, std::move(into), true, cookie};
  const std::span<uint8_t> bytes = operation->buffer.bytes();
  ucp_request_param_t param = {};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
  param.cb.recv_am = &UcxLink::OnReceiveDone;
  param.user_data = operation;
  operations_.insert(operation);
  Track(operation, ucp_am_recv_data_nbx(context_->worker(), node.mapped(), bytes.data(),
                                        bytes.size(), &param));
}

void UcxLink::Track(Operation* operation, ucs_status_ptr_t request) {
  if (request == nullptr) {
    Finish(operation, UCS_OK);
  } else if (UCS_PTR_IS_ERR(request)) {
    Finish(operation, UCS_PTR_STATUS(request));
  }
}

void UcxLink::Finish(Operation* operation, ucs_status_t status) {
  operations_.erase(operation);
  if (operation->receives) {
    received_.push_back({operation->cookie, std::move(operation->buffer), status == UCS_OK});
  }
  delete operation;
}

void UcxLink::OnSendDone(void* request, ucs_status_t status, void* operation) {
  auto* done = static_cast<Operation*>(operation);
  ucp_request_free(request);
  done->link->Finish(done, status);
}

void UcxLink::OnReceiveDone(void* request, ucs_status_t status, size_t length, void* operation) {
  auto* done = static_cast<Operation*>(operation);
  const bool whole = length == done->buffer.bytes().size();
  ucp_request_free(request);
  done->link->Finish(done, status == UCS_OK && !whole ? UCS_ERR_MESSAGE_TRUNCATED : status);
}

void UcxLink::OnError(void* endpoint, ucp_ep_h, ucs_status_t) {
  auto* broken = static_cast<Endpoint*>(endpoint);
  if (broken->reported) return;
  broken->reported = true;
  broken->link->lost_.push_back(broken->id);
}

ucs_status_t UcxLink::OnActiveMessage(void* self, const void* header, size_t header_length,
                                      void* data, size_t length, const ucp_am_recv_param_t* param) {
  auto* link = static_cast<UcxLink*>(self);
  Incoming message;
  const auto* from = static_cast<const uint8_t*>(header);
  const size_t kept = std::min(header_length, kHeaderBytes + 1);
  if (kept > 0) message.header.assign(from, from + kept);
  message.payload_bytes = length;
  if (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) {
    message.parked = link->next_parked_;
    link->parked_.emplace(link->next_parked_++, data);
    link->messages_.push_back(std::move(message));
    return UCS_INPROGRESS;
  }
  // Nobody of ours sends more than kInlineBytes eagerly; such a message is kept short and refused.
  const auto* bytes = static_cast<const uint8_t*>(data);
  if (length > 0 && length <= kInlineBytes) message.payload.assign(bytes, bytes + length);
  if (length > kInlineBytes) message.header.clear();
  link->messages_.push_back(std::move(message));
  return UCS_OK;
}

void UcxLink::Discard(uint64_t parked) {
  auto node = parked_.extract(parked);
  if (!node.empty()) ucp_am_data_release(context_->worker(), node.mapped());
}

void UcxLink::ForceClose(Connection connection) {
  auto node = endpoints_.extract(connection);
  if (node.empty()) return;
  CloseEndpoint(*node.mapped());
  // UCX may still report an error of this endpoint while it closes; by then there is nobody to
  // tell.
  node.mapped()->reported = true;
  graveyard_.push_back(std::move(node.mapped()));
}

void UcxLink::CloseEndpoint(Endpoint& endpoint) {
  ucp_request_param_t param = {};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  const ucs_status_ptr_t request = ucp_ep_close_nbx(endpoint.ep, &param);
  if (UCS_PTR_IS_PTR(request)) closing_.insert(request);
}

bool UcxLink::Progress(LinkEvents& events) {
  bool happened = false;
  for (int i = 0; i < kProgressBurst && ucp_worker_progress(context_->worker()) != 0; ++i) {
    happened = true;
  }
  std::erase_if(closing_, [](void* request) {
    if (ucp_request_check_status(request) == UCS_INPROGRESS) return false;
    ucp_request_free(request);
    return true;
  });
  for (Incoming& message : std::exchange(messages_, {})) events.OnMessage(std::move(message));
  for (Received& received : std::exchange(received_, {})) {
    events.OnReceived(received.cookie, std::move(received.buffer), received.ok);
    happened = true;
  }
  for (const Connection connection : std::exchange(lost_, {})) {
    events.OnConnectionLost(connection);
    happened = true;
  }
  return happened;
}

void UcxLink::Wait(Duration at_most) {
  if (!messages_.empty() || !received_.empty() || !lost_.empty()) return;
  if (ucp_worker_arm(context_->worker()) != UCS_OK) return;  // something is there already
  pollfd descriptors[2] = {{context_->event_fd(), POLLIN, 0}, {wake_fd_, POLLIN, 0}};
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(at_most).count();
  poll(descriptors, 2, static_cast<int>(ms));
  uint64_t rings = 0;
  if (read(wake_fd_, &rings, sizeof(rings)) < 0) return;  // nobody rang
}

void UcxLink::Wake() {
  const uint64_t ring = 1;
  // Fails only when so many rings are waiting that one more tells nothing new.
  if (write(wake_fd_, &ring, sizeof(ring)) < 0) return;
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
