// Writes a row of a KV page: float32 to float16, bfloat16, or integers with a scale for each head.
#include "kernels/cpu/simd/simd.h"

namespace trivium::kernels::TRIVIUM_SIMD {
namespace {

inline __m128i ToHalf(__m256 v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }

// To the nearest, ties to even; what is no number stays so.
inline __m128i ToBFloat(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v), high = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i carry = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, carry), 16);
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
  const __m256i words = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(nan));
  return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

template <typename Narrow>
void StoreWords(const float* x, int64_t count, const Narrow& narrow, uint16_t* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), narrow(_mm256_loadu_ps(x + i)));
  }
  if (i == count) return;
  uint16_t rest[8];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rest),
                   narrow(_mm256_maskload_ps(x + i, FirstLanes(count - i))));
  for (int64_t j = i; j < count; ++j) out[j] = rest[j - i];
}

// The largest magnitude, or NaN where one is not finite.
float LargestMagnitude(const float* x, int dim) {
  const __m256 sign = _mm256_set1_ps(-0.0f), infinity = _mm256_set1_ps(__builtin_inff());
  __m256 largest = _mm256_setzero_ps(), strange = _mm256_setzero_ps();
  for (int d = 0; d < dim; d += 8) {
    const __m256 size = _mm256_andnot_ps(sign, _mm256_maskload_ps(x + d, FirstLanes(dim - d)));
    largest = _mm256_max_ps(largest, size);
    strange = _mm256_or_ps(strange, _mm256_cmp_ps(size, infinity, _CMP_NLT_UQ));
  }
  return _mm256_movemask_ps(strange) != 0 ? __builtin_nanf("") : MaxLanes(largest);
}

// Returns the scale as float16. Of a head that is not finite no integer may be 0: NaN times it is
// what its readers see.
uint16_t StoreIntegers(const float* x, int dim, int8_t* out) {
  const float largest = LargestMagnitude(x, dim);
  const auto half = static_cast<uint16_t>(_cvtss_sh(largest / 127, _MM_FROUND_TO_NEAREST_INT));
  const float scale = _cvtsh_ss(half);
  const __m256 inverse = _mm256_set1_ps(scale > 0 ? 1 / scale : 0.0f);
  for (int d = 0; d < dim; d += 8) {
    const __m256 v = _mm256_mul_ps(_mm256_maskload_ps(x + d, FirstLanes(dim - d)), inverse);
    const __m256i q = _mm256_cvtps_epi32(
        _mm256_min_ps(_mm256_set1_ps(127), _mm256_max_ps(_mm256_set1_ps(-127), v)));
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
    int8_t rest[16];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rest), _mm_packs_epi16(words, words));
    for (int i = 0; i < 8 && d + i < dim; ++i) out[d + i] = rest[i];
  }
  return half;
}

}  // namespace

void StoreKvRow(const KvRowShape& shape, const float* x, uint16_t* row) {
  const int64_t elems = int64_t{shape.kv_heads} * shape.head_dim;
  switch (shape.type) {
    case KvType::kF16:
      return StoreWords(x, elems, ToHalf, row);
    case KvType::kBF16:
      return StoreWords(x, elems, ToBFloat, row);
    case KvType::kInt8:
      for (int head = 0; head < shape.kv_heads; ++head) {
        const int64_t at = int64_t{head} * shape.head_dim;
        row[shape.scale_word + head] =
            StoreIntegers(x + at, shape.head_dim, reinterpret_cast<int8_t*>(row) + at);
      }
  }
}

}  // namespace trivium::kernels::TRIVIUM_SIMD
