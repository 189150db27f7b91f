// Shared by the files of this folder, which are compiled once for each instruction set, each time
// into a namespace of its own (TRIVIUM_SIMD). Nothing here may include a header of the standard
// library with code in it: the linker could pick that copy for machines that cannot run it.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/kernel_table.h"

// g++ keeps an array of vectors in memory, with a store for each change, unless all loops over it
// are unrolled early.
#define TRIVIUM_UNROLL _Pragma("GCC unroll 16")
// The opposite, where g++ would unroll and then reorder into more live values than there are
// registers.
#define TRIVIUM_ROLLED _Pragma("GCC unroll 1")
#define TRIVIUM_INLINE __attribute__((always_inline))

namespace trivium::kernels::TRIVIUM_SIMD {

void Quantise8(const float* x, int64_t k, const RowSlot& out);
void Quantise16(const float* x, int64_t k, const RowSlot& out);
void MultiplyRows(const MatmulTask& task);
void MultiplyTiles(const MatmulTask& task);
void FloatMatmul(const MatmulTask& task);
void AttendChunk(const AttentionTask& task, int chunk, const AttentionScratch& scratch,
                 const AttentionPartial& partial);
void MergeChunk(const AttentionTask& task, int chunk, const AttentionPartial& total,
                const AttentionPartial& partial);
void FinishAttention(const AttentionTask& task, const AttentionPartial& total, float* out,
                     float* lse, int64_t lse_stride);
void RmsNormRow(const float* x, const float* weight, float eps, int dim, float* out);
void RopeRow(float* x, const float* cosines, const float* sines, int heads, int head_dim,
             int rope_dim);
void StoreKvRow(const KvRowShape& shape, const float* x, uint16_t* row);
void SiluMulRange(float* gate, const float* up, int64_t count);
void AddRange(float* x, const float* y, int64_t count);
void LayerNormRow(const float* x, const float* weight, const float* bias, float eps, int dim,
                  float* out);
void ActivateRange(Activation activation, float* x, int64_t count);
float SoftmaxRow(float* x, int64_t count);
void ScaleRange(const float* x, float scale, int64_t count, float* out);
float DotRange(const float* a, const float* b, int64_t count);

// Lanes 0 … count - 1 on; count at most 8.
inline __m256i FirstLanes(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// Always the same order: (0+4, 1+5, 2+6, 3+7), then pairs.
inline float SumLanes(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

inline float MaxLanes(__m256 v) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

// x = n * ln(2) + r with a whole n, |r| <= ln(2) / 2; returns n.
inline __m256 SplitExponent(__m256 x, __m256* r) {
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  *r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  *r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), *r);
  return n;
}

// (exp(r) - 1) / r for |r| <= ln(2) / 2: Taylor series to degree 7 of exp, where the rest is below
// 6e-9 of the result.
inline __m256 ExpSlope(__m256 r) {
  __m256 p = _mm256_set1_ps(1.0f / 5040);
  constexpr float kCoefficients[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f};
  for (const float c : kCoefficients) p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
  return p;
}

// exp(x) to about 1 unit in the last place; 0 below -87.3, finite above 88.3, NaN stays NaN.
inline __m256 Exp(__m256 x) {
  const __m256 lowest = _mm256_set1_ps(-87.3f);
  const __m256 clamped = _mm256_min_ps(_mm256_set1_ps(88.3f), _mm256_max_ps(lowest, x));
  __m256 r;
  const __m256 n = SplitExponent(clamped, &r);
  const __m256 p = _mm256_fmadd_ps(ExpSlope(r), r, _mm256_set1_ps(1.0f));
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  const __m256 result = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
  return _mm256_andnot_ps(_mm256_cmp_ps(x, lowest, _CMP_LT_OQ), result);
}

// tanh(x) to a few units in the last place, near 0 too; NaN stays NaN. It is m / (m + 2) with
// m = exp(2x) - 1, and ±1 beyond ±10.
inline __m256 Tanh(__m256 x) {
  const __m256 end = _mm256_set1_ps(20.0f), two = _mm256_set1_ps(2.0f);
  const __m256 y = _mm256_mul_ps(x, two);
  const __m256 clamped =
      _mm256_min_ps(end, _mm256_max_ps(_mm256_sub_ps(_mm256_setzero_ps(), end), y));
  __m256 r;
  const __m256i n = _mm256_cvtps_epi32(SplitExponent(clamped, &r));
  const __m256 one = _mm256_set1_ps(1.0f);
  const __m256 power =
      _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(one), _mm256_slli_epi32(n, 23)));
  const __m256 small = _mm256_mul_ps(ExpSlope(r), r);
  const __m256 m = _mm256_fmadd_ps(power, small, _mm256_sub_ps(power, one));
  return _mm256_div_ps(m, _mm256_add_ps(m, two));
}

}  // namespace trivium::kernels::TRIVIUM_SIMD
