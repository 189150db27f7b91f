#include "kernels/weights.h"

#include <bit>
#include <cstring>

#include "kernels/check.h"

namespace trivium::kernels {
namespace {

constexpr int kBlock = 32;

uint16_t LoadU16(const uint8_t* bytes) {
  uint16_t value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

void DequantizeQ8_0(const uint8_t* block, float* out) {
  const float scale = HalfToFloat(LoadU16(block));
  for (int i = 0; i < kBlock; ++i) {
    out[i] = scale * static_cast<float>(static_cast<int8_t>(block[2 + i]));
  }
}

// The low nibbles of the 16 bytes are the elements 0..15, the high ones 16..31.
void DequantizeQ4_0(const uint8_t* block, float* out) {
  const float scale = HalfToFloat(LoadU16(block));
  for (int i = 0; i < kBlock / 2; ++i) {
    out[i] = scale * static_cast<float>((block[2 + i] & 15) - 8);
    out[i + kBlock / 2] = scale * static_cast<float>((block[2 + i] >> 4) - 8);
  }
}

void DequantizeQ4_1(const uint8_t* block, float* out) {
  const float scale = HalfToFloat(LoadU16(block));
  const float minimum = HalfToFloat(LoadU16(block + 2));
  for (int i = 0; i < kBlock / 2; ++i) {
    out[i] = scale * static_cast<float>(block[4 + i] & 15) + minimum;
    out[i + kBlock / 2] = scale * static_cast<float>(block[4 + i] >> 4) + minimum;
  }
}

void DequantizeBlock(WeightType type, const uint8_t* block, float* out) {
  switch (type) {
    case WeightType::kF32:
      std::memcpy(out, block, sizeof(float));
      return;
    case WeightType::kF16:
      *out = HalfToFloat(LoadU16(block));
      return;
    case WeightType::kBF16:
      *out = std::bit_cast<float>(uint32_t{LoadU16(block)} << 16);
      return;
    case WeightType::kQ8_0:
      return DequantizeQ8_0(block, out);
    case WeightType::kQ4_0:
      return DequantizeQ4_0(block, out);
    case WeightType::kQ4_1:
      return DequantizeQ4_1(block, out);
  }
}

}  // namespace

const char* WeightTypeName(WeightType type) {
  switch (type) {
    case WeightType::kF32:
      return "F32";
    case WeightType::kF16:
      return "F16";
    case WeightType::kBF16:
      return "BF16";
    case WeightType::kQ8_0:
      return "Q8_0";
    case WeightType::kQ4_0:
      return "Q4_0";
    case WeightType::kQ4_1:
      return "Q4_1";
  }
  return "unknown";
}

int64_t BlockElems(WeightType type) {
  const bool is_float =
      type == WeightType::kF32 || type == WeightType::kF16 || type == WeightType::kBF16;
  return is_float ? 1 : kBlock;
}

int64_t BlockBytes(WeightType type) {
  switch (type) {
    case WeightType::kF32:
      return 4;
    case WeightType::kF16:
    case WeightType::kBF16:
      return 2;
    case WeightType::kQ8_0:
      return 34;
    case WeightType::kQ4_0:
      return 18;
    case WeightType::kQ4_1:
      return 20;
  }
  return 0;
}

void DequantizeRow(WeightType type, const void* row, int64_t cols, float* out) {
  const int64_t elems = BlockElems(type);
  const int64_t bytes = BlockBytes(type);
  KERNELS_CHECK(cols % elems == 0);
  const auto* source = static_cast<const uint8_t*>(row);
  for (int64_t done = 0; done < cols; done += elems) {
    DequantizeBlock(type, source, out + done);
    source += bytes;
  }
}

float HalfToFloat(uint16_t half) {
  const uint32_t sign = uint32_t{half} << 16 & 0x80000000u;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity, or a NaN, which becomes quiet
    const uint32_t quiet = magnitude > 0x7c00u ? 0x00400000u : 0u;
    return std::bit_cast<float>(sign | 0x7f800000u | quiet | (magnitude & 0x3ffu) << 13);
  }
  if (magnitude >= 0x0400u) {
    return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
  }
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;  // exact
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(subnormal));
}

uint16_t FloatToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {  // NaN: quiet, upper payload kept
    return static_cast<uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
  }
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {
    // Subnormal results: adding 0.5 leaves a unit of 2^-24 in the last place, rounded by the FPU.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t odd = magnitude >> 13 & 1u;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

}  // namespace trivium::kernels
