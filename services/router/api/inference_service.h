// trivium.v1.Inference over gRPC: thin reactors over the validator and the dispatcher.
// Thread-safety: gRPC's threads; no method blocks.
#pragma once

#include <string>

#include "common/net/parsed.h"
#include "services/router/api/task_pool.h"
#include "services/router/api/validation.h"
#include "services/router/dispatch/dispatcher.h"
#include "services/router/dispatch/router_metrics.h"
#include "trivium/v1/inference.grpc.pb.h"

namespace trivium::router {

class InferenceService final : public v1::Inference::CallbackService {
 public:
  // Everything outlives the service.
  struct Parts {
    const RequestValidator* validator = nullptr;
    Dispatcher* dispatcher = nullptr;
    TaskPool* tasks = nullptr;
    RouterMetrics* metrics = nullptr;
    std::string version;
  };
  explicit InferenceService(Parts parts);

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* ClusterStatus(grpc::CallbackServerContext* context,
                                          const v1::ClusterStatusRequest* request,
                                          v1::ClusterStatusResponse* response) override;

 private:
  grpc::ServerWriteReactor<v1::GenerateResponse>* StartGenerate(
      grpc::CallbackServerContext* context, const net::Parsed<v1::GenerateRequest>& request);
  grpc::ServerUnaryReactor* StartTokenize(grpc::CallbackServerContext* context,
                                          const net::Parsed<v1::TokenizeRequest>& request,
                                          v1::TokenizeResponse* response);

  const Parts parts_;
};

}  // namespace trivium::router
