#include "services/router/dispatch/grpc_clients.h"

#include <grpcpp/grpcpp.h>

#include <condition_variable>
#include <mutex>
#include <utility>

#include "common/net/server.h"
#include "trivium/v1/stage.grpc.pb.h"

namespace trivium::router {

// How many reactors gRPC may still call.
class CallCount {
 public:
  void Begin() {
    std::lock_guard lock(mutex_);
    ++calls_;
  }
  void End() {
    std::lock_guard lock(mutex_);
    if (--calls_ == 0) none_.notify_all();
  }
  void AwaitNone() {
    std::unique_lock lock(mutex_);
    none_.wait(lock, [&] { return calls_ == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable none_;
  int calls_ = 0;
};

namespace {

// One server stream. It keeps itself alive until gRPC has called OnDone; the handle that the run
// holds may go before or after.
template <typename Request, typename Event>
class StreamCall final : public grpc::ClientReadReactor<Event>, public StageCall {
 public:
  StreamCall(const Request& request, StageHandlers<Event> handlers,
             std::shared_ptr<CallCount> calls)
      : request_(request), handlers_(std::move(handlers)), calls_(std::move(calls)) {}

  grpc::ClientContext* context() { return &context_; }
  const Request* request() const { return &request_; }

  void Start(std::shared_ptr<StreamCall> self) {
    self_ = std::move(self);
    calls_->Begin();
    this->StartRead(&event_);
    this->StartCall();
  }
  void Cancel() override { context_.TryCancel(); }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    handlers_.on_event(event_);
    this->StartRead(&event_);
  }
  void OnDone(const grpc::Status& status) override {
    handlers_.on_end(net::FromGrpc(status));
    // Handlers hold the run, the run holds this call.
    handlers_ = {};
    const std::shared_ptr<CallCount> calls = std::move(calls_);
    self_.reset();
    calls->End();
  }

 private:
  grpc::ClientContext context_;
  const Request request_;
  StageHandlers<Event> handlers_;
  std::shared_ptr<CallCount> calls_;
  Event event_;
  std::shared_ptr<StreamCall> self_;
};

void Prepare(grpc::ClientContext* context, const std::string& cluster_token,
             const std::string& request_id, std::optional<TimePoint> deadline, TimePoint now) {
  if (!cluster_token.empty()) context->AddMetadata(net::kClusterTokenKey, cluster_token);
  context->AddMetadata(net::kRequestIdKey, request_id);
  if (!deadline.has_value()) return;
  context->set_deadline(std::chrono::system_clock::now() +
                        std::chrono::duration_cast<std::chrono::microseconds>(*deadline - now));
}

// Enough for a worker that is there; for one that is not, the attempt fails anyway.
constexpr Duration kEndChoiceTimeout = std::chrono::seconds(2);

struct EndChoiceCall {
  grpc::ClientContext context;
  v1::EndChoiceRequest request;
  v1::EndChoiceResponse response;
};

}  // namespace

struct GrpcStageClients::Stubs {
  std::vector<std::unique_ptr<v1::Prefill::Stub>> prefill;
  std::vector<std::unique_ptr<v1::Decode::Stub>> decode;
  std::vector<std::unique_ptr<v1::Holder::Stub>> holder;
  std::vector<std::unique_ptr<v1::Encode::Stub>> encode;
};

GrpcStageClients::GrpcStageClients(const std::vector<std::shared_ptr<grpc::Channel>>& channels,
                                   std::string cluster_token, Clock* clock)
    : cluster_token_(std::move(cluster_token)),
      clock_(*clock),
      stubs_(std::make_unique<Stubs>()),
      calls_(std::make_shared<CallCount>()) {
  for (const std::shared_ptr<grpc::Channel>& channel : channels) {
    stubs_->prefill.push_back(v1::Prefill::NewStub(channel));
    stubs_->decode.push_back(v1::Decode::NewStub(channel));
    stubs_->holder.push_back(v1::Holder::NewStub(channel));
    stubs_->encode.push_back(v1::Encode::NewStub(channel));
  }
}

GrpcStageClients::~GrpcStageClients() { calls_->AwaitNone(); }

std::shared_ptr<StageCall> GrpcStageClients::Prefill(WorkerIndex worker,
                                                     const v1::PrefillRequest& request,
                                                     std::optional<TimePoint> deadline,
                                                     StageHandlers<v1::PrefillEvent> handlers) {
  auto call = std::make_shared<StreamCall<v1::PrefillRequest, v1::PrefillEvent>>(
      request, std::move(handlers), calls_);
  Prepare(call->context(), cluster_token_, request.key().request_id(), deadline, clock_.Now());
  stubs_->prefill[worker]->async()->Prefill(call->context(), call->request(), call.get());
  call->Start(call);
  return call;
}

std::shared_ptr<StageCall> GrpcStageClients::SendPrefix(WorkerIndex worker,
                                                        const v1::SendPrefixRequest& request,
                                                        std::optional<TimePoint> deadline,
                                                        StageHandlers<v1::PrefixSent> handlers) {
  auto call = std::make_shared<StreamCall<v1::SendPrefixRequest, v1::PrefixSent>>(
      request, std::move(handlers), calls_);
  Prepare(call->context(), cluster_token_, request.key().request_id(), deadline, clock_.Now());
  stubs_->holder[worker]->async()->SendPrefix(call->context(), call->request(), call.get());
  call->Start(call);
  return call;
}

std::shared_ptr<StageCall> GrpcStageClients::Decode(WorkerIndex worker,
                                                    const v1::DecodeRequest& request,
                                                    std::optional<TimePoint> deadline,
                                                    StageHandlers<v1::DecodeEvent> handlers) {
  auto call = std::make_shared<StreamCall<v1::DecodeRequest, v1::DecodeEvent>>(
      request, std::move(handlers), calls_);
  Prepare(call->context(), cluster_token_, request.key().request_id(), deadline, clock_.Now());
  stubs_->decode[worker]->async()->Decode(call->context(), call->request(), call.get());
  call->Start(call);
  return call;
}

std::shared_ptr<StageCall> GrpcStageClients::Encode(WorkerIndex worker,
                                                    const v1::EncodeRequest& request,
                                                    std::optional<TimePoint> deadline,
                                                    StageHandlers<v1::EncodeEvent> handlers) {
  auto call = std::make_shared<StreamCall<v1::EncodeRequest, v1::EncodeEvent>>(
      request, std::move(handlers), calls_);
  Prepare(call->context(), cluster_token_, request.key().request_id(), deadline, clock_.Now());
  stubs_->encode[worker]->async()->Encode(call->context(), call->request(), call.get());
  call->Start(call);
  return call;
}

void GrpcStageClients::EndChoice(WorkerIndex worker, const v1::EndChoiceRequest& request) {
  auto call = std::make_shared<EndChoiceCall>();
  call->request = request;
  const TimePoint now = clock_.Now();
  Prepare(&call->context, cluster_token_, request.key().request_id(), now + kEndChoiceTimeout, now);
  calls_->Begin();
  stubs_->decode[worker]->async()->EndChoice(&call->context, &call->request, &call->response,
                                             [call, calls = calls_](const grpc::Status&) mutable {
                                               call.reset();
                                               calls->End();
                                             });
}

}  // namespace trivium::router
