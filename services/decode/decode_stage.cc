#include "services/decode/decode_stage.h"

#include <utility>

#include "common/worker/convert.h"
#include "common/worker/stream_reactor.h"
#include "services/decode/step_loop.h"
#include "trivium/v1/stage.grpc.pb.h"

namespace trivium::decode {
namespace {

// One call. The loop holds it until OnEnd, gRPC until OnDone, which comes after the Close in OnEnd.
class Call final : public worker::StreamReactor<v1::DecodeEvent>, public DecodeSink {
 public:
  Call(StepLoop& loop, const worker::WorkerRuntime& runtime) : loop_(loop), runtime_(runtime) {}

  // Before gRPC has bound the call: no reaction can come yet.
  void Start(const grpc::CallbackServerContext& context, const v1::DecodeRequest& request) {
    auto submitted = Submit(context, request);
    if (!submitted.ok()) {
      runtime_.probe().OnEnd(submitted.status());
      Close(std::move(submitted).status());
      return;
    }
    number_ = submitted->number;
    if (!submitted->ticket.has_value()) return;
    v1::DecodeEvent event;
    worker::ToMessage(*submitted->ticket, event.mutable_ticket());
    Push(std::move(event));
  }

  void OnPrefilled(const PrefillReport& report) override {
    v1::DecodeEvent event;
    event.mutable_prefilled()->set_cached_tokens(report.cached_tokens);
    event.mutable_prefilled()->set_queue_ms(report.queue_s * 1e3);
    event.mutable_prefilled()->set_compute_ms(report.compute_s * 1e3);
    Push(std::move(event));
  }
  void OnToken(const worker::OutputToken& token) override {
    v1::DecodeEvent event;
    worker::ToMessage(token, event.mutable_token());
    Push(std::move(event));
  }
  void OnEnd(absl::Status status) override { Close(std::move(status)); }
  void OnCancel() override {
    if (number_ != 0) loop_.Cancel(number_);
  }

 private:
  ~Call() override = default;

  absl::StatusOr<StepLoop::Submitted> Submit(const grpc::CallbackServerContext& context,
                                             const v1::DecodeRequest& message) {
    RETURN_IF_ERROR(net::FromGrpc(net::CheckClusterToken(context, runtime_.cluster_token())));
    ASSIGN_OR_RETURN(worker::StageRequest request,
                     worker::ToStageRequest(message, runtime_.limits()));
    return loop_.Submit(std::move(request), this);
  }

  StepLoop& loop_;
  const worker::WorkerRuntime& runtime_;
  uint64_t number_ = 0;
};

class DecodeStage final : public worker::Stage, private v1::Decode::CallbackService {
 public:
  explicit DecodeStage(worker::WorkerRuntime& runtime)
      : runtime_(runtime), loop_(runtime.loop_context()) {}

  std::vector<grpc::Service*> services() override { return {this}; }
  void Report(v1::WorkerState*) const override {}
  void Drain() override { loop_.Drain(); }
  void Stop() override { loop_.Stop(); }

 private:
  grpc::ServerWriteReactor<v1::DecodeEvent>* Decode(grpc::CallbackServerContext* context,
                                                    const v1::DecodeRequest* request) override {
    auto* call = new Call(loop_, runtime_);
    call->Start(*context, *request);
    return call;
  }
  grpc::ServerUnaryReactor* EndChoice(grpc::CallbackServerContext* context,
                                      const v1::EndChoiceRequest* request,
                                      v1::EndChoiceResponse*) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    grpc::Status status = net::CheckClusterToken(*context, runtime_.cluster_token());
    if (status.ok()) {
      const auto key = worker::ToCredentials(request->key());
      if (key.ok()) loop_.EndChoice(*key, request->choice());
      status = net::ToGrpc(key.status());
    }
    reactor->Finish(status);
    return reactor;
  }

  worker::WorkerRuntime& runtime_;
  StepLoop loop_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<worker::Stage>> MakeDecodeStage(worker::WorkerRuntime& runtime) {
  return std::make_unique<DecodeStage>(runtime);
}

}  // namespace trivium::decode
