// Attention of rows that have a chunk of keys in the same pages, on the tiles of AMX. Queries, keys,
// values and weights are rounded to bfloat16; sums and the softmax are float32.
//
// The keys of the chunk are laid out once, 16 keys by 32 elements a tile, then 32 queries at a time
// go through scores, softmax and values; keys and values pass by the first-level cache, which keeps
// what the 32 need in between. Scores are to the base 2, so that a weight is a polynomial
// and an exponent.
#include "kernels/check.h"
#include "kernels/cpu/simd/amx_tiles.h"
#include "kernels/cpu/simd/kv_tile.h"

namespace trivium::kernels::TRIVIUM_SIMD {
namespace {

constexpr int kPairQueries = 2 * kAmxRows;
constexpr int kPairBytes = 2 * static_cast<int>(kTileBytes);
constexpr float kLn2 = 0.693147181f;
// Places in the scratch of a thread; sizes in bytes.
struct Places {
  uint8_t* q;        // [pairs, 2, D / 32] tiles
  uint8_t* keys;     // [keys / 16, D / 32] tiles
  uint8_t* values;   // [keys / 32, D / 16] tiles
  float* scores;     // [keys / 16, 32, 16]
  uint8_t* weights;  // [2, keys / 32] tiles
  float* out;        // [32, 32]
};

Places PlacesIn(uint8_t* scratch, int queries, int dim) {
  Places at;
  at.q = scratch;
  at.keys = at.q + (queries + kPairQueries - 1) / kPairQueries * (dim / 32) * kPairBytes;
  at.values = at.keys + int64_t{kChunkKeys / 16} * (dim / 32) * kTileBytes;
  at.weights = at.values + int64_t{kChunkKeys / 32} * (dim / 16) * kTileBytes;
  at.scores = reinterpret_cast<float*>(at.weights + 2 * kChunkKeys / 32 * kTileBytes);
  at.out = at.scores + kPairQueries * kChunkKeys;
  return at;
}

template <KvType kType>
inline __m512 SixteenOf(const AttentionTask& task, const uint8_t* row, int d) {
  const auto* from = row + ElementBytes(kType) * d;
  if constexpr (kType == KvType::kInt8) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)),
                         _mm512_set1_ps(ScaleOf(task, row)));
  }
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  if constexpr (kType == KvType::kF16) return _mm512_cvtph_ps(words);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
}

// Row i, lane j becomes row j, lane i.
inline void TransposeLanes(__m512i v[16]) {
  __m512i a[16];
  TRIVIUM_UNROLL for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  TRIVIUM_UNROLL for (int i = 0; i < 16; i += 4) {
    TRIVIUM_UNROLL for (int j = 0; j < 2; ++j) {
      v[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + 2 + j]);
      v[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + 2 + j]);
    }
  }
  // v[4 i + j]: lane 4 b + c is row 4 i + c, lane 4 b + j.
  TRIVIUM_UNROLL for (int j = 0; j < 4; ++j) {
    a[j] = _mm512_shuffle_i32x4(v[j], v[4 + j], 0x88);
    a[4 + j] = _mm512_shuffle_i32x4(v[j], v[4 + j], 0xdd);
    a[8 + j] = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0x88);
    a[12 + j] = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0xdd);
  }
  TRIVIUM_UNROLL for (int j = 0; j < 4; ++j) {
    v[j] = _mm512_shuffle_i32x4(a[j], a[8 + j], 0x88);
    v[8 + j] = _mm512_shuffle_i32x4(a[j], a[8 + j], 0xdd);
    v[4 + j] = _mm512_shuffle_i32x4(a[4 + j], a[12 + j], 0x88);
    v[12 + j] = _mm512_shuffle_i32x4(a[4 + j], a[12 + j], 0xdd);
  }
}

template <KvType kType>
void LoadKeyTiles(const AttentionTask& task, const TileRows& rows, uint8_t* tiles) {
  for (int half = 0; half < kTileKeys; half += 16) {
    for (int d = 0; d < task.head_dim; d += 32, tiles += kTileBytes) {
      __m512i v[16];
      TRIVIUM_UNROLL for (int i = 0; i < 16; ++i) {
        const uint8_t* row = rows.at[half + i];
        v[i] = NarrowPair(SixteenOf<kType>(task, row, d), SixteenOf<kType>(task, row, d + 16));
      }
      TransposeLanes(v);
      TRIVIUM_UNROLL for (int i = 0; i < 16; ++i) _mm512_store_si512(tiles + 64 * i, v[i]);
    }
  }
}

// Which keys of a chunk have a value that is not finite. Their values are left out of the products,
// since 0 times infinity would reach rows that do not see them.
struct BadKeys {
  bool any = false;
  bool at[kChunkKeys] = {};

  bool SeenBy(Range keys) const {
    for (int i = keys.begin; any && i < keys.end; ++i) {
      if (at[i]) return true;
    }
    return false;
  }
};

// Keys outside the range count as zero.
template <KvType kType>
void LoadValueTiles(const AttentionTask& task, const TileRows& rows, Range part, uint8_t* tiles,
                    BadKeys* bad, bool* bad_at) {
  const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  const auto there = [&](int key) { return key >= part.begin && key < part.end ? 0xffffu : 0u; };
  for (int key = 0; key < kTileKeys; key += 2, tiles += 64) {
    const uint8_t *first = rows.at[key], *second = rows.at[key + 1];
    const __mmask32 kept = there(key) | there(key + 1) << 16;
    for (int d = 0; d < task.head_dim; d += 16) {
      __m512i both = NarrowPair(SixteenOf<kType>(task, first, d), SixteenOf<kType>(task, second, d));
      both = _mm512_maskz_mov_epi16(kept, both);
      const __mmask32 endless = _mm512_cmpeq_epi16_mask(_mm512_and_si512(both, exponent), exponent);
      if (__builtin_expect(endless != 0, false)) {
        bad->any = true;
        bad_at[key] |= (endless & 0xffff) != 0;
        bad_at[key + 1] |= endless >> 16 != 0;
        both = _mm512_maskz_mov_epi16(~endless, both);
      }
      _mm512_store_si512(tiles + d / 16 * kTileBytes, _mm512_permutexvar_epi16(pairs, both));
    }
  }
}

// Asks for keys and values that are read next: pages are strewn about.
template <int kHint>
inline void PrefetchParts(const AttentionTask& task, const TileRows& rows, int64_t offset) {
  const int bytes = task.head_dim * (task.kv_type == KvType::kInt8 ? 1 : 2);
  for (const uint8_t* row : rows.at) {
    for (int byte = 0; byte < bytes; byte += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(row + offset + byte),
                   static_cast<_mm_hint>(kHint));
    }
  }
}

// The keys and values of the range, in tiles.
template <KvType kType>
void LoadChunk(const AttentionTask& task, int chunk, Range keys, const Places& at, BadKeys* bad) {
  const int64_t key_bytes = int64_t{2} * task.head_dim / 32 * kTileBytes;
  const int64_t value_bytes = int64_t{task.head_dim} / 16 * kTileBytes;
  const int32_t* table = task.rows[0].block_table;
  const int begin = keys.begin / kTileKeys, end = (keys.end - 1) / kTileKeys + 1;
  const auto part_of = [&](int t) {
    const int first = keys.begin - t * kTileKeys, last = keys.end - t * kTileKeys;
    return Range{first > 0 ? first : 0, last < kTileKeys ? last : kTileKeys};
  };
  const auto rows_of = [&](int t) {
    TileRows rows;
    FindRows(task, table, chunk * kChunkKeys + t * kTileKeys, part_of(t), 0, &rows);
    return rows;
  };
  TileRows rows = rows_of(begin);
  for (int t = begin; t < end; ++t) {
    PrefetchParts<_MM_HINT_T0>(task, rows, task.values_offset);
    LoadKeyTiles<kType>(task, rows, at.keys + t * key_bytes);
    const TileRows next = t + 1 < end ? rows_of(t + 1) : rows;
    PrefetchParts<_MM_HINT_T0>(task, next, 0);
    for (const uint8_t*& row : rows.at) row += task.values_offset;
    LoadValueTiles<kType>(task, rows, part_of(t), at.values + t * value_bytes, bad,
                          bad->at + t * kTileKeys);
    rows = next;
  }
}

void LoadChunkOfAnyType(const AttentionTask& task, int chunk, Range keys, const Places& at,
                        BadKeys* bad) {
  switch (task.kv_type) {
    case KvType::kF16:
      return LoadChunk<KvType::kF16>(task, chunk, keys, at, bad);
    case KvType::kBF16:
      return LoadChunk<KvType::kBF16>(task, chunk, keys, at, bad);
    case KvType::kInt8:
      return LoadChunk<KvType::kInt8>(task, chunk, keys, at, bad);
  }
}

// Scaled to the base 2; places of the last pair that hold no query are zero.
void LoadQueryTiles(const AttentionTask& task, uint8_t* tiles) {
  const int queries = task.row_count * task.heads, steps = task.head_dim / 32;
  const __m512 scale = _mm512_set1_ps(task.scale * kLog2E);
  for (int i = 0; i < (queries + kPairQueries - 1) / kPairQueries * kPairQueries; ++i) {
    const float* from = nullptr;
    if (i < queries) {
      from = task.q + task.rows[i / task.heads].row * task.q_stride +
             int64_t{i % task.heads} * task.head_dim;
    }
    uint8_t* to = tiles + int64_t{i / kAmxRows} * steps * kTileBytes + i % kAmxRows * 64;
    for (int s = 0; s < steps; ++s, to += kTileBytes) {
      __m512i v = _mm512_setzero_si512();
      if (from != nullptr) {
        v = NarrowPair(_mm512_mul_ps(_mm512_loadu_ps(from + 32 * s), scale),
                       _mm512_mul_ps(_mm512_loadu_ps(from + 32 * s + 16), scale));
      }
      _mm512_store_si512(to, v);
    }
  }
}

// Of 32 queries or, without `both`, of 16 with the keys of tiles begin … end - 1, each 32 keys.
void ScorePair(const uint8_t* q, bool both, int steps, Range tiles, const Places& at) {
  for (int t = tiles.begin; t < tiles.end; ++t) {
    const uint8_t* keys = at.keys + int64_t{2} * t * steps * kTileBytes;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int s = 0; s < steps; ++s) {
      _tile_loadd(4, q + s * kTileBytes, 64);
      _tile_stream_loadd(6, keys + s * kTileBytes, 64);
      _tile_stream_loadd(7, keys + (steps + s) * kTileBytes, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (!both) continue;
      _tile_loadd(5, q + (steps + s) * kTileBytes, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    float* scores = at.scores + int64_t{t} * kTileKeys * kPairQueries;
    _tile_stored(0, scores, 64);
    _tile_stored(1, scores + 16 * kPairQueries, 64);
    if (!both) continue;
    _tile_stored(2, scores + 16 * kAmxRows, 64);
    _tile_stored(3, scores + 16 * kPairQueries + 16 * kAmxRows, 64);
  }
}

// Of sixteen keys from `first` on.
inline __mmask16 Seen(Range keys, int first) {
  return static_cast<__mmask16>(LeadingLanes(keys.end - first) & ~LeadingLanes(keys.begin - first));
}

// Scores of query i of the pair become weights; with `kAll` it sees all keys of the tiles, without,
// the weights of those that it does not see are zero.
template <bool kAll>
inline void SoftmaxKeys(int i, Range keys, Range tiles, const Places& at, float* max, float* sum) {
  constexpr int64_t kStride = 16 * kPairQueries;
  const float* scores = at.scores + 16 * i + 2 * tiles.begin * kStride;
  const int count = tiles.end - tiles.begin, first = tiles.begin * kTileKeys;
  const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
  const auto load = [&](int k) {
    const __m512 v = _mm512_load_ps(scores + k * kStride);
    return kAll ? v : _mm512_mask_mov_ps(lowest, Seen(keys, first + 16 * k), v);
  };
  __m512 largest[2] = {load(0), load(1)};
  for (int t = 1; t < count; ++t) {
    TRIVIUM_UNROLL for (int j = 0; j < 2; ++j) {
      largest[j] = _mm512_max_ps(largest[j], load(2 * t + j));
    }
  }
  const float most = _mm512_reduce_max_ps(_mm512_max_ps(largest[0], largest[1]));
  const __m512 shift = _mm512_set1_ps(most);
  __m512 total = _mm512_setzero_ps();
  uint8_t* to = at.weights + i / kAmxRows * (kChunkKeys / 32) * kTileBytes + i % kAmxRows * 64 +
                tiles.begin * kTileBytes;
  for (int t = 0; t < count; ++t, to += kTileBytes) {
    __m512 power[2];
    TRIVIUM_UNROLL for (int j = 0; j < 2; ++j) {
      power[j] = PowerOfTwo(_mm512_sub_ps(load(2 * t + j), shift));
      if (!kAll) power[j] = _mm512_maskz_mov_ps(Seen(keys, first + 32 * t + 16 * j), power[j]);
    }
    total = _mm512_add_ps(total, _mm512_add_ps(power[0], power[1]));
    _mm512_store_si512(to, NarrowPair(power[0], power[1]));
  }
  *max = most * kLn2;
  *sum = _mm512_reduce_add_ps(total);
}

void SoftmaxRow(int i, Range keys, Range tiles, const Places& at, float* max, float* sum) {
  if (keys.begin <= tiles.begin * kTileKeys && keys.end >= tiles.end * kTileKeys) {
    return SoftmaxKeys<true>(i, keys, tiles, at, max, sum);
  }
  SoftmaxKeys<false>(i, keys, tiles, at, max, sum);
}

// 32 elements from d on of the weighted sums of a pair, to rows `stride` floats apart.
void WeighPair(int d, int dim, bool both, Range tiles, const Places& at, float* out,
               int64_t stride) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int t = tiles.begin; t < tiles.end; ++t) {
    const uint8_t* weights = at.weights + t * kTileBytes;
    const uint8_t* values = at.values + (int64_t{t} * dim + d) / 16 * kTileBytes;
    _tile_loadd(4, weights, 64);
    _tile_stream_loadd(6, values, 64);
    _tile_stream_loadd(7, values + kTileBytes, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (!both) continue;
    _tile_loadd(5, weights + kChunkKeys / 32 * kTileBytes, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, out, stride * 4);
  _tile_stored(1, out + 16, stride * 4);
  if (!both) return;
  _tile_stored(2, out + kAmxRows * stride, stride * 4);
  _tile_stored(3, out + kAmxRows * stride + 16, stride * 4);
}

void AttendPair(const AttentionTask& task, int chunk, int first, const Places& at,
                const BadKeys& bad, const AttentionPartial& partial) {
  const int dim = task.head_dim;
  const int left = task.row_count * task.heads - first;
  const int queries = left < kPairQueries ? left : kPairQueries;
  const Range rows = {first / task.heads, (first + queries - 1) / task.heads + 1};
  const Range keys = KeysOfRows(task, rows, chunk * kChunkKeys, kChunkKeys);
  if (keys.empty()) return;
  const Range tiles = {keys.begin / kTileKeys, (keys.end - 1) / kTileKeys + 1};
  const bool both = queries > kAmxRows;
  ScorePair(at.q + int64_t{first} / kAmxRows * (dim / 32) * kTileBytes, both, dim / 32, tiles, at);
  // Tile rows behind the last query hold what an earlier one left: nothing of it reaches another.
  for (int i = 0; i < queries; ++i) {
    const int query = first + i;
    const Range seen = ChunkKeys(task, query / task.heads, chunk);
    float max, sum;
    SoftmaxRow(i, seen, tiles, at, &max, &sum);
    if (seen.empty()) continue;
    partial.max[query] = max;
    partial.sum[query] = bad.SeenBy(seen) ? __builtin_nanf("") : sum;
  }
  float* out = partial.out + int64_t{first} * task.padded_dim;
  for (int d = 0; d < dim; d += 32) {
    if (queries % kAmxRows == 0) {
      WeighPair(d, dim, both, tiles, at, out + d, task.padded_dim);
      continue;
    }
    WeighPair(d, dim, both, tiles, at, at.out, 32);
    for (int i = 0; i < queries; ++i) {
      float* to = out + int64_t{i} * task.padded_dim + d;
      _mm512_storeu_ps(to, _mm512_load_ps(at.out + 32 * i));
      _mm512_storeu_ps(to + 16, _mm512_load_ps(at.out + 32 * i + 16));
    }
  }
}

}  // namespace

void AttendOnTiles(const AttentionTask& task, int chunk, uint8_t* scratch, int64_t* loaded_rows,
                   const AttentionPartial& partial) {
  const int queries = task.row_count * task.heads;
  const Range keys = KeysOfRows(task, {0, task.row_count}, chunk * kChunkKeys, kChunkKeys);
  if (keys.empty()) return;
  const Places at = PlacesIn(scratch, queries, task.head_dim);
  KERNELS_CHECK(reinterpret_cast<uint8_t*>(at.out + kPairQueries * kPairQueries) - scratch <=
                AmxScratchBytes(queries, task.head_dim));
  BadKeys bad;
  LoadChunkOfAnyType(task, chunk, keys, at, &bad);
  *loaded_rows += 2 * (keys.end - keys.begin);
  LoadQueryTiles(task, at.q);
  const Tiles tiles;
  for (int first = 0; first < queries; first += kPairQueries) {
    AttendPair(task, chunk, first, at, bad, partial);
  }
}

}  // namespace trivium::kernels::TRIVIUM_SIMD
