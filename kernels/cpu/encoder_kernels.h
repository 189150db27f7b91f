// The inner loops of the encoders' operations that are compiled once for each instruction set; see
// kernel_table.h.
#pragma once

#include <cstdint>

#include "kernels/activation.h"

namespace trivium::kernels {

struct EncoderKernels {
  // One row; out may be x.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int dim,
                     float* out);
  void (*activate)(Activation activation, float* x, int64_t count);
  // x[i] = exp(x[i] - max(x)); returns their sum. Always the same order of additions.
  float (*softmax)(float* x, int64_t count);
  // out[i] = x[i] * scale
  void (*scale)(const float* x, float scale, int64_t count, float* out);
  // The sum of a[i] * b[i].
  float (*dot)(const float* a, const float* b, int64_t count);
};

}  // namespace trivium::kernels
