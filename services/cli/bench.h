// The prompts of a bench run, apart from the run so that they can be tested. Stateless.
#pragma once

#include <cstdint>
#include <vector>

#include "services/cli/options.h"

namespace trivium::cli {

// Request number `index` of a run: the same for the same seed, whichever slot sends it.
std::vector<int32_t> RandomPrompt(const BenchOptions& options, uint64_t seed, int index);

}  // namespace trivium::cli
