// Reads some keys or values of pages into a float32 tile: keys transposed, so that a vector holds
// the same element of eight keys, values as they are. Stateless.
//
// Sixteen keys by eight elements are transposed while they still have 16 bits; an integer has its
// scale multiplied in, which is exact in float32.
#pragma once

#include "kernels/cpu/simd/simd.h"

namespace trivium::kernels::TRIVIUM_SIMD {

// Rows of a task, keys of a chunk or of a tile: begin … end - 1.
struct Range {
  int begin = 0, end = 0;
  bool empty() const { return begin >= end; }
};

inline int Clamp(int x, int size) { return x < 0 ? 0 : x < size ? x : size; }

// The keys that a row sees among `size` ones from position `first` on.
inline Range SeenKeys(const AttentionTask& task, int row, int first, int size) {
  const int end = task.rows[row].position + 1;
  return {Clamp(end - task.window - first, size), Clamp(end - first, size)};
}

inline Range ChunkKeys(const AttentionTask& task, int row, int chunk) {
  return SeenKeys(task, row, chunk * kChunkKeys, kChunkKeys);
}

// From the first key that one of the rows sees to the last.
inline Range KeysOfRows(const AttentionTask& task, Range rows, int first, int size) {
  Range all = {size, 0};
  for (int row = rows.begin; row < rows.end; ++row) {
    const Range keys = SeenKeys(task, row, first, size);
    if (keys.empty()) continue;
    if (keys.begin < all.begin) all.begin = keys.begin;
    if (keys.end > all.end) all.end = keys.end;
  }
  return all;
}

// Where the keys or values of a tile lie: the slices of one kv head.
struct TileRows {
  const uint8_t* at[kTileKeys];
};

// The rows of the range; the places before and behind it repeat its first and last.
inline void FindRows(const AttentionTask& task, const int32_t* block_table, int first, Range part,
                     int64_t offset, TileRows* rows) {
  int block = (first + part.begin) / task.block_tokens;
  int slot = (first + part.begin) % task.block_tokens;
  for (int i = part.begin; i < part.end; ++i) {
    rows->at[i] =
        task.kv_group + block_table[block] * task.page_bytes + offset + slot * task.row_bytes;
    if (++slot == task.block_tokens) {
      slot = 0;
      ++block;
    }
  }
  for (int i = 0; i < part.begin; ++i) rows->at[i] = rows->at[part.begin];
  for (int i = part.end; i < kTileKeys; ++i) rows->at[i] = rows->at[part.end - 1];
}

inline void PrefetchRows(const AttentionTask& task, const TileRows& rows, int64_t offset) {
  for (const uint8_t* row : rows.at) {
    for (int byte = 0; byte < 2 * task.head_dim; byte += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(row + offset + byte), _MM_HINT_T0);
    }
  }
}

// Asks for rows that are read next: pages are strewn about, so the processor can't guess them.
inline void Prefetch(const AttentionTask& task, const int32_t* block_table, int first, int keys,
                     int64_t offset) {
  if (keys <= 0) return;
  TileRows rows;
  FindRows(task, block_table, first, {0, keys < kTileKeys ? keys : kTileKeys}, offset, &rows);
  PrefetchRows(task, rows, 0);
}

constexpr int ElementBytes(KvType type) { return type == KvType::kInt8 ? 1 : 2; }

// Eight elements of 16 bits.
template <KvType kType>
inline __m128i LoadEight(const uint8_t* row, int d) {
  const auto* from = reinterpret_cast<const __m128i*>(row + ElementBytes(kType) * d);
  if constexpr (kType == KvType::kInt8) return _mm_cvtepi8_epi16(_mm_loadl_epi64(from));
  return _mm_loadu_si128(from);
}

template <KvType kType>
inline __m256 Widen(__m128i eight) {
  if constexpr (kType == KvType::kF16) return _mm256_cvtph_ps(eight);
  if constexpr (kType == KvType::kInt8) return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(eight));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
}

inline float ScaleOf(const AttentionTask& task, const uint8_t* row) {
  return _cvtsh_ss(*reinterpret_cast<const uint16_t*>(row + task.scale_offset));
}

// v[i]: eight elements of key i, then of key i + 8. Afterwards v[d]: element d of sixteen keys.
inline void Transpose(__m256i v[8]) {
  __m256i a[8], b[8];
  TRIVIUM_UNROLL for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_epi16(v[i], v[i + 1]);
    a[i + 1] = _mm256_unpackhi_epi16(v[i], v[i + 1]);
  }
  TRIVIUM_UNROLL for (int i = 0; i < 8; i += 4) {
    TRIVIUM_UNROLL for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm256_unpacklo_epi32(a[i + j], a[i + 2 + j]);
      b[i + 2 * j + 1] = _mm256_unpackhi_epi32(a[i + j], a[i + 2 + j]);
    }
  }
  TRIVIUM_UNROLL for (int i = 0; i < 4; ++i) {
    v[2 * i] = _mm256_unpacklo_epi64(b[i], b[i + 4]);
    v[2 * i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 4]);
  }
}

// Elements d … d + 7 of the keys at[0 … 15], times their scales if they have some, to
// tile[d][16 of kTileKeys]; the first `kept` lanes stay as they are.
template <KvType kType>
inline void TransposeKeys(const uint8_t* const* at, int d, int kept, const float* scales,
                          float* tile) {
  __m256i v[8];
  TRIVIUM_UNROLL for (int i = 0; i < 8; ++i) {
    v[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(LoadEight<kType>(at[i], d)),
                                   LoadEight<kType>(at[i + 8], d), 1);
  }
  Transpose(v);
  float* out = tile + int64_t{d} * kTileKeys;
  TRIVIUM_UNROLL for (int i = 0; i < 8; ++i) {
    __m256 low = Widen<kType>(_mm256_castsi256_si128(v[i]));
    __m256 high = Widen<kType>(_mm256_extracti128_si256(v[i], 1));
    if constexpr (kType == KvType::kInt8) {
      low = _mm256_mul_ps(low, _mm256_loadu_ps(scales));
      high = _mm256_mul_ps(high, _mm256_loadu_ps(scales + 8));
    }
    if (kept > 0) {
      const auto old = [&](int from, __m256 fresh) {
        return _mm256_blendv_ps(fresh, _mm256_loadu_ps(out + i * kTileKeys + from),
                                _mm256_castsi256_ps(FirstLanes(kept - from)));
      };
      low = old(0, low);
      high = old(8, high);
    }
    _mm256_storeu_ps(out + i * kTileKeys, low);
    _mm256_storeu_ps(out + i * kTileKeys + 8, high);
  }
}

// The last elements of a head whose size is no multiple of eight, padded with zeros.
struct PaddedTail {
  alignas(16) uint8_t bytes[16] = {};
  PaddedTail() = default;
  void Take(const uint8_t* row, int d, int dim, int size) {
    for (int i = 0; i < size * (dim - d); ++i) bytes[i] = row[size * d + i];
  }
};

template <KvType kType>
inline void TransposeTail(const uint8_t* const* at, int d, int dim, int kept, const float* scales,
                          float* tile) {
  PaddedTail tails[16];
  const uint8_t* padded[16];
  for (int i = 0; i < 16; ++i) {
    tails[i].Take(at[i], d, dim, ElementBytes(kType));
    padded[i] = tails[i].bytes;
  }
  TransposeKeys<kType>(padded, 0, kept, scales, tile + int64_t{d} * kTileKeys);
}

template <KvType kType>
inline void LoadKeysOf(const AttentionTask& task, const TileRows& rows, Range part, float* tile) {
  float scales[kTileKeys];
  if constexpr (kType == KvType::kInt8) {
    for (int i = 0; i < kTileKeys; ++i) scales[i] = ScaleOf(task, rows.at[i]);
  }
  for (int key = part.begin / 16 * 16; key < part.end; key += 16) {
    const int kept = part.begin - key;
    const auto* at = rows.at + key;
    int d = 0;
    if (kept > 0) {
      for (; d + 8 <= task.head_dim; d += 8) {
        TransposeKeys<kType>(at, d, kept, scales + key, tile + key);
      }
    } else {
      for (; d + 8 <= task.head_dim; d += 8) {
        TransposeKeys<kType>(at, d, 0, scales + key, tile + key);
      }
    }
    if (d < task.head_dim) {
      TransposeTail<kType>(at, d, task.head_dim, kept, scales + key, tile + key);
    }
  }
}

// Pads with zeros: an earlier call may have left anything there, and 0 * NaN is NaN.
template <KvType kType>
inline void LoadValuesOf(const AttentionTask& task, const TileRows& rows, Range part, float* tile) {
  for (int i = part.begin; i < part.end; ++i) {
    const uint8_t* row = rows.at[i];
    const __m256 scale = _mm256_set1_ps(kType == KvType::kInt8 ? ScaleOf(task, row) : 1.0f);
    const auto value = [&](const uint8_t* from, int d) {
      const __m256 eight = Widen<kType>(LoadEight<kType>(from, d));
      return kType == KvType::kInt8 ? _mm256_mul_ps(eight, scale) : eight;
    };
    float* out = tile + int64_t{i} * task.padded_dim;
    int d = 0;
    for (; d + 8 <= task.head_dim; d += 8) _mm256_storeu_ps(out + d, value(row, d));
    if (d == task.head_dim) continue;
    PaddedTail tail;
    tail.Take(row, d, task.head_dim, ElementBytes(kType));
    _mm256_storeu_ps(out + d, value(tail.bytes, 0));
  }
}

// tile[padded_dim][kTileKeys]: the lanes of the range, and no lane before it.
inline void LoadKeys(const AttentionTask& task, const int32_t* block_table, int first, Range part,
                     float* tile) {
  TileRows rows;
  FindRows(task, block_table, first, part, 0, &rows);
  switch (task.kv_type) {
    case KvType::kF16:
      return LoadKeysOf<KvType::kF16>(task, rows, part, tile);
    case KvType::kBF16:
      return LoadKeysOf<KvType::kBF16>(task, rows, part, tile);
    case KvType::kInt8:
      return LoadKeysOf<KvType::kInt8>(task, rows, part, tile);
  }
}

// tile[kTileKeys][padded_dim]: the rows of the range.
inline void LoadValues(const AttentionTask& task, const int32_t* block_table, int first, Range part,
                       float* tile) {
  TileRows rows;
  FindRows(task, block_table, first, part, task.values_offset, &rows);
  switch (task.kv_type) {
    case KvType::kF16:
      return LoadValuesOf<KvType::kF16>(task, rows, part, tile);
    case KvType::kBF16:
      return LoadValuesOf<KvType::kBF16>(task, rows, part, tile);
    case KvType::kInt8:
      return LoadValuesOf<KvType::kInt8>(task, rows, part, tile);
  }
}

}  // namespace trivium::kernels::TRIVIUM_SIMD
