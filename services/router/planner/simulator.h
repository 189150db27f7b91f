// A cluster with a virtual clock: the router's own queue, ledger, prefix index and Choose, over
// workers that are nothing but times. For comparing policies before they meet real requests, and
// for clusters larger than anybody's desk.
//
// A prefill worker serves one prompt after another, at its measured cost, less the leading blocks
// that its pool holds (least recently used go first). A decode worker serves all its requests at
// once, the slower the more there are. What workers report is known at once.
// Deterministic: the same trace and options give the same report. Thread-safety: none.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "services/router/planner/trace.h"
#include "services/router/scheduler/admission_queue.h"
#include "services/router/scheduler/placement.h"

namespace trivium::router {

struct SimClusterOptions {
  int prefill_workers = 8, decode_workers = 8;
  StepCost prefill{.per_row_s = 1e-3, .base_s = 2e-3};
  StepCost decode{.per_row_s = 2e-4, .base_s = 8e-3};
  int32_t pool_blocks = 1000;  // of a prefill worker's cache
  int32_t decode_blocks = 4000;
  int32_t requests_max = 64;  // at a worker
  double transfer_bytes_per_s = 1e9;
  int64_t kv_bytes_per_token = 23040;
  Policy policy = Policy::kPredictedCost;
  AdmissionQueue::Options queue{.requests_max = 1 << 30};
};

struct SimReport {
  struct Times {
    double p50_s = 0, p99_s = 0, most_s = 0;
  };
  Times hot_first_token, other_first_token;  // since arrival
  double other_wait_most_s = 0;              // in the router's queue
  int64_t prompt_tokens = 0, cached_tokens = 0;
  int64_t cached_tokens_bound = 0;  // with one cache that forgets nothing
  int64_t refused = 0;              // for want of room within the queue's timeout
  double end_s = 0;
  std::vector<double> prefill_busy_s;  // by worker
  // Of a tenant, and among its own of equal priority by how much later one that was placed had
  // arrived than one that still waited.
  struct OfTenant {
    int64_t computed_tokens = 0;  // of those placed before the last arrival
    int64_t refused = 0;
    double wait_most_s = 0, overtaken_by_most_s = 0;
  };
  std::map<uint64_t, OfTenant> tenants;
  // Of the prompts' time, the largest of any window of kWindow_s to the mean of its workers.
  double prefill_most_to_mean = 0;
  static constexpr double kWindow_s = 60;
};

SimReport Simulate(const SimClusterOptions& options, std::span<const SimRequest> trace);

}  // namespace trivium::router
