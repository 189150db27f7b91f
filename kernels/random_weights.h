// Random weights in the formats of GGUF files, for tests and benchmarks. Stateless; the generator
// belongs to one thread.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/quant_block.h"
#include "kernels/weights.h"

namespace trivium::kernels {

inline constexpr int kMostBlockBytes = 210;

// Where a block keeps its float16 scale and minimum (-1: none), and the minimum that centres random
// quants, in units of the scale.
struct ScaleFields {
  int d = 0;
  int minimum = -1;
  float ratio = 0;
};

inline ScaleFields ScaleFieldsOf(WeightType type) {
  switch (type) {
    case WeightType::kQ4_1:
      return {0, 2, -7.5f};
    case WeightType::kQ5_1:
      return {0, 2, -15.5f};
    case WeightType::kQ2_K:
      return {80, 82, 1.5f};
    case WeightType::kQ3_K:
      return {.d = 108};
    case WeightType::kQ4_K:
      return {0, 2, 7.5f};
    case WeightType::kQ5_K:
      return {0, 2, 15.5f};
    case WeightType::kQ6_K:
      return {.d = 208};
    default:
      return {};
  }
}

inline void SetScale(WeightType type, float scale, uint8_t* block) {
  const ScaleFields fields = ScaleFieldsOf(type);
  const uint16_t d = FloatToHalf(scale), minimum = FloatToHalf(scale * fields.ratio);
  std::memcpy(block + fields.d, &d, sizeof(d));
  if (fields.minimum >= 0) std::memcpy(block + fields.minimum, &minimum, sizeof(minimum));
}

// A block with random integers, of which the root of the mean square is |sigma|; a negative sigma
// gives a negative scale. A float type gets the value sigma itself.
template <typename Generator>
void FillRandomBlock(Generator& random, WeightType type, float sigma, uint8_t* block) {
  if (BlockElems(type) == 1) {
    const uint32_t wide = std::bit_cast<uint32_t>(sigma);
    const auto narrow =
        type == WeightType::kF16 ? FloatToHalf(sigma) : static_cast<uint16_t>(wide >> 16);
    const void* source = type == WeightType::kF32 ? static_cast<const void*>(&wide) : &narrow;
    std::memcpy(block, source, BlockBytes(type));
    return;
  }
  for (int64_t i = 0; i < BlockBytes(type); ++i) block[i] = static_cast<uint8_t>(random());
  SetScale(type, 1.0f, block);
  float values[kMostBlockElems];
  DequantizeRow(type, block, BlockElems(type), values);
  double squares = 0;
  for (int64_t i = 0; i < BlockElems(type); ++i) squares += double{values[i]} * values[i];
  const double size = std::sqrt(squares / static_cast<double>(BlockElems(type)));
  SetScale(type, static_cast<float>(sigma / size), block);
}

}  // namespace trivium::kernels
