// Workers and clusters for the tests of placement. Plain values; safe from any thread.
#pragma once

#include "services/router/scheduler/placement.h"

namespace trivium::router {

inline constexpr StepCost kSpeed{.per_row_s = 1e-3, .base_s = 2e-3, .per_key_s = 1e-8};

inline WorkerView Worker(Role role) {
  WorkerView worker;
  worker.role = role;
  worker.condition = WorkerCondition::kReady;
  worker.epoch = 1;
  worker.numerics_class = "fast/a";
  worker.wire_format = 1;
  worker.blocks_total = worker.blocks_free = 4000;
  worker.block_tokens = 16;
  worker.requests_max = 64;
  worker.step_cost = kSpeed;
  return worker;
}

// Prefill workers first.
inline ClusterSnapshot Cluster(int prefill, int decode) {
  ClusterSnapshot cluster;
  for (int i = 0; i < prefill + decode; ++i) {
    cluster.workers.push_back(Worker(i < prefill ? Role::kPrefill : Role::kDecode));
  }
  cluster.kv_bytes_per_token = 23040;
  return cluster;
}

}  // namespace trivium::router
