// The encode stage as a gRPC service: thin reactors over EncodeLoop. Thread-safety: any thread.
#pragma once

#include <string>
#include <utility>

#include "common/encode/encode_loop.h"
#include "trivium/v1/stage.grpc.pb.h"

namespace trivium::encode {

// Errors are INVALID_ARGUMENT and name the field; FAILED_PRECONDITION for another tower or numerics
// class than that of `context`.
absl::StatusOr<EncodeRequest> ToEncodeRequest(const v1::EncodeRequest& message,
                                              const EncodeContext& context);

class EncodeService final : public v1::Encode::CallbackService {
 public:
  // The loop outlives the service.
  EncodeService(EncodeContext context, EncodeLoop* loop, std::string cluster_token)
      : context_(std::move(context)), loop_(*loop), cluster_token_(std::move(cluster_token)) {}

  grpc::ServerWriteReactor<v1::EncodeEvent>* Encode(grpc::CallbackServerContext* context,
                                                    const v1::EncodeRequest* request) override;

 private:
  const EncodeContext context_;
  EncodeLoop& loop_;
  const std::string cluster_token_;
};

}  // namespace trivium::encode
