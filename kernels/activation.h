// The functions between the two matrices of a feed-forward part. In a file of its own, without any
// header that has code in it, for the inner loops in cpu/simd.
#pragma once

#include <cstdint>

namespace trivium::kernels {

enum class Activation : uint8_t {
  kGelu,       // x * Phi(x), by the error function
  kGeluTanh,   // x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))
  kQuickGelu,  // x / (1 + exp(-1.702 * x))
  kSilu,       // x / (1 + exp(-x))
};

}  // namespace trivium::kernels
