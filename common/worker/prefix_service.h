// Holder.SendPrefix: thin reactors over PrefixSender. Thread-safety: all methods, any thread.
#pragma once

#include "common/worker/runtime.h"
#include "trivium/v1/stage.grpc.pb.h"

namespace trivium::worker {

class PrefixService final : public v1::Holder::CallbackService {
 public:
  // The runtime outlives the service.
  explicit PrefixService(const WorkerRuntime& runtime) : runtime_(runtime) {}

  grpc::ServerWriteReactor<v1::PrefixSent>* SendPrefix(
      grpc::CallbackServerContext* context, const v1::SendPrefixRequest* request) override;

 private:
  const WorkerRuntime& runtime_;
};

}  // namespace trivium::worker
