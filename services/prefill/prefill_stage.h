// The prefill stage as a gRPC service: thin reactors over StepLoop. Thread-safety: any thread.
#pragma once

#include <memory>

#include "common/worker/run_worker.h"

namespace trivium::prefill {

// The runtime outlives the stage. An error is one readable line.
absl::StatusOr<std::unique_ptr<worker::Stage>> MakePrefillStage(worker::WorkerRuntime& runtime);

}  // namespace trivium::prefill
