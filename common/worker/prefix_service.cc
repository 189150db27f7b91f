#include "common/worker/prefix_service.h"

#include <utility>

#include "common/worker/convert.h"
#include "common/worker/prefix_sender.h"
#include "common/worker/stream_reactor.h"

namespace trivium::worker {
namespace {

// One call. The sender holds it until it has ended, gRPC until OnDone, which comes after Close.
class Call final : public StreamReactor<v1::PrefixSent> {
 public:
  explicit Call(const WorkerRuntime& runtime) : runtime_(runtime) {}

  // Before gRPC has bound the call: no reaction can come yet.
  void Start(const grpc::CallbackServerContext& context, const v1::SendPrefixRequest& message) {
    if (absl::Status status = Begin(context, message); !status.ok()) Close(std::move(status));
  }
  void OnCancel() override {
    if (number_ != 0) runtime_.prefix_sender().Cancel(number_);
  }

 private:
  ~Call() override = default;

  absl::Status Begin(const grpc::CallbackServerContext& context,
                     const v1::SendPrefixRequest& message) {
    RETURN_IF_ERROR(net::FromGrpc(net::CheckClusterToken(context, runtime_.cluster_token())));
    ASSIGN_OR_RETURN(const PrefixRequest request, ToPrefixRequest(message, runtime_.limits()));
    ASSIGN_OR_RETURN(number_, runtime_.prefix_sender().Send(
                                  request, [this](absl::StatusOr<PrefixReport> report) {
                                    End(std::move(report));
                                  }));
    return absl::OkStatus();
  }

  void End(absl::StatusOr<PrefixReport> report) {
    if (!report.ok()) return Close(report.status());
    v1::PrefixSent sent;
    sent.set_tokens(report->tokens);
    sent.set_kv_bytes(report->transfer.kv_bytes);
    sent.set_transfer_ms(
        std::chrono::duration<double, std::milli>(report->transfer.first_send_to_last_ack).count());
    Push(std::move(sent));
    Close(absl::OkStatus());
  }

  const WorkerRuntime& runtime_;
  uint64_t number_ = 0;
};

}  // namespace

grpc::ServerWriteReactor<v1::PrefixSent>* PrefixService::SendPrefix(
    grpc::CallbackServerContext* context, const v1::SendPrefixRequest* request) {
  auto* call = new Call(runtime_);
  call->Start(*context, *request);
  return call;
}

}  // namespace trivium::worker
