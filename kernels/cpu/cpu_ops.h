// The operations on x86-64 processors with AVX2 or more.
//
// Quantised matrices are multiplied by integers: each row of activations is rounded to 14
// bits or more, with a scale for each 32 inputs. Float matrices are multiplied in float32. Under
// kFast, more than a few rows are multiplied in bfloat16 on tiles with AMX, and with AVX-512 large
// batches of float matrices go to oneDNN.
#pragma once

#include <memory>

#include "kernels/ops.h"

namespace trivium::kernels {

// options.isa is one that this machine supports, and not kReference.
std::unique_ptr<Ops> MakeCpuOps(const OpsOptions& options);

}  // namespace trivium::kernels
