#include "services/prefill/prefill_stage.h"

#include <utility>

#include "common/encode/encode_stage.h"
#include "common/worker/convert.h"
#include "common/worker/setup.h"
#include "common/worker/stream_reactor.h"
#include "services/prefill/step_loop.h"
#include "trivium/v1/stage.grpc.pb.h"

namespace trivium::prefill {
namespace {

double Milliseconds(Duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

// One call. The loop holds it until OnEnd, gRPC until OnDone, which comes after the Close in OnEnd.
class Call final : public worker::StreamReactor<v1::PrefillEvent>, public PrefillSink {
 public:
  Call(StepLoop& loop, const worker::WorkerRuntime& runtime) : loop_(loop), runtime_(runtime) {}

  // Before gRPC has bound the call: no reaction can come yet.
  void Start(const grpc::CallbackServerContext& context, const v1::PrefillRequest& request) {
    if (absl::Status status = Submit(context, request); !status.ok()) {
      runtime_.probe().OnEnd(status);
      Close(std::move(status));
    }
  }

  void OnPullTicket(const transfer::Ticket& ticket) override {
    v1::PrefillEvent event;
    worker::ToMessage(ticket, event.mutable_pull_ticket());
    Push(std::move(event));
  }
  void OnSliceTickets(const std::vector<SliceTicket>& tickets) override {
    v1::PrefillEvent event;
    for (const SliceTicket& ticket : tickets) {
      v1::SliceTicket* out = event.mutable_slice_tickets()->add_tickets();
      out->set_slice(ticket.slice);
      out->set_attempt(ticket.attempt);
      worker::ToMessage(ticket.ticket, out->mutable_ticket());
    }
    Push(std::move(event));
  }
  void OnPromptTokens(const std::vector<worker::OutputToken>& tokens) override {
    v1::PrefillEvent event;
    for (const worker::OutputToken& token : tokens) {
      worker::ToMessage(token, event.mutable_prompt_logprobs()->add_tokens());
    }
    Push(std::move(event));
  }
  void OnFirstToken(const worker::OutputToken& token) override {
    v1::PrefillEvent event;
    worker::ToMessage(token, event.mutable_first_token());
    Push(std::move(event));
  }
  void OnSent(const SentReport& report) override {
    v1::PrefillEvent event;
    v1::PrefillSent& sent = *event.mutable_sent();
    sent.set_kv_bytes(report.transfer.kv_bytes);
    sent.set_header_bytes(report.transfer.header_bytes);
    sent.set_messages(report.transfer.messages);
    sent.set_transfer_ms(Milliseconds(report.transfer.first_send_to_last_ack));
    sent.set_kv_bytes_acked_before_end(report.transfer.kv_bytes_acked_before_finish);
    sent.set_queue_ms(report.queue_s * 1e3);
    sent.set_compute_ms(report.compute_s * 1e3);
    sent.set_cached_tokens(report.cached_tokens);
    sent.set_pulled_tokens(report.pulled_tokens);
    Push(std::move(event));
  }
  void OnEnd(absl::Status status) override { Close(std::move(status)); }
  void OnCancel() override {
    if (number_ != 0) loop_.Cancel(number_);
  }

 private:
  ~Call() override = default;

  absl::Status Submit(const grpc::CallbackServerContext& context,
                      const v1::PrefillRequest& message) {
    RETURN_IF_ERROR(net::FromGrpc(net::CheckClusterToken(context, runtime_.cluster_token())));
    ASSIGN_OR_RETURN(worker::StageRequest request,
                     worker::ToStageRequest(message, runtime_.limits()));
    ASSIGN_OR_RETURN(transfer::Ticket ticket,
                     worker::ToTicket(message.ticket(), request.prompt_tokens()));
    ASSIGN_OR_RETURN(number_, loop_.Submit(std::move(request), std::move(ticket), this));
    return absl::OkStatus();
  }

  StepLoop& loop_;
  const worker::WorkerRuntime& runtime_;
  uint64_t number_ = 0;
};

class PrefillStage final : public worker::Stage, private v1::Prefill::CallbackService {
 public:
  // `encode`: null where other workers encode.
  PrefillStage(worker::WorkerRuntime& runtime, std::unique_ptr<encode::EncodeStage> encode)
      : runtime_(runtime), encode_(std::move(encode)), loop_(runtime.loop_context()) {}

  std::vector<grpc::Service*> services() override {
    if (encode_ == nullptr) return {this};
    return {this, encode_->service()};
  }
  void Report(v1::WorkerState* state) const override {
    if (encode_ != nullptr) encode_->Report(state);
  }
  void Drain() override {
    loop_.Drain();
    if (encode_ != nullptr) encode_->Drain();
  }
  void Stop() override {
    if (encode_ != nullptr) encode_->Stop();
    loop_.Stop();
  }

 private:
  grpc::ServerWriteReactor<v1::PrefillEvent>* Prefill(grpc::CallbackServerContext* context,
                                                      const v1::PrefillRequest* request) override {
    auto* call = new Call(loop_, runtime_);
    call->Start(*context, *request);
    return call;
  }

  worker::WorkerRuntime& runtime_;
  const std::unique_ptr<encode::EncodeStage> encode_;
  StepLoop loop_;
};

absl::StatusOr<std::unique_ptr<encode::EncodeStage>> MakeEncodeStage(
    worker::WorkerRuntime& runtime) {
  if (!runtime.encodes()) return nullptr;
  const v1::WorkerConfig& config = runtime.config();
  ASSIGN_OR_RETURN(std::unique_ptr<kernels::Ops> ops, worker::CreateOps(config.engine()));
  ASSIGN_OR_RETURN(
      std::unique_ptr<encode::EncodeStage> stage,
      encode::EncodeStage::Create(
          {.tower_path = config.pictures().tower(),
           .memory_bytes = runtime.picture_bytes(),
           .requests_max = config.engine().requests_max(),
           .numerics_class = runtime.numerics_class(),
           .ops = std::move(ops),
           .transport = runtime.transport_options(worker::WorkerRuntime::TransportUse::kEncoder),
           .cluster_token = runtime.cluster_token()},
          runtime.make_transport(), &runtime.metrics()));
  if (stage->media().hidden() == runtime.model().config.hidden) return stage;
  return InvalidArgument("pictures.tower: its tokens have {} values, the model's {}",
                         stage->media().hidden(), runtime.model().config.hidden);
}

}  // namespace

absl::StatusOr<std::unique_ptr<worker::Stage>> MakePrefillStage(worker::WorkerRuntime& runtime) {
  ASSIGN_OR_RETURN(std::unique_ptr<encode::EncodeStage> encode, MakeEncodeStage(runtime));
  return std::make_unique<PrefillStage>(runtime, std::move(encode));
}

}  // namespace trivium::prefill
