#include "services/router/api/inference_service.h"

#include <grpcpp/grpcpp.h>

#include <memory>
#include <optional>
#include <utility>

#include "common/net/server.h"
#include "services/router/api/response_outlet.h"
#include "services/router/api/run_handle.h"

namespace trivium::router {
namespace {

grpc::Status ToClient(const absl::Status& status) {
  if (status.code() == absl::StatusCode::kResourceExhausted) {
    return net::ToGrpc(status, kRetryAfter);
  }
  return net::ToGrpc(status);
}

std::vector<std::string> ValuesOf(const grpc::CallbackServerContext& context, const char* name) {
  std::vector<std::string> values;
  const auto [begin, end] = context.client_metadata().equal_range(name);
  for (auto it = begin; it != end; ++it) {
    values.emplace_back(it->second.data(), it->second.size());
  }
  return values;
}

std::optional<TimePoint> DeadlineOf(const grpc::CallbackServerContext& context) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return std::nullopt;
  return Clock::Real().Now() +
         std::chrono::duration_cast<Duration>(deadline - std::chrono::system_clock::now());
}

class GenerateReactor final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                              public ResponseWriter {
 public:
  GenerateReactor() : call_(std::make_shared<Call>(this)) {}
  // What the reactor and the task that starts the run share, because either may end first.
  struct Call {
    explicit Call(ResponseWriter* writer) : outlet(std::make_shared<ResponseOutlet>(writer)) {}
    const std::shared_ptr<ResponseOutlet> outlet;
    RunHandle run;
  };
  const std::shared_ptr<Call>& call() const { return call_; }

  void Write(const v1::GenerateResponse& response) override { StartWrite(&response); }
  void Finish(const absl::Status& status) override {
    grpc::ServerWriteReactor<v1::GenerateResponse>::Finish(ToClient(status));
  }

  void OnWriteDone(bool ok) override {
    const std::shared_ptr<Call> call = call_;
    if (!ok) call->run.Cancel();
    call->outlet->Written(ok);
  }
  void OnCancel() override { call_->run.Cancel(); }
  void OnDone() override { delete this; }

 private:
  const std::shared_ptr<Call> call_;
};

// On a thread of the pool. `request` is gRPC's until the outlet has been given an end.
void StartRun(const Backend& backend, const Caller& caller,
              const net::Parsed<v1::GenerateRequest>& request, std::optional<TimePoint> deadline,
              const std::shared_ptr<GenerateReactor::Call>& call) {
  auto run = request.status.ok() ? backend.Prepare(caller, request.message)
                                 : absl::StatusOr<RunRequest>(request.status);
  if (!run.ok()) {
    backend.metrics->Refused(RefuseReason::kInvalid);
    return call->outlet->OnError(run.status());
  }
  run->deadline = deadline;
  backend.Submit(request.message, *std::move(run), call->outlet,
                 [call](const std::shared_ptr<RequestRun>& started) { call->run.Set(started); });
}

absl::Status FillTokens(const RequestValidator& validator,
                        const net::Parsed<v1::TokenizeRequest>& request,
                        v1::TokenizeResponse* response) {
  RETURN_IF_ERROR(request.status);
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids, validator.Tokenize(request.message));
  for (const int32_t id : ids) {
    response->add_ids(id);
    const std::string_view piece = validator.model().tokenizer->Piece(id, true);
    response->add_pieces(piece.data(), piece.size());
  }
  return absl::OkStatus();
}

}  // namespace

// Two handlers stand in place of the generated ones, at the places that the methods have in the
// proto file.
InferenceService::InferenceService(const Backend& backend, std::string version)
    : backend_(backend), version_(std::move(version)) {
  using Generate = net::Parsed<v1::GenerateRequest>;
  using Tokenize = net::Parsed<v1::TokenizeRequest>;
  MarkMethodCallback(
      0, new grpc::internal::CallbackServerStreamingHandler<Generate, v1::GenerateResponse>(
             [this](grpc::CallbackServerContext* context, const Generate* request) {
               return StartGenerate(context, *request);
             }));
  MarkMethodCallback(1, new grpc::internal::CallbackUnaryHandler<Tokenize, v1::TokenizeResponse>(
                            [this](grpc::CallbackServerContext* context, const Tokenize* request,
                                   v1::TokenizeResponse* response) {
                              return StartTokenize(context, *request, response);
                            }));
}

absl::StatusOr<Caller> InferenceService::CallerOf(
    const grpc::CallbackServerContext& context) const {
  return backend_.Authenticate(
      {ValuesOf(context, "authorization"), ValuesOf(context, "x-api-key")});
}

bool InferenceService::Admits(const grpc::CallbackServerContext& context,
                              grpc::ServerUnaryReactor* reactor) const {
  const absl::StatusOr<Caller> caller = CallerOf(context);
  if (!caller.ok()) reactor->Finish(ToClient(caller.status()));
  return caller.ok();
}

grpc::ServerWriteReactor<v1::GenerateResponse>* InferenceService::StartGenerate(
    grpc::CallbackServerContext* context, const net::Parsed<v1::GenerateRequest>& request) {
  auto* reactor = new GenerateReactor();
  const absl::StatusOr<Caller> caller = CallerOf(*context);
  if (!caller.ok()) {
    reactor->call()->outlet->OnError(caller.status());
    return reactor;
  }
  const absl::Status taken = backend_.Enqueue(
      [this, &request, caller = *caller, deadline = DeadlineOf(*context), call = reactor->call()] {
        StartRun(backend_, caller, request, deadline, call);
      });
  if (!taken.ok()) reactor->call()->outlet->OnError(taken);
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::StartTokenize(
    grpc::CallbackServerContext* context, const net::Parsed<v1::TokenizeRequest>& request,
    v1::TokenizeResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (!Admits(*context, reactor)) return reactor;
  const absl::Status taken = backend_.Enqueue([this, &request, response, reactor] {
    reactor->Finish(ToClient(FillTokens(*backend_.validator, request, response)));
  });
  if (!taken.ok()) reactor->Finish(ToClient(taken));
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::ListModels(grpc::CallbackServerContext* context,
                                                       const v1::ListModelsRequest*,
                                                       v1::ListModelsResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (!Admits(*context, reactor)) return reactor;
  const model::Model& model = backend_.validator->model();
  v1::ModelCard* card = response->add_models();
  card->set_id(backend_.validator->model_id());
  card->set_architecture(model.config.architecture);
  card->set_fingerprint(model.fingerprint);
  card->set_context_tokens(model.config.context);
  card->set_kv_bytes_per_token(model.config.KvBytesPerToken());
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::ClusterStatus(grpc::CallbackServerContext* context,
                                                          const v1::ClusterStatusRequest*,
                                                          v1::ClusterStatusResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (!Admits(*context, reactor)) return reactor;
  response->set_router_version(version_);
  for (v1::WorkerStatus& worker : backend_.dispatcher->Workers()) {
    *response->add_workers() = std::move(worker);
  }
  const Dispatcher::Counts counts = backend_.dispatcher->counts();
  response->set_requests_waiting(counts.waiting);
  response->set_requests_running(counts.running);
  response->set_output_tokens(backend_.metrics->output_tokens());
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

// Whoever may not see a request is told what one is told who asks for none.
grpc::ServerUnaryReactor* InferenceService::Explain(grpc::CallbackServerContext* context,
                                                    const v1::ExplainRequest* request,
                                                    v1::ExplainResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::StatusOr<Caller> caller = CallerOf(*context);
  if (!caller.ok()) {
    reactor->Finish(ToClient(caller.status()));
    return reactor;
  }
  for (Dispatcher::Explanation& one : backend_.dispatcher->Explain(request->request_id())) {
    if (one.tenant != caller->tenant && !caller->is_administrator) continue;
    response->add_placements(std::move(one.text));
  }
  const bool is_found = response->placements_size() > 0;
  reactor->Finish(is_found ? grpc::Status::OK
                           : grpc::Status(grpc::StatusCode::NOT_FOUND,
                                          "request_id names none of your latest requests"));
  return reactor;
}

}  // namespace trivium::router
