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
      return;
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

}  // namespace trivium::kernels::TRIVIUM_SIMD
