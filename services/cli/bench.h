// What a bench run sends, apart from the run so that it can be tested. Stateless.
#pragma once

#include <cstdint>
#include <vector>

#include "services/cli/arrivals.h"
#include "services/cli/options.h"

namespace trivium::cli {

// Request number `index` of a run, `tokens` long: the same for the same seed, whoever sends it.
std::vector<int32_t> RandomPrompt(const BenchOptions& options, uint64_t seed, int index,
                                  int tokens);

// When an open loop sends what: of the trace where there is one, else at random at the given rate.
absl::StatusOr<std::vector<Arrival>> PlanArrivals(const BenchOptions& options, uint64_t seed);

}  // namespace trivium::cli
