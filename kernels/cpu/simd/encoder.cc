// What encoders do to rows and elements.
#include "kernels/cpu/simd/simd.h"

namespace trivium::kernels::TRIVIUM_SIMD {
namespace {

// Calls step(vector, mask) on all elements; lanes past the end read as 0.
template <typename Step>
inline void ForVectors(const float* x, int64_t count, const Step& step) {
  const __m256i all = _mm256_set1_epi32(-1);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) step(i, _mm256_loadu_ps(x + i), all);
  if (i == count) return;
  const __m256i lanes = FirstLanes(count - i);
  step(i, _mm256_maskload_ps(x + i, lanes), lanes);
}

inline void Store(float* out, __m256 v, __m256i lanes) { _mm256_maskstore_ps(out, lanes, v); }

inline __m256 And(__m256 v, __m256i lanes) { return _mm256_and_ps(v, _mm256_castsi256_ps(lanes)); }

// x / (1 + exp(-z))
inline __m256 Gate(__m256 x, __m256 z) {
  const __m256 e = Exp(_mm256_xor_ps(z, _mm256_set1_ps(-0.0f)));
  return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

// (1 + tanh(u)) / 2 is 1 / (1 + exp(-2 u)).
inline __m256 GeluTanh(__m256 x) {
  const __m256 cube = _mm256_mul_ps(_mm256_mul_ps(x, x), x);
  const __m256 inner = _mm256_fmadd_ps(cube, _mm256_set1_ps(0.044715f), x);
  return Gate(x, _mm256_mul_ps(inner, _mm256_set1_ps(1.5957691216f)));
}

// erf by Abramowitz and Stegun 7.1.26, which is off by 1.5e-7 at most.
inline __m256 Gelu(__m256 x) {
  const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
  const __m256 z = _mm256_mul_ps(x, _mm256_set1_ps(0.70710678f));
  const __m256 size = _mm256_andnot_ps(sign, z);
  const __m256 t = _mm256_div_ps(one, _mm256_fmadd_ps(size, _mm256_set1_ps(0.3275911f), one));
  __m256 series = _mm256_set1_ps(1.061405429f);
  constexpr float kTerms[] = {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
  for (const float term : kTerms) series = _mm256_fmadd_ps(series, t, _mm256_set1_ps(term));
  const __m256 tail =
      _mm256_mul_ps(_mm256_mul_ps(series, t), Exp(_mm256_xor_ps(_mm256_mul_ps(z, z), sign)));
  // x / 2 * (1 + erf(z)), written so that what is near 0 is not a difference of near numbers.
  const __m256 half = _mm256_mul_ps(x, _mm256_set1_ps(0.5f));
  const __m256 below = _mm256_mul_ps(half, tail);
  const __m256 above = _mm256_sub_ps(x, below);
  return _mm256_blendv_ps(above, below, x);
}

template <typename Fn>
void Map(float* x, int64_t count, const Fn& fn) {
  ForVectors(x, count, [&](int64_t i, __m256 v, __m256i lanes) { Store(x + i, fn(v), lanes); });
}

}  // namespace

void LayerNormRow(const float* x, const float* weight, const float* bias, float eps, int dim,
                  float* out) {
  __m256 sum = _mm256_setzero_ps();
  ForVectors(x, dim, [&](int64_t, __m256 v, __m256i) { sum = _mm256_add_ps(sum, v); });
  const __m256 mean = _mm256_set1_ps(SumLanes(sum) / static_cast<float>(dim));
  __m256 squares = _mm256_setzero_ps();
  ForVectors(x, dim, [&](int64_t, __m256 v, __m256i lanes) {
    const __m256 centred = And(_mm256_sub_ps(v, mean), lanes);
    squares = _mm256_fmadd_ps(centred, centred, squares);
  });
  const float variance = SumLanes(squares) / static_cast<float>(dim);
  const __m256 scale = _mm256_set1_ps(1.0f / __builtin_sqrtf(variance + eps));
  ForVectors(x, dim, [&](int64_t i, __m256 v, __m256i lanes) {
    const __m256 normed = _mm256_mul_ps(_mm256_sub_ps(v, mean), scale);
    const __m256 w = _mm256_maskload_ps(weight + i, lanes);
    Store(out + i, _mm256_fmadd_ps(normed, w, _mm256_maskload_ps(bias + i, lanes)), lanes);
  });
}

void ActivateRange(Activation activation, float* x, int64_t count) {
  switch (activation) {
    case Activation::kGeluTanh:
      return Map(x, count, GeluTanh);
    case Activation::kQuickGelu:
      return Map(x, count,
                 [](__m256 v) { return Gate(v, _mm256_mul_ps(v, _mm256_set1_ps(1.702f))); });
    case Activation::kSilu:
      return Map(x, count, [](__m256 v) { return Gate(v, v); });
    case Activation::kGelu:
      return Map(x, count, Gelu);
  }
}

float SoftmaxRow(float* x, int64_t count) {
  const __m256 nothing = _mm256_set1_ps(-__builtin_inff());
  __m256 largest = nothing;
  ForVectors(x, count, [&](int64_t, __m256 v, __m256i lanes) {
    largest = _mm256_max_ps(largest, _mm256_blendv_ps(nothing, v, _mm256_castsi256_ps(lanes)));
  });
  const __m256 max = _mm256_set1_ps(MaxLanes(largest));
  __m256 sum = _mm256_setzero_ps();
  ForVectors(x, count, [&](int64_t i, __m256 v, __m256i lanes) {
    const __m256 e = And(Exp(_mm256_sub_ps(v, max)), lanes);
    Store(x + i, e, lanes);
    sum = _mm256_add_ps(sum, e);
  });
  return SumLanes(sum);
}

void ScaleRange(const float* x, float scale, int64_t count, float* out) {
  ForVectors(x, count, [&](int64_t i, __m256 v, __m256i lanes) {
    Store(out + i, _mm256_mul_ps(v, _mm256_set1_ps(scale)), lanes);
  });
}

float DotRange(const float* a, const float* b, int64_t count) {
  __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                    _mm256_setzero_ps()};
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    for (int64_t j = 0; j < 4; ++j) {
      sums[j] =
          _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8 * j), _mm256_loadu_ps(b + i + 8 * j), sums[j]);
    }
  }
  ForVectors(a + i, count - i, [&](int64_t j, __m256 v, __m256i lanes) {
    sums[0] = _mm256_fmadd_ps(v, _mm256_maskload_ps(b + i + j, lanes), sums[0]);
  });
  return SumLanes(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
}

}  // namespace trivium::kernels::TRIVIUM_SIMD
