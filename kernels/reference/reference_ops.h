// The oracle: every operation in plain C++, written for clarity, on dequantised float32 weights.
// Its results do not depend on threads or on other rows, so both numerics settings are the same
// here.
#pragma once

#include <memory>

#include "kernels/ops.h"

namespace trivium::kernels {

std::unique_ptr<Ops> MakeReferenceOps(const OpsOptions& options);

}  // namespace trivium::kernels
