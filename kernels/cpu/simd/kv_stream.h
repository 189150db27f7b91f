// The scores and the weighed values of one query row, straight from the pages: a tile in memory
// pays where several rows use it. A row's results are the same operations in the same order as by
// tiles. Stateless.
#pragma once

#include "kernels/cpu/simd/kv_tile.h"

namespace trivium::kernels::TRIVIUM_SIMD {

#ifdef __AVX512VNNI__

using Wide = __m512;
inline constexpr int kWideLanes = 16;
inline constexpr int kMostStreamed = 4;  // query heads that fit in the registers

inline Wide Splat(float v) { return _mm512_set1_ps(v); }
inline Wide LoadWide(const float* p) { return _mm512_loadu_ps(p); }
inline void StoreWide(float* p, Wide v) { _mm512_storeu_ps(p, v); }
inline Wide Times(Wide a, Wide b) { return _mm512_mul_ps(a, b); }
inline Wide TimesPlus(Wide a, Wide b, Wide c) { return _mm512_fmadd_ps(a, b, c); }

// Sixteen elements of 16 bits.
template <KvType kType>
inline Wide WidenPart(__m256i sixteen, int) {
  if constexpr (kType == KvType::kF16) return _mm512_cvtph_ps(sixteen);
  if constexpr (kType == KvType::kInt8) return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(sixteen));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(sixteen), 16));
}

template <KvType kType>
inline Wide LoadPart(const uint8_t* row, int d) {
  const auto* from = reinterpret_cast<const __m256i*>(row + ElementBytes(kType) * d);
  if constexpr (kType != KvType::kInt8) return WidenPart<kType>(_mm256_loadu_si256(from), 0);
  return WidenPart<kType>(
      _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))), 0);
}

#else

using Wide = __m256;
inline constexpr int kWideLanes = 8;
inline constexpr int kMostStreamed = 3;

inline Wide Splat(float v) { return _mm256_set1_ps(v); }
inline Wide LoadWide(const float* p) { return _mm256_loadu_ps(p); }
inline void StoreWide(float* p, Wide v) { _mm256_storeu_ps(p, v); }
inline Wide Times(Wide a, Wide b) { return _mm256_mul_ps(a, b); }
inline Wide TimesPlus(Wide a, Wide b, Wide c) { return _mm256_fmadd_ps(a, b, c); }

// Eight of sixteen elements of 16 bits.
template <KvType kType>
inline Wide WidenPart(__m256i sixteen, int part) {
  return Widen<kType>(part == 0 ? _mm256_castsi256_si128(sixteen)
                                : _mm256_extracti128_si256(sixteen, 1));
}

template <KvType kType>
inline Wide LoadPart(const uint8_t* row, int d) {
  return Widen<kType>(LoadEight<kType>(row, d));
}

#endif

inline constexpr int kWideParts = 16 / kWideLanes;

// Of the keys at[0 … 15], whose scales follow each other, with kQueries queries of `dim` elements.
template <KvType kType, int kQueries>
inline void ScoreSixteen(const float* q, int dim, const uint8_t* const* at, const float* scales,
                         float* scores) {
  Wide acc[kQueries][kWideParts];
  TRIVIUM_UNROLL for (int i = 0; i < kQueries; ++i) {
    TRIVIUM_UNROLL for (int part = 0; part < kWideParts; ++part) acc[i][part] = Splat(0);
  }
  for (int d = 0; d < dim; d += 8) {
    __m256i v[8];
    TRIVIUM_UNROLL for (int i = 0; i < 8; ++i) {
      v[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(LoadEight<kType>(at[i], d)),
                                     LoadEight<kType>(at[i + 8], d), 1);
    }
    Transpose(v);
    TRIVIUM_UNROLL for (int e = 0; e < 8; ++e) {
      TRIVIUM_UNROLL for (int part = 0; part < kWideParts; ++part) {
        Wide keys = WidenPart<kType>(v[e], part);
        if constexpr (kType == KvType::kInt8) {
          keys = Times(keys, LoadWide(scales + part * kWideLanes));
        }
        TRIVIUM_UNROLL for (int i = 0; i < kQueries; ++i) {
          acc[i][part] = TimesPlus(Splat(q[i * dim + d + e]), keys, acc[i][part]);
        }
      }
    }
  }
  TRIVIUM_UNROLL for (int i = 0; i < kQueries; ++i) {
    TRIVIUM_UNROLL for (int part = 0; part < kWideParts; ++part) {
      StoreWide(scores + i * kTileKeys + part * kWideLanes, acc[i][part]);
    }
  }
}

template <KvType kType, int kQueries>
inline void ScoreStreamed(const AttentionTask& task, const float* q, const TileRows& rows,
                          Range keys, float* scores) {
  float scales[kTileKeys];
  if constexpr (kType == KvType::kInt8) {
    for (int i = 0; i < kTileKeys; ++i) scales[i] = ScaleOf(task, rows.at[i]);
  }
  for (int i = keys.begin / 16 * 16; i < keys.end; i += 16) {
    ScoreSixteen<kType, kQueries>(q, task.head_dim, rows.at + i, scales + i, scores + i);
  }
}

// out[kQueries][kVectors at d] += weights[kQueries] * the values of the keys, in their order.
template <KvType kType, int kQueries, int kVectors>
inline void WeighPart(const AttentionTask& task, const float* weights, const TileRows& rows,
                      Range keys, int d, float* out) {
  Wide acc[kQueries][kVectors];
  TRIVIUM_UNROLL for (int i = 0; i < kQueries; ++i) {
    TRIVIUM_UNROLL for (int v = 0; v < kVectors; ++v) {
      acc[i][v] = LoadWide(out + i * task.head_dim + d + v * kWideLanes);
    }
  }
  for (int key = keys.begin; key < keys.end; ++key) {
    const Wide scale = Splat(kType == KvType::kInt8 ? ScaleOf(task, rows.at[key]) : 1.0f);
    TRIVIUM_UNROLL for (int v = 0; v < kVectors; ++v) {
      Wide value = LoadPart<kType>(rows.at[key], d + v * kWideLanes);
      if constexpr (kType == KvType::kInt8) value = Times(value, scale);
      TRIVIUM_UNROLL for (int i = 0; i < kQueries; ++i) {
        acc[i][v] = TimesPlus(Splat(weights[i * kTileKeys + key]), value, acc[i][v]);
      }
    }
  }
  TRIVIUM_UNROLL for (int i = 0; i < kQueries; ++i) {
    TRIVIUM_UNROLL for (int v = 0; v < kVectors; ++v) {
      StoreWide(out + i * task.head_dim + d + v * kWideLanes, acc[i][v]);
    }
  }
}

template <KvType kType, int kQueries>
inline void WeighStreamed(const AttentionTask& task, const float* weights, const TileRows& rows,
                          Range keys, float* out) {
  int d = 0;
  for (; d + 4 * kWideLanes <= task.head_dim; d += 4 * kWideLanes) {
    WeighPart<kType, kQueries, 4>(task, weights, rows, keys, d, out);
  }
  for (; d < task.head_dim; d += kWideLanes) {
    WeighPart<kType, kQueries, 1>(task, weights, rows, keys, d, out);
  }
}

// Whether a task can be streamed.
inline bool IsStreamed(const AttentionTask& task) {
  return task.row_count == 1 && task.heads <= kMostStreamed && task.head_dim % 16 == 0;
}

// Calls fn.operator()<type, heads>() for a streamed task.
template <KvType kType, typename Fn>
inline void WithHeads(int heads, const Fn& fn) {
  if (heads == 1) return fn.template operator()<kType, 1>();
  if (heads == 2) return fn.template operator()<kType, 2>();
  if (heads == 3) return fn.template operator()<kType, 3>();
  if constexpr (kMostStreamed >= 4) fn.template operator()<kType, 4>();
}

template <typename Fn>
inline void WithTypeAndHeads(const AttentionTask& task, const Fn& fn) {
  switch (task.kv_type) {
    case KvType::kF16:
      return WithHeads<KvType::kF16>(task.heads, fn);
    case KvType::kBF16:
      return WithHeads<KvType::kBF16>(task.heads, fn);
    case KvType::kInt8:
      return WithHeads<KvType::kInt8>(task.heads, fn);
  }
}

}  // namespace trivium::kernels::TRIVIUM_SIMD
