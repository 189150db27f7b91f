// The operations on x86-64 processors with AVX2 or more.
//
// Quantised matrices are multiplied by integers: each row of activations is rounded to eight bits
// with a scale for each 32 inputs, at any batch size. Float matrices are multiplied in float32.
#pragma once

#include <memory>

#include "kernels/ops.h"

namespace trivium::kernels {

// options.isa is one that this machine supports, and not kReference.
std::unique_ptr<Ops> MakeCpuOps(const OpsOptions& options);

}  // namespace trivium::kernels
