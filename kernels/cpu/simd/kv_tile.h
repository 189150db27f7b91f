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

// Asks for rows that are read next: pages are strewn about, so the processor can't guess them.
inline void Prefetch(const AttentionTask& task, const int32_t* block_table, int first, int keys,
                     int64_t offset) {
  if (keys <= 0) return;
  TileRows rows;
  FindRows(task, block_table, first, {0, keys < kTileKeys ? keys : kTileKeys}, offset, &rows);
  for (int i = 0; i < kTileKeys; ++i) {
    for (int byte = 0; byte < 2 * task.head_dim; byte += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(rows.at[i] + byte), _MM_HINT_T0);
    }
  }
}

inline __m128i LoadEight(const uint8_t* row, int d) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + 2 * d));
}

inline __m256 Widen(__m128i eight) { return _mm256_cvtph_ps(eight); }

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

// Elements d … d + 7 of the keys at[0 … 15] to tile[d][16 of kTileKeys]; the first `kept` lanes
// stay as they are.
inline void TransposeKeys(const uint8_t* const* at, int d, int kept, float* tile) {
  __m256i v[8];
  TRIVIUM_UNROLL for (int i = 0; i < 8; ++i) {
    v[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(LoadEight(at[i], d)),
                                   LoadEight(at[i + 8], d), 1);
  }
  Transpose(v);
  float* out = tile + int64_t{d} * kTileKeys;
  TRIVIUM_UNROLL for (int i = 0; i < 8; ++i) {
    __m256 low = Widen(_mm256_castsi256_si128(v[i]));
    __m256 high = Widen(_mm256_extracti128_si256(v[i], 1));
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
  void Take(const uint8_t* row, int d, int dim) {
    for (int i = 0; i < 2 * (dim - d); ++i) bytes[i] = row[2 * d + i];
  }
};

inline void TransposeTail(const uint8_t* const* at, int d, int dim, int kept, float* tile) {
  PaddedTail tails[16];
  const uint8_t* padded[16];
  for (int i = 0; i < 16; ++i) {
    tails[i].Take(at[i], d, dim);
    padded[i] = tails[i].bytes;
  }
  TransposeKeys(padded, 0, kept, tile + int64_t{d} * kTileKeys);
}

// tile[padded_dim][kTileKeys]: the lanes of the range, and no lane before it.
inline void LoadKeys(const AttentionTask& task, const int32_t* block_table, int first, Range part,
                     float* tile) {
  TileRows rows;
  FindRows(task, block_table, first, part, 0, &rows);
  for (int key = part.begin / 16 * 16; key < part.end; key += 16) {
    const int kept = part.begin - key;
    int d = 0;
    if (kept > 0) {
      for (; d + 8 <= task.head_dim; d += 8) TransposeKeys(rows.at + key, d, kept, tile + key);
    } else {
      for (; d + 8 <= task.head_dim; d += 8) TransposeKeys(rows.at + key, d, 0, tile + key);
    }
    if (d < task.head_dim) TransposeTail(rows.at + key, d, task.head_dim, kept, tile + key);
  }
}

// tile[kTileKeys][padded_dim]: the rows of the range. Pads with zeros: an earlier call may have
// left anything there, and 0 * NaN is NaN.
inline void LoadValues(const AttentionTask& task, const int32_t* block_table, int first, Range part,
                       float* tile) {
  TileRows rows;
  FindRows(task, block_table, first, part, task.values_offset, &rows);
  for (int i = part.begin; i < part.end; ++i) {
    float* out = tile + int64_t{i} * task.padded_dim;
    int d = 0;
    for (; d + 8 <= task.head_dim; d += 8) {
      _mm256_storeu_ps(out + d, Widen(LoadEight(rows.at[i], d)));
    }
    if (d == task.head_dim) continue;
    PaddedTail tail;
    tail.Take(rows.at[i], d, task.head_dim);
    _mm256_storeu_ps(out + d, Widen(LoadEight(tail.bytes, 0)));
  }
}

}  // namespace trivium::kernels::TRIVIUM_SIMD
