// What every process shows of itself: role and version, start, processor time, memory.
// Thread-safety: called once, at the start; `metrics` refreshes itself after that.
#pragma once

#include <string>
#include <string_view>

#include "common/telemetry/metrics.h"

namespace trivium::telemetry {

// build_info{role,version} 1, process_start_time_seconds, process_cpu_seconds_total,
// process_resident_bytes.
void AddProcessMetrics(Metrics* metrics, std::string_view role, std::string_view version);

}  // namespace trivium::telemetry
