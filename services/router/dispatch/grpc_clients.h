// The stage clients that speak gRPC: one channel a worker, one callback stream a call. Reactors are
// thin: they hand every message over and read on; nothing here blocks but the destructor.
// Thread-safety: all methods, any thread.
#pragma once

#include <grpcpp/channel.h>

#include <memory>
#include <string>
#include <vector>

#include "services/router/dispatch/stage_clients.h"

namespace trivium::router {

class CallCount;

class GrpcStageClients final : public StageClients {
 public:
  // Channels in the order of the router's worker list. `cluster_token` may be empty.
  GrpcStageClients(const std::vector<std::shared_ptr<grpc::Channel>>& channels,
                   std::string cluster_token, Clock* clock = &Clock::Real());
  // Waits until every call has ended; cancel them before.
  ~GrpcStageClients() override;

  std::shared_ptr<StageCall> Prefill(WorkerIndex worker, const v1::PrefillRequest& request,
                                     std::optional<TimePoint> deadline,
                                     StageHandlers<v1::PrefillEvent> handlers) override;
  std::shared_ptr<StageCall> SendPrefix(WorkerIndex worker, const v1::SendPrefixRequest& request,
                                        std::optional<TimePoint> deadline,
                                        StageHandlers<v1::PrefixSent> handlers) override;
  std::shared_ptr<StageCall> Decode(WorkerIndex worker, const v1::DecodeRequest& request,
                                    std::optional<TimePoint> deadline,
                                    StageHandlers<v1::DecodeEvent> handlers) override;
  std::shared_ptr<StageCall> Encode(WorkerIndex worker, const v1::EncodeRequest& request,
                                    std::optional<TimePoint> deadline,
                                    StageHandlers<v1::EncodeEvent> handlers) override;
  void EndChoice(WorkerIndex worker, const v1::EndChoiceRequest& request) override;

 private:
  struct Stubs;
  const std::string cluster_token_;
  Clock& clock_;
  std::unique_ptr<Stubs> stubs_;
  std::shared_ptr<CallCount> calls_;
};

}  // namespace trivium::router
