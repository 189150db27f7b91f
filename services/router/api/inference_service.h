// trivium.v1.Inference over gRPC: thin reactors over the validator and the dispatcher.
// Thread-safety: gRPC's threads; no method blocks.
#pragma once

#include <string>

#include "common/net/parsed.h"
#include "services/router/api/backend.h"
#include "trivium/v1/inference.grpc.pb.h"

namespace trivium::router {

class InferenceService final : public v1::Inference::CallbackService {
 public:
  InferenceService(const Backend& backend, std::string version);

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* ClusterStatus(grpc::CallbackServerContext* context,
                                          const v1::ClusterStatusRequest* request,
                                          v1::ClusterStatusResponse* response) override;
  grpc::ServerUnaryReactor* Explain(grpc::CallbackServerContext* context,
                                    const v1::ExplainRequest* request,
                                    v1::ExplainResponse* response) override;

  // In inference_cache.cc.
  grpc::ServerUnaryReactor* Embed(grpc::CallbackServerContext* context,
                                  const v1::EmbedRequest* request,
                                  v1::EmbedResponse* response) override;
  grpc::ServerUnaryReactor* CacheStats(grpc::CallbackServerContext* context,
                                       const v1::CacheStatsRequest* request,
                                       v1::CacheStatsResponse* response) override;
  grpc::ServerUnaryReactor* CacheExplain(grpc::CallbackServerContext* context,
                                         const v1::GenerateRequest* request,
                                         v1::CacheExplainResponse* response) override;
  grpc::ServerUnaryReactor* CacheInvalidate(grpc::CallbackServerContext* context,
                                            const v1::CacheInvalidateRequest* request,
                                            v1::CacheInvalidateResponse* response) override;

 private:
  absl::StatusOr<Caller> CallerOf(const grpc::CallbackServerContext& context) const;
  // False: the caller is not known, and the call has been ended.
  bool Admits(const grpc::CallbackServerContext& context, grpc::ServerUnaryReactor* reactor) const;
  // The same where there is a cache.
  bool AdmitsToCache(const grpc::CallbackServerContext& context, grpc::ServerUnaryReactor* reactor,
                     Caller* caller) const;
  grpc::ServerWriteReactor<v1::GenerateResponse>* StartGenerate(
      grpc::CallbackServerContext* context, const net::Parsed<v1::GenerateRequest>& request);
  grpc::ServerUnaryReactor* StartTokenize(grpc::CallbackServerContext* context,
                                          const net::Parsed<v1::TokenizeRequest>& request,
                                          v1::TokenizeResponse* response);

  const Backend backend_;
  const std::string version_;
};

}  // namespace trivium::router
