// What stands behind each door of the router, whatever protocol the door speaks.
// Thread-safety: as its parts; all of them outlive the doors.
#pragma once

#include <functional>
#include <utility>

#include "services/router/api/task_pool.h"
#include "services/router/api/validation.h"
#include "services/router/dispatch/dispatcher.h"
#include "services/router/dispatch/router_metrics.h"

namespace trivium::router {

struct Backend {
  const RequestValidator* validator = nullptr;
  Dispatcher* dispatcher = nullptr;
  TaskPool* tasks = nullptr;
  RouterMetrics* metrics = nullptr;

  // RESOURCE_EXHAUSTED: `task` is not run, which is counted.
  absl::Status Enqueue(std::function<void()> task) const {
    if (tasks->Run(std::move(task))) return absl::OkStatus();
    metrics->Refused(RefuseReason::kBusy);
    return ResourceExhausted("too many prompts wait to be tokenised");
  }
};

}  // namespace trivium::router
