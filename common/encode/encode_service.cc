#include "common/encode/encode_service.h"

#include <utility>

#include "common/worker/convert.h"
#include "common/worker/stream_reactor.h"

namespace trivium::encode {
namespace {

constexpr int kSlicesMax = 4096;

// One call. The loop holds it until OnEnd, gRPC until OnDone, which comes after the Close in OnEnd.
class Call final : public worker::StreamReactor<v1::SliceSent>, public EncodeSink {
 public:
  Call(EncodeLoop& loop, const EncodeContext& context) : loop_(loop), context_(context) {}

  // Before gRPC has bound the call: no reaction can come yet.
  void Start(const grpc::Status& allowed, const v1::EncodeRequest& message) {
    if (absl::Status status = Submit(allowed, message); !status.ok()) {
      context_.probe->OnEnd(status);
      Close(std::move(status));
    }
  }

  void OnSlice(const SliceReport& report) override {
    v1::SliceSent sent;
    sent.set_slice(report.slice);
    sent.set_cached(report.cached);
    sent.set_bytes(report.bytes);
    sent.set_queue_ms(report.queue_s * 1e3);
    sent.set_encode_ms(report.encode_s * 1e3);
    sent.set_transfer_ms(report.transfer_s * 1e3);
    Push(std::move(sent));
  }
  void OnEnd(absl::Status status) override { Close(std::move(status)); }
  void OnCancel() override {
    if (number_ != 0) loop_.Cancel(number_);
  }

 private:
  ~Call() override = default;

  absl::Status Submit(const grpc::Status& allowed, const v1::EncodeRequest& message) {
    RETURN_IF_ERROR(net::FromGrpc(allowed));
    ASSIGN_OR_RETURN(EncodeRequest request, ToEncodeRequest(message, context_));
    ASSIGN_OR_RETURN(number_, loop_.Submit(std::move(request), this));
    return absl::OkStatus();
  }

  EncodeLoop& loop_;
  const EncodeContext& context_;
  uint64_t number_ = 0;
};

}  // namespace

absl::StatusOr<EncodeRequest> ToEncodeRequest(const v1::EncodeRequest& message,
                                              const EncodeContext& context) {
  if (message.tower() != context.encoder->tower().fingerprint) {
    return FailedPrecondition("tower is not that of this worker");
  }
  RETURN_IF_ERROR(worker::CheckNumerics(context.numerics_class, message.numerics_class()));
  EncodeRequest request;
  ASSIGN_OR_RETURN(request.key, worker::ToCredentials(message.key()));
  if (message.slices_size() < 1 || message.slices_size() > kSlicesMax) {
    return InvalidArgument("slices has {} entries, must have 1 … {}", message.slices_size(),
                           kSlicesMax);
  }
  for (const v1::WantedSlice& wanted : message.slices()) {
    ASSIGN_OR_RETURN(transfer::Ticket ticket,
                     worker::ToTicket(wanted.ticket(), wanted.ticket().token_end()));
    request.slices.push_back({wanted.slice(), std::move(ticket)});
  }
  if (message.has_domain()) {
    ASSIGN_OR_RETURN(request.domain, worker::ToDomain(message.domain()));
  }
  request.picture = message.picture();
  return request;
}

grpc::ServerWriteReactor<v1::SliceSent>* EncodeService::Encode(grpc::CallbackServerContext* context,
                                                               const v1::EncodeRequest* request) {
  auto* call = new Call(loop_, context_);
  call->Start(net::CheckClusterToken(*context, cluster_token_), *request);
  return call;
}

}  // namespace trivium::encode
