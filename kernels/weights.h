// The weight formats of GGUF files: their sizes, and their exact meaning in float32.
// Stateless; safe from any thread. `cols` must be a multiple of BlockElems(type).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace trivium::kernels {

// Numbered as in GGUF files.
enum class WeightType : uint8_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ4_NL = 20,
  kBF16 = 30,
};

std::span<const WeightType> AllWeightTypes();
const char* WeightTypeName(WeightType type);  // "Q4_1"

// Elements of a block (1 for the float types) and the bytes that they take.
int64_t BlockElems(WeightType type);
int64_t BlockBytes(WeightType type);
// Bytes of one row of `cols` elements.
inline int64_t RowBytes(WeightType type, int64_t cols) {
  return cols / BlockElems(type) * BlockBytes(type);
}

// out[cols] = the row's values, as the GGUF format defines them (bit-exact in float32).
void DequantizeRow(WeightType type, const void* row, int64_t cols, float* out);

// A matrix as it lies in the file: row-major [rows, cols], rows packed without padding. Not owned.
struct WeightView {
  WeightType type = WeightType::kF32;
  const void* data = nullptr;
  int64_t rows = 0;  // outputs (N)
  int64_t cols = 0;  // inputs (K)
};

// IEEE binary16 <-> binary32, round to nearest even; the format of the KV cache.
float HalfToFloat(uint16_t half);
uint16_t FloatToHalf(float value);
uint16_t FloatToBFloat(float value);  // the nearest, ties to even; what is no number stays none

}  // namespace trivium::kernels
