#include "common/transfer/ucx_worker.h"

#include <algorithm>

namespace trivium::transfer {
namespace {

constexpr unsigned kMessageId = 1;
// Turns that UCX gets to end the operations of a closed endpoint before the worker goes with them.
constexpr int kCloseTurns = 1000;

// What UCX calls to read rows or to write them. It asks for the whole set, also of what only ever
// goes one way.
ucp_generic_dt_ops_t OneWay() {
  ucp_generic_dt_ops_t ops = {};
  ops.start_pack = [](void*, const void* rows, size_t) { return const_cast<void*>(rows); };
  ops.start_unpack = [](void*, void* rows, size_t) { return rows; };
  ops.pack = [](void*, size_t, void*, size_t) { return size_t{0}; };
  ops.unpack = [](void*, size_t, const void*, size_t) { return UCS_ERR_UNSUPPORTED; };
  ops.finish = [](void*) {};
  return ops;
}

ucp_generic_dt_ops_t SealedOps() {
  ucp_generic_dt_ops_t ops = OneWay();
  ops.packed_size = [](void* rows) { return static_cast<SealedRows*>(rows)->bytes(); };
  ops.pack = [](void* rows, size_t offset, void* to, size_t bytes) {
    auto* from = static_cast<SealedRows*>(rows);
    const size_t count = std::min(bytes, from->bytes() - offset);
    from->Read(offset, {static_cast<uint8_t*>(to), count});
    return count;
  };
  return ops;
}

ucp_generic_dt_ops_t ArrivingOps() {
  ucp_generic_dt_ops_t ops = OneWay();
  ops.packed_size = [](void* rows) { return static_cast<ArrivingRows*>(rows)->bytes(); };
  ops.unpack = [](void* rows, size_t offset, const void* from, size_t bytes) {
    const std::span<const uint8_t> in(static_cast<const uint8_t*>(from), bytes);
    const bool fits = static_cast<ArrivingRows*>(rows)->Write(offset, in);
    return fits ? UCS_OK : UCS_ERR_MESSAGE_TRUNCATED;
  };
  return ops;
}

absl::Status MakeType(const ucp_generic_dt_ops_t& ops, ucp_datatype_t* type) {
  const ucs_status_t status = ucp_dt_create_generic(&ops, nullptr, type);
  return status == UCS_OK ? absl::OkStatus() : UcxStatus("describing rows", status);
}

}  // namespace

absl::StatusOr<std::unique_ptr<UcxWorker>> UcxWorker::Create(const UcxContext& context,
                                                             uint64_t parked_base) {
  std::unique_ptr<UcxWorker> worker(new UcxWorker);
  worker->next_parked_ = parked_base + 1;
  RETURN_IF_ERROR(worker->Init(context));
  RETURN_IF_ERROR(worker->SetHandler());
  RETURN_IF_ERROR(worker->MakeRowsTypes());
  return worker;
}

absl::Status UcxWorker::Init(const UcxContext& context) {
  ucp_worker_params_t params = {};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  params.thread_mode = UCS_THREAD_MODE_SINGLE;
  ucs_status_t status = ucp_worker_create(context.get(), &params, &worker_);
  if (status != UCS_OK) return UcxStatus("making a worker", status);
  status = ucp_worker_get_efd(worker_, &event_fd_);
  if (status != UCS_OK) return UcxStatus("getting the event descriptor", status);
  ucp_address_t* address = nullptr;
  size_t length = 0;
  status = ucp_worker_get_address(worker_, &address, &length);
  if (status != UCS_OK) return UcxStatus("getting the worker's address", status);
  address_.assign(reinterpret_cast<const char*>(address), length);
  ucp_worker_release_address(worker_, address);
  return absl::OkStatus();
}

absl::Status UcxWorker::MakeRowsTypes() {
  RETURN_IF_ERROR(MakeType(SealedOps(), &sealed_type_));
  return MakeType(ArrivingOps(), &arriving_type_);
}

absl::Status UcxWorker::SetHandler() {
  ucp_am_handler_param_t handler = {};
  handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                       UCP_AM_HANDLER_PARAM_FIELD_ARG;
  handler.id = kMessageId;
  handler.cb = &UcxWorker::OnActiveMessage;
  handler.arg = this;
  const ucs_status_t status = ucp_worker_set_am_recv_handler(worker_, &handler);
  if (status != UCS_OK) return UcxStatus("setting the message handler", status);
  return absl::OkStatus();
}

UcxWorker::~UcxWorker() {
  if (worker_ != nullptr) Close();
  for (const ucp_datatype_t type : {sealed_type_, arriving_type_}) {
    if (type != 0) ucp_dt_destroy(type);
  }
}

void UcxWorker::Close() {
  if (worker_ == nullptr) return;
  ReleaseParked();
  ucs_status_ptr_t closing = nullptr;
  if (ep_ != nullptr) {
    ucp_request_param_t param = {};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = UCP_EP_CLOSE_FLAG_FORCE;
    closing = ucp_ep_close_nbx(ep_, &param);
    ep_ = nullptr;
  }
  const auto pending = [&] {
    return !operations_.empty() ||
           (UCS_PTR_IS_PTR(closing) && ucp_request_check_status(closing) == UCS_INPROGRESS);
  };
  for (int turn = 0; turn < kCloseTurns && pending(); ++turn) ucp_worker_progress(worker_);
  if (UCS_PTR_IS_PTR(closing)) ucp_request_free(closing);
  ucp_worker_destroy(worker_);
  worker_ = nullptr;
  messages_.clear();
  // With the worker gone nothing can touch these buffers any more.
  while (!operations_.empty()) Finish(*operations_.begin(), UCS_ERR_CANCELED);
}

void UcxWorker::ReleaseParked() {
  for (auto& [id, desc] : parked_) ucp_am_data_release(worker_, desc);
  parked_.clear();
}

absl::Status UcxWorker::Connect(const std::string& address) {
  ucp_ep_params_t params = {};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(address.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = &UcxWorker::OnError;
  params.err_handler.arg = this;
  const ucs_status_t status = ucp_ep_create(worker_, &params, &ep_);
  if (status != UCS_OK) {
    ep_ = nullptr;
    return UcxStatus("connecting", status);
  }
  return absl::OkStatus();
}

void UcxWorker::Send(std::span<const uint8_t> header, Buffer payload) {
  if (ep_ == nullptr || broken_) return;
  auto* operation =
      new Operation{this, {header.begin(), header.end()}, std::move(payload), false, 0};
  const std::span<const uint8_t> bytes = operation->buffer.bytes();
  Post(operation, bytes.data(), bytes.size(), ucp_dt_make_contig(1), bytes.size() <= kInlineBytes);
}

void UcxWorker::SendRows(std::span<const uint8_t> header, SealedRows rows) {
  if (ep_ == nullptr || broken_) return;
  auto* operation = new Operation{this, {header.begin(), header.end()}, {}, false, 0};
  operation->rows.emplace(std::move(rows));
  Post(operation, &*operation->rows, 1, sealed_type_, operation->rows->bytes() <= kInlineBytes);
}

void UcxWorker::Post(Operation* operation, const void* data, size_t count, ucp_datatype_t type,
                     bool inlined) {
  ucp_request_param_t param = {};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                       UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_DATATYPE;
  param.flags = inlined ? UCP_AM_SEND_FLAG_EAGER : UCP_AM_SEND_FLAG_RNDV;
  param.datatype = type;
  param.cb.send = &UcxWorker::OnSendDone;
  param.user_data = operation;
  operations_.insert(operation);
  Track(operation, ucp_am_send_nbx(ep_, kMessageId, operation->header.data(),
                                   operation->header.size(), data, count, &param));
}

void UcxWorker::Receive(uint64_t parked, Buffer into, uint64_t cookie) {
  auto* operation = new Operation{this, {}, std::move(into), true, cookie};
  const std::span<uint8_t> bytes = operation->buffer.bytes();
  Fetch(parked, operation, bytes.data(), bytes.size(), ucp_dt_make_contig(1));
}

void UcxWorker::ReceiveRows(uint64_t parked, std::shared_ptr<ArrivingRows> into, uint64_t cookie) {
  auto* operation = new Operation{this, {}, {}, true, cookie};
  operation->arriving = std::move(into);
  Fetch(parked, operation, operation->arriving.get(), 1, arriving_type_);
}

void UcxWorker::Fetch(uint64_t parked, Operation* operation, void* into, size_t count,
                      ucp_datatype_t type) {
  operations_.insert(operation);
  auto node = parked_.extract(parked);
  if (node.empty()) return Finish(operation, UCS_ERR_NO_ELEM);
  ucp_request_param_t param = {};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                       UCP_OP_ATTR_FIELD_DATATYPE | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
  param.datatype = type;
  param.cb.recv_am = &UcxWorker::OnReceiveDone;
  param.user_data = operation;
  Track(operation, ucp_am_recv_data_nbx(worker_, node.mapped(), into, count, &param));
}

void UcxWorker::Discard(uint64_t parked) {
  auto node = parked_.extract(parked);
  if (!node.empty()) ucp_am_data_release(worker_, node.mapped());
}

void UcxWorker::Track(Operation* operation, ucs_status_ptr_t request) {
  if (request == nullptr) {
    Finish(operation, UCS_OK);
  } else if (UCS_PTR_IS_ERR(request)) {
    Finish(operation, UCS_PTR_STATUS(request));
  }
}

void UcxWorker::Finish(Operation* operation, ucs_status_t status) {
  operations_.erase(operation);
  if (operation->receives) {
    received_.push_back({operation->cookie, std::move(operation->buffer), status == UCS_OK});
  }
  delete operation;
}

void UcxWorker::OnSendDone(void* request, ucs_status_t status, void* operation) {
  auto* done = static_cast<Operation*>(operation);
  ucp_request_free(request);
  done->worker->Finish(done, status);
}

void UcxWorker::OnReceiveDone(void* request, ucs_status_t status, size_t length, void* operation) {
  auto* done = static_cast<Operation*>(operation);
  const bool whole =
      length == (done->arriving ? done->arriving->bytes() : done->buffer.bytes().size());
  ucp_request_free(request);
  done->worker->Finish(done, status == UCS_OK && !whole ? UCS_ERR_MESSAGE_TRUNCATED : status);
}

void UcxWorker::OnError(void* self, ucp_ep_h, ucs_status_t) {
  static_cast<UcxWorker*>(self)->broken_ = true;
}

ucs_status_t UcxWorker::OnActiveMessage(void* self, const void* header, size_t header_length,
                                        void* data, size_t length,
                                        const ucp_am_recv_param_t* param) {
  auto* worker = static_cast<UcxWorker*>(self);
  Incoming message;
  const auto* from = static_cast<const uint8_t*>(header);
  const size_t kept = std::min(header_length, kHeaderBytes + 1);
  if (kept > 0) message.header.assign(from, from + kept);
  message.payload_bytes = length;
  if (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) {
    message.parked = worker->next_parked_;
    worker->parked_.emplace(worker->next_parked_++, data);
    worker->messages_.push_back(std::move(message));
    return UCS_INPROGRESS;
  }
  // Nobody of ours sends more than kInlineBytes eagerly; such a message is kept short and refused.
  const auto* bytes = static_cast<const uint8_t*>(data);
  if (length > 0 && length <= kInlineBytes) message.payload.assign(bytes, bytes + length);
  if (length > kInlineBytes) message.header.clear();
  worker->messages_.push_back(std::move(message));
  return UCS_OK;
}

bool UcxWorker::Progress() { return ucp_worker_progress(worker_) != 0; }

bool UcxWorker::Arm() {
  return messages_.empty() && received_.empty() && ucp_worker_arm(worker_) == UCS_OK;
}

}  // namespace trivium::transfer
