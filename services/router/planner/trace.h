// Requests for the simulator: generated traces. Pure; the same options give the same trace.
#pragma once

#include <cstdint>
#include <vector>

#include "common/scheduling/fair_queue.h"

namespace trivium::router {

struct SimRequest {
  double arrival_s = 0;
  uint64_t prefix = 0;  // requests with the same one begin with the same `prefix_tokens`
  int32_t prefix_tokens = 0;
  int32_t prompt_tokens = 0;
  int32_t output_tokens = 0;
  bool is_hot = false;  // of the one prefix that everybody asks for
  scheduling::TenantShare share{};
  int32_t priority = 0;
};

struct TraceOptions {
  int64_t requests = 10000;
  double requests_per_s = 100;
  double hot_share = 0.5;    // of the requests that begin with one and the same prefix
  int64_t prefixes = 1000;   // of the others, by Zipf's law
  double cold_share = 0.25;  // of the others, whose prompt nobody has sent before
  uint64_t seed = 1;
  // Each sends as much as the others. The hot prefix is all tenants', any other is one tenant's.
  std::vector<scheduling::TenantShare> tenants{{}};
};

// Arrivals as a Poisson process; prefixes of 256 to 1,024 tokens, 16 to 128 behind them, answers of
// 16 to 128.
std::vector<SimRequest> MakeTrace(const TraceOptions& options);

}  // namespace trivium::router
