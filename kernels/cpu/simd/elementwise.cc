// Quantisation of activations and the operations that treat each row or element alone.
#include "kernels/cpu/simd/simd.h"

namespace trivium::kernels::TRIVIUM_SIMD {
namespace {

// Blocks below this size become zero: their scale, or its reciprocal, would leave the normal range
// of float32 at kLevels16.
constexpr float kTiny = 1e-33f;

// The largest magnitude of 32 inputs that are numbers.
inline float Largest(const float* x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 largest = _mm256_andnot_ps(sign, _mm256_loadu_ps(x));
  for (int i = 1; i < 4; ++i) {
    largest = _mm256_max_ps(largest, _mm256_andnot_ps(sign, _mm256_loadu_ps(x + 8 * i)));
  }
  return MaxLanes(largest);
}

// 32 inputs, of which `limit` is the largest, as four vectors of integers within ±levels (a value
// that is no number: some integer, and the scale is NaN). Returns the scale.
inline float QuantiseBlock(const float* x, float limit, float levels, __m256i* q) {
  __m256 v[4];
  for (int i = 0; i < 4; ++i) v[i] = _mm256_loadu_ps(x + 8 * i);
  const __m256 nan = _mm256_or_ps(_mm256_cmp_ps(v[0], v[1], _CMP_UNORD_Q),
                                  _mm256_cmp_ps(v[2], v[3], _CMP_UNORD_Q));
  const float inverse = limit > kTiny ? levels / limit : 0.0f;
  for (int i = 0; i < 4; ++i)
    q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], _mm256_set1_ps(inverse)));
  if (_mm256_movemask_ps(nan) != 0) return __builtin_nanf("");
  return limit > kTiny ? limit / levels : 0.0f;
}

inline int SumIntegers(__m256i q0, __m256i q1) {
  const __m256i s = _mm256_add_epi32(q0, q1);
  __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
  t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1));
  return _mm_cvtsi128_si32(t);
}

inline void StoreScales(const __m256i* q, float scale, int64_t block, const RowSlot& out) {
  const int first = SumIntegers(q[0], q[1]), second = SumIntegers(q[2], q[3]);
  out.scales[block * out.slots] = scale;
  out.sums[block * out.slots] = scale * static_cast<float>(first + second);
  out.half_sums[2 * block * out.slots] = scale * static_cast<float>(first);
  out.half_sums[(2 * block + 1) * out.slots] = scale * static_cast<float>(second);
}

// Four bytes to every slots-th place.
inline void StoreSpread(__m256i v, int64_t slots, uint8_t* out) {
  if (slots == 1) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), v);
  alignas(32) int32_t fours[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(fours), v);
  for (int i = 0; i < 8; ++i) __builtin_memcpy(out + 4 * slots * i, &fours[i], 4);
}

inline void StoreBytes(const __m256i* q, int64_t slots, uint8_t* out) {
  const __m256i words0 = _mm256_packs_epi32(q[0], q[1]);
  const __m256i words1 = _mm256_packs_epi32(q[2], q[3]);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // undoes the packs' lane order
  StoreSpread(_mm256_permutevar8x32_epi32(_mm256_packs_epi16(words0, words1), order), slots, out);
}

inline void StoreWords(const __m256i* q, int64_t slots, uint8_t* out) {
  for (int i = 0; i < 2; ++i) {
    const __m256i words = _mm256_packs_epi32(q[2 * i], q[2 * i + 1]);
    StoreSpread(_mm256_permute4x64_epi64(words, 0xd8), slots, out + 32 * slots * i);
  }
}

inline __m256 SiluMul(__m256 gate, __m256 up) {
  const __m256 e = Exp(_mm256_xor_ps(gate, _mm256_set1_ps(-0.0f)));
  return _mm256_mul_ps(_mm256_div_ps(gate, _mm256_add_ps(_mm256_set1_ps(1.0f), e)), up);
}

}  // namespace

void Quantise8(const float* x, int64_t k, const RowSlot& out) {
  const int64_t blocks = k / kQuantBlock;
  float squares = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const float limit = Largest(x + b * kQuantBlock);
    out.scales[b * out.slots] = limit;
    squares += limit * limit;
  }
  const float mean = squares / static_cast<float>(blocks);
  const __m256i half = _mm256_set1_epi32(1 << (kLowBits - 1));
  uint8_t* q = out.q;
  for (int64_t b = 0; b < blocks; ++b, q += kQuantBlock * out.slots) {
    const float limit = out.scales[b * out.slots];
    const bool keep = limit * limit >= mean;
    if (keep) out.low_blocks[b / 32] |= 1u << b % 32;
    __m256i whole[4], high[4], low[4];
    const float scale = QuantiseBlock(x + b * kQuantBlock, limit, kLevels8, whole);
    for (int i = 0; i < 4; ++i) {
      high[i] = _mm256_srai_epi32(_mm256_add_epi32(whole[i], half), kLowBits);
      const __m256i rounded = _mm256_slli_epi32(high[i], kLowBits);
      if (!keep) whole[i] = rounded;
      low[i] = _mm256_sub_epi32(whole[i], rounded);
    }
    StoreScales(whole, scale, b, out);
    StoreBytes(high, out.slots, q);
    StoreBytes(low, out.slots, q + k * out.slots);
  }
}

void Quantise16(const float* x, int64_t k, const RowSlot& out) {
  for (int64_t b = 0; b < k / kQuantBlock; ++b) {
    __m256i whole[4];
    const float* block = x + b * kQuantBlock;
    StoreScales(whole, QuantiseBlock(block, Largest(block), kLevels16, whole), b, out);
    StoreWords(whole, out.slots, out.q + 2 * b * kQuantBlock * out.slots);
  }
}

void RmsNormRow(const float* x, const float* weight, float eps, int dim, float* out) {
  __m256 squares[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  int i = 0;
  for (; i + 16 <= dim; i += 16) {
    for (int j = 0; j < 2; ++j) {
      const __m256 v = _mm256_loadu_ps(x + i + 8 * j);
      squares[j] = _mm256_fmadd_ps(v, v, squares[j]);
    }
  }
  for (; i < dim; i += 8) {
    const __m256 v = _mm256_maskload_ps(x + i, FirstLanes(dim - i));
    squares[0] = _mm256_fmadd_ps(v, v, squares[0]);
  }
  const float mean = SumLanes(_mm256_add_ps(squares[0], squares[1])) / static_cast<float>(dim);
  const __m256 scale = _mm256_set1_ps(1.0f / __builtin_sqrtf(mean + eps));
  for (i = 0; i < dim; i += 8) {
    const __m256i lanes = FirstLanes(dim - i);
    const __m256 v = _mm256_mul_ps(_mm256_maskload_ps(x + i, lanes), scale);
    _mm256_maskstore_ps(out + i, lanes, _mm256_mul_ps(v, _mm256_maskload_ps(weight + i, lanes)));
  }
}

void RopeRow(float* x, const float* cosines, const float* sines, int heads, int head_dim,
             int rope_dim) {
  const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
  for (int h = 0; h < heads; ++h) {
    float* head = x + int64_t{h} * head_dim;
    for (int i = 0; i < rope_dim; i += 8) {
      const __m256i lanes = FirstLanes(rope_dim - i);
      const __m128i pairs = _mm256_castsi256_si128(FirstLanes((rope_dim - i) / 2));
      const __m128 c4 = _mm_maskload_ps(cosines + i / 2, pairs);
      const __m128 s4 = _mm_maskload_ps(sines + i / 2, pairs);
      const __m256 c = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(c4), twice);
      const __m256 s = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(s4), twice);
      const __m256 v = _mm256_maskload_ps(head + i, lanes);
      const __m256 other = _mm256_permute_ps(v, 0xb1);
      _mm256_maskstore_ps(head + i, lanes, _mm256_fmaddsub_ps(v, c, _mm256_mul_ps(other, s)));
    }
  }
}

// The tails run the same vector operations under a mask: a result does not depend on its place.
void SiluMulRange(float* gate, const float* up, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(gate + i, SiluMul(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
  }
  if (i == count) return;
  const __m256i lanes = FirstLanes(count - i);
  _mm256_maskstore_ps(
      gate + i, lanes,
      SiluMul(_mm256_maskload_ps(gate + i, lanes), _mm256_maskload_ps(up + i, lanes)));
}

void AddRange(float* x, const float* y, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(x + i, _mm256_add_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
  }
  for (; i < count; ++i) x[i] += y[i];
}

}  // namespace trivium::kernels::TRIVIUM_SIMD
