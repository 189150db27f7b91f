// How alike two vectors are, for those who compare one with many and need no Ops.
// Stateless; safe from any thread.
#pragma once

#include <cstdint>

namespace trivium::kernels {

// The sum of a[i] * b[i].
using DotFunction = float (*)(const float* a, const float* b, int64_t count);

// The best one that this machine can run.
DotFunction BestDot();

}  // namespace trivium::kernels
