#include "common/encode/encode_service.h"

#include <utility>

#include "common/worker/convert.h"
#include "common/worker/stream_reactor.h"

namespace trivium::encode {
namespace {

constexpr double kPullMsMax = 60000;

// One call. The loop holds it until OnEnd, gRPC until OnDone, which comes after the Close in OnEnd.
class Call final : public worker::StreamReactor<v1::EncodeEvent>, public EncodeSink {
 public:
  Call(EncodeLoop& loop, const EncodeContext& context) : loop_(loop), context_(context) {}

  // Before gRPC has bound the call: no reaction can come yet.
  void Start(const grpc::Status& allowed, const v1::EncodeRequest& message) {
    if (absl::Status status = Submit(allowed, message); !status.ok()) {
      context_.probe->OnEnd(status);
      Close(std::move(status));
    }
  }

  void OnElsewhere(const SlicesElsewhere& slices) override {
    v1::EncodeEvent event;
    v1::SlicesElsewhere& elsewhere = *event.mutable_elsewhere();
    elsewhere.set_picture_key(slices.picture_key);
    for (const WantedSlice& slice : slices.slices) {
      v1::WantedSlice* message = elsewhere.add_slices();
      message->set_slice(slice.slice);
      worker::ToMessage(slice.ticket, message->mutable_ticket());
    }
    Push(std::move(event));
  }
  void OnSlice(const SliceReport& report) override {
    v1::EncodeEvent event;
    v1::SliceSent& sent = *event.mutable_sent();
    sent.set_slice(report.slice);
    sent.set_cached(report.cached);
    sent.set_pulled(report.pulled);
    sent.set_bytes(report.bytes);
    sent.set_queue_ms(report.queue_s * 1e3);
    sent.set_encode_ms(report.encode_s * 1e3);
    sent.set_transfer_ms(report.transfer_s * 1e3);
    Push(std::move(event));
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
  bool pulls = false;
  for (const v1::WantedSlice& wanted : message.slices()) {
    ASSIGN_OR_RETURN(transfer::Ticket ticket,
                     worker::ToTicket(wanted.ticket(), wanted.ticket().token_end()));
    request.slices.push_back({wanted.slice(), std::move(ticket), wanted.held_elsewhere()});
    pulls |= wanted.held_elsewhere();
  }
  if (pulls) {
    // Written so that NaN is refused too.
    if (!(message.pull_ms() > 0 && message.pull_ms() <= kPullMsMax)) {
      return InvalidArgument("pull_ms is {}, must be in (0, {}]", message.pull_ms(), kPullMsMax);
    }
    request.pull_for = std::chrono::duration_cast<Duration>(
        std::chrono::duration<double, std::milli>(message.pull_ms()));
  }
  if (message.has_domain()) {
    ASSIGN_OR_RETURN(request.domain, worker::ToDomain(message.domain()));
  }
  if (message.has_share()) {
    ASSIGN_OR_RETURN(request.share, worker::ToShare(message.share()));
  }
  request.picture = message.picture();
  request.picture_key = message.picture_key();
  return request;
}

grpc::ServerWriteReactor<v1::EncodeEvent>* EncodeService::Encode(
    grpc::CallbackServerContext* context, const v1::EncodeRequest* request) {
  auto* call = new Call(loop_, context_);
  call->Start(net::CheckClusterToken(*context, cluster_token_), *request);
  return call;
}

}  // namespace trivium::encode
