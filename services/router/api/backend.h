// What stands behind each door of the router, whatever protocol the door speaks.
// Thread-safety: as its parts; all of them outlive the doors.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "services/router/api/task_pool.h"
#include "services/router/api/validation.h"
#include "services/router/dispatch/dispatcher.h"
#include "services/router/dispatch/router_metrics.h"
#include "services/router/tenancy/domains.h"
#include "services/router/tenancy/tenants.h"

namespace trivium::router {

class CacheService;

// Called with the run, where one is needed; null where it was refused.
using RunStarted = std::function<void(const std::shared_ptr<RequestRun>&)>;

struct Backend {
  const RequestValidator* validator = nullptr;
  const Tenants* tenants = nullptr;
  const Domains* domains = nullptr;
  Dispatcher* dispatcher = nullptr;
  TaskPool* tasks = nullptr;
  RouterMetrics* metrics = nullptr;
  CacheService* cache = nullptr;  // of answers; null: there is none

  // UNAUTHENTICATED is counted.
  absl::StatusOr<Caller> Authenticate(const Credentials& credentials) const {
    absl::StatusOr<Caller> caller = tenants->Authenticate(credentials);
    if (!caller.ok()) metrics->Refused(RefuseReason::kUnauthenticated);
    return caller;
  }

  // What the validator makes of it, with the caller's tenant and the sharing domains of its KV.
  absl::StatusOr<RunRequest> Prepare(const Caller& caller,
                                     const v1::GenerateRequest& request) const {
    RETURN_IF_ERROR(CheckCacheHints(request.cache()));
    ASSIGN_OR_RETURN(RunRequest run, validator->Prepare(request));
    run.tenant = caller.tenant;
    run.share = domains->ShareOf(caller.tenant);
    ASSIGN_OR_RETURN(run.kv_domains,
                     domains->For(caller.tenant, request.kv_sharing(), run.prompt_ids));
    for (const std::shared_ptr<RunPicture>& picture : run.pictures) {
      picture->domain = domains->ForPicture(picture->digest, run.kv_domains);
      picture->key = Domains::KeyOf(picture->digest, picture->domain);
    }
    return run;
  }

  absl::Status CheckCacheHints(const v1::CacheHints& hints) const;
  // To the cache where there is one, else to the dispatcher. `request` is what `run` was made of.
  void Submit(const v1::GenerateRequest& request, RunRequest run,
              std::shared_ptr<ResponseSink> sink, const RunStarted& started) const;

  // RESOURCE_EXHAUSTED: `task` is not run, which is counted.
  absl::Status Enqueue(std::function<void()> task) const {
    if (tasks->Run(std::move(task))) return absl::OkStatus();
    metrics->Refused(RefuseReason::kBusy);
    return ResourceExhausted("too many prompts wait to be tokenised");
  }
};

}  // namespace trivium::router
