// One block of a quantised weight format taken apart into integers: what dequantisation and the
// packing of matrices both start from, so that a format's bits are read in one place only.
// Stateless; safe from any thread.
#pragma once

#include <cstdint>

#include "kernels/weights.h"

namespace trivium::kernels {

inline constexpr int kMostBlockElems = 256;
inline constexpr int kLeastGroup = 16;

// Element i of the block, in group g = i / QuantGroup(type), is
//   (d * scales[g]) * quants[i] - dmin * minima[g]
// in float32, where only the subtraction can round. A format without one of these has 1 for its
// scales, and 0 for dmin and its minima.
struct QuantBlock {
  uint16_t d = 0;  // float16
  uint16_t dmin = 0;
  int8_t scales[kMostBlockElems / kLeastGroup];
  int8_t minima[kMostBlockElems / kLeastGroup];
  int8_t quants[kMostBlockElems];
};

// Elements that share a scale: 16 or 32. `type` is quantised.
int QuantGroup(WeightType type);

// `block` holds BlockBytes(type) bytes; fills the first BlockElems(type) quants and their groups.
void UnpackBlock(WeightType type, const uint8_t* block, QuantBlock& out);

}  // namespace trivium::kernels
