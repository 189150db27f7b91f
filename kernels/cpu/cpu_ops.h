// The operations on x86-64 processors with AVX2 or more.
//
// Quantised matrices are multiplied by integers: each row of activations is rounded to 14
// bits or more, with a scale for each 32 inputs. Float matrices are multiplied in float32. Under
// kFast, large batches go to oneDNN where that is faster: in bfloat16 with AMX, float matrices in
// float32 elsewhere.
#pragma once

#include <memory>

#include "kernels/ops.h"

namespace trivium::kernels {

// options.isa is one that this machine supports, and not kReference.
std::unique_ptr<Ops> MakeCpuOps(const OpsOptions& options);

}  // namespace trivium::kernels
