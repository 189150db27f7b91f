// How a request speaks to the workers, without knowing what carries the words. The real
// implementation is GrpcStageClients; tests script one to decide the order of events.
// Thread-safety: all methods, any thread; none blocks.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "common/base/clock.h"
#include "common/base/status.h"
#include "services/router/scheduler/placement.h"
#include "trivium/v1/stage.pb.h"

namespace trivium::router {

// A stream that was opened. Destroying the handle neither cancels nor waits.
class StageCall {
 public:
  virtual ~StageCall() = default;
  virtual void Cancel() = 0;  // events may still come; on_end always does
};

// Called on any thread, one at a time and in order; on_end exactly once and last. They may be
// called before the opening function returns.
template <typename Event>
struct StageHandlers {
  std::function<void(const Event&)> on_event;
  std::function<void(const absl::Status&)> on_end;
};

class StageClients {
 public:
  virtual ~StageClients() = default;
  virtual std::shared_ptr<StageCall> Prefill(WorkerIndex worker, const v1::PrefillRequest& request,
                                             std::optional<TimePoint> deadline,
                                             StageHandlers<v1::PrefillEvent> handlers) = 0;
  // Any worker may hold a prefix.
  virtual std::shared_ptr<StageCall> SendPrefix(WorkerIndex worker,
                                                const v1::SendPrefixRequest& request,
                                                std::optional<TimePoint> deadline,
                                                StageHandlers<v1::PrefixSent> handlers) = 0;
  virtual std::shared_ptr<StageCall> Decode(WorkerIndex worker, const v1::DecodeRequest& request,
                                            std::optional<TimePoint> deadline,
                                            StageHandlers<v1::DecodeEvent> handlers) = 0;
  // Any worker that encodes, in whichever role.
  virtual std::shared_ptr<StageCall> Encode(WorkerIndex worker, const v1::EncodeRequest& request,
                                            std::optional<TimePoint> deadline,
                                            StageHandlers<v1::EncodeEvent> handlers) = 0;
  // Tells a decode worker to spare the work. Whether it arrives or not, answers are the same.
  virtual void EndChoice(WorkerIndex worker, const v1::EndChoiceRequest& request) = 0;
};

}  // namespace trivium::router
