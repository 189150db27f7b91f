#include "kernels/weights.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>

#include "kernels/check.h"
#include "kernels/quant_block.h"

namespace trivium::kernels {
namespace {

struct Format {
  WeightType type;
  const char* name;
  int block_elems;
  int block_bytes;
};

constexpr Format kFormats[] = {
    {WeightType::kF32, "F32", 1, 4},       {WeightType::kF16, "F16", 1, 2},
    {WeightType::kBF16, "BF16", 1, 2},     {WeightType::kQ8_0, "Q8_0", 32, 34},
    {WeightType::kQ4_0, "Q4_0", 32, 18},   {WeightType::kQ4_1, "Q4_1", 32, 20},
    {WeightType::kQ5_0, "Q5_0", 32, 22},   {WeightType::kQ5_1, "Q5_1", 32, 24},
    {WeightType::kQ2_K, "Q2_K", 256, 84},  {WeightType::kQ3_K, "Q3_K", 256, 110},
    {WeightType::kQ4_K, "Q4_K", 256, 144}, {WeightType::kQ5_K, "Q5_K", 256, 176},
    {WeightType::kQ6_K, "Q6_K", 256, 210}, {WeightType::kIQ4_NL, "IQ4_NL", 32, 18},
};
constexpr size_t kFormatCount = std::size(kFormats);

constexpr auto kTypes = [] {
  std::array<WeightType, kFormatCount> types{};
  for (size_t i = 0; i < kFormatCount; ++i) types[i] = kFormats[i].type;
  return types;
}();

const Format& FormatOf(WeightType type) {
  for (const Format& format : kFormats) {
    if (format.type == type) return format;
  }
  KERNELS_CHECK(false);
}

void DequantizeFloats(WeightType type, const uint8_t* row, int64_t cols, float* out) {
  if (type == WeightType::kF32) {
    std::memcpy(out, row, cols * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < cols; ++i) {
    uint16_t bits;
    std::memcpy(&bits, row + 2 * i, sizeof(bits));
    out[i] =
        type == WeightType::kF16 ? HalfToFloat(bits) : std::bit_cast<float>(uint32_t{bits} << 16);
  }
}

void DequantizeBlock(const QuantBlock& block, int elems, int group, float* out) {
  const float d = HalfToFloat(block.d), dmin = HalfToFloat(block.dmin);
  for (int begin = 0; begin < elems; begin += group) {
    const float scale = d * static_cast<float>(block.scales[begin / group]);
    const float minimum = dmin * static_cast<float>(block.minima[begin / group]);
    for (int i = begin; i < begin + group; ++i) {
      out[i] = scale * static_cast<float>(block.quants[i]) - minimum;
    }
  }
}

}  // namespace

std::span<const WeightType> AllWeightTypes() { return kTypes; }

const char* WeightTypeName(WeightType type) { return FormatOf(type).name; }

int64_t BlockElems(WeightType type) { return FormatOf(type).block_elems; }

int64_t BlockBytes(WeightType type) { return FormatOf(type).block_bytes; }

void DequantizeRow(WeightType type, const void* row, int64_t cols, float* out) {
  const Format& format = FormatOf(type);
  KERNELS_CHECK(cols % format.block_elems == 0);
  const auto* source = static_cast<const uint8_t*>(row);
  if (format.block_elems == 1) return DequantizeFloats(type, source, cols, out);
  QuantBlock block;
  const int group = QuantGroup(type);
  for (int64_t done = 0; done < cols; done += format.block_elems) {
    UnpackBlock(type, source, block);
    DequantizeBlock(block, format.block_elems, group, out + done);
    source += format.block_bytes;
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

uint16_t FloatToBFloat(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
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
