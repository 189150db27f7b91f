// The decode stage as a gRPC service: thin reactors over StepLoop. Thread-safety: any thread.
#pragma once

#include <memory>

#include "common/worker/run_worker.h"

namespace trivium::decode {

// The runtime outlives the stage.
absl::StatusOr<std::unique_ptr<worker::Stage>> MakeDecodeStage(worker::WorkerRuntime& runtime);

}  // namespace trivium::decode
