#include "kernels/kv_row.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace trivium::kernels {
namespace {

constexpr KvType kAllTypes[] = {KvType::kF16, KvType::kBF16, KvType::kInt8};
constexpr float kLevels = 127;

float BFloatToFloat(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// Integers of one head; the scale of one that is not finite is not finite either.
uint16_t StoreIntegers(const float* x, int dim, int8_t* out) {
  float largest = 0;
  bool finite = true;
  for (int d = 0; d < dim; ++d) {
    largest = std::max(largest, std::abs(x[d]));
    finite = finite && std::isfinite(x[d]);
  }
  const uint16_t half = FloatToHalf(finite ? largest / kLevels : NAN);
  const float scale = HalfToFloat(half);
  const float inverse = finite && scale > 0 ? 1 / scale : 0.0f;
  for (int d = 0; d < dim; ++d) {
    out[d] =
        finite ? static_cast<int8_t>(std::clamp(std::nearbyint(x[d] * inverse), -kLevels, kLevels))
               : int8_t{1};
  }
  return half;
}

}  // namespace

const char* KvTypeName(KvType type) {
  switch (type) {
    case KvType::kF16:
      return "f16";
    case KvType::kBF16:
      return "bf16";
    case KvType::kInt8:
      return "int8";
  }
  return "unknown";
}

bool ParseKvType(const std::string& name, KvType* type) {
  for (const KvType candidate : kAllTypes) {
    if (name == KvTypeName(candidate)) {
      *type = candidate;
      return true;
    }
  }
  return false;
}

void StoreKvRow(const KvLayout& layout, const float* x, uint16_t* row) {
  if (layout.type == KvType::kInt8) {
    auto* integers = reinterpret_cast<int8_t*>(row);
    for (int head = 0; head < layout.kv_heads; ++head) {
      const int64_t at = int64_t{head} * layout.head_dim;
      row[layout.ScaleWord(head)] = StoreIntegers(x + at, layout.head_dim, integers + at);
    }
    return;
  }
  for (int64_t i = 0; i < layout.RowElems(); ++i) {
    row[i] = layout.type == KvType::kF16 ? FloatToHalf(x[i]) : FloatToBFloat(x[i]);
  }
}

void LoadKvHead(const KvLayout& layout, const uint16_t* row, int kv_head, float* out) {
  const int64_t at = int64_t{kv_head} * layout.head_dim;
  if (layout.type == KvType::kInt8) {
    const float scale = HalfToFloat(row[layout.ScaleWord(kv_head)]);
    const auto* integers = reinterpret_cast<const int8_t*>(row) + at;
    for (int d = 0; d < layout.head_dim; ++d) out[d] = static_cast<float>(integers[d]) * scale;
    return;
  }
  for (int d = 0; d < layout.head_dim; ++d) {
    out[d] = layout.type == KvType::kF16 ? HalfToFloat(row[at + d]) : BFloatToFloat(row[at + d]);
  }
}

}  // namespace trivium::kernels
