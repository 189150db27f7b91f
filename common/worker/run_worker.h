// The main of every worker: configuration, start-up, serving, drain. A stage adds its service and
// loop.
#pragma once

#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "common/worker/runtime.h"

namespace grpc {
class Service;
}

namespace trivium::worker {

// One stage of the cluster inside a worker process. Thread-safety: all methods, any thread.
class Stage {
 public:
  virtual ~Stage() = default;
  virtual std::vector<grpc::Service*> services() = 0;
  // What it adds to the state that routers watch.
  virtual void Report(v1::WorkerState* state) const = 0;
  virtual void Drain() = 0;  // refuse new requests
  virtual void Stop() = 0;   // end what still runs; after the server is gone
};

using StageFactory = std::function<absl::StatusOr<std::unique_ptr<Stage>>(WorkerRuntime&)>;

// Runs until SIGTERM or SIGINT and gives the exit status. Prints the log event `ready` with the
// port when the model is loaded and the server answers; a failed start is one line on stderr and
// status 1.
int RunWorker(int argc, const char* const* argv, std::string_view role,
              const StageFactory& make_stage);

}  // namespace trivium::worker
