// Attention of some query rows over one chunk of keys, in three passes: scores, softmax, values.
// Keys and values are read and converted to float32 one tile at a time, once for all neighbours
// that have them in the same pages.
#include "kernels/cpu/simd/kv_stream.h"
#include "kernels/cpu/simd/simd.h"

namespace trivium::kernels::TRIVIUM_SIMD {
namespace {

constexpr int kTileVectors = kTileKeys / 8;

inline Range TileKeys(const AttentionTask& task, int row, int chunk, int tile_begin) {
  return SeenKeys(task, row, chunk * kChunkKeys + tile_begin, kTileKeys);
}

// The first rows of the range, up to one that has less than `keys` leading keys in common with the
// row before it.
inline Range LeadingSharers(const AttentionTask& task, Range rows, int keys) {
  int end = rows.begin + 1;
  while (end < rows.end && task.rows[end].shared >= keys) ++end;
  return {rows.begin, end};
}

// The keys of a row from position `first` on are read soon.
inline void PrefetchTile(const AttentionTask& task, int row, int first, int64_t offset) {
  Prefetch(task, task.rows[row].block_table, first, task.rows[row].position + 1 - first, offset);
}

inline float* ScoresAt(const AttentionTask& task, const AttentionScratch& s, int query,
                       int tile_begin) {
  const int64_t queries = int64_t{task.row_count} * task.heads;
  return s.scores + queries * tile_begin + int64_t{query} * kTileKeys;
}

// Calls use(run) for each run of rows that have the tile in the same pages, when what they see of
// it is loaded. What a run shares with the one before it may be there already.
template <typename Load, typename Use>
inline void ForRunsOfTile(const AttentionTask& task, Range rows, int chunk, int tile_begin,
                          const AttentionScratch& s, const Load& load, const Use& use) {
  const int first = chunk * kChunkKeys + tile_begin;
  Range held;  // of the tile, for the run before
  for (int begin = rows.begin; begin < rows.end;) {
    const Range run = LeadingSharers(task, {begin, rows.end}, first + kTileKeys);
    const Range wanted = KeysOfRows(task, run, first, kTileKeys);
    if (Clamp(task.rows[begin].shared - first, kTileKeys) < held.end) {
      held.end = Clamp(task.rows[begin].shared - first, kTileKeys);
    }
    if (!wanted.empty()) {
      if (held.begin > wanted.begin || held.end <= wanted.begin)
        held = {wanted.begin, wanted.begin};
      if (held.end < wanted.end) {
        load(begin, first, Range{held.end, wanted.end});
        *s.loaded_rows += wanted.end - held.end;
        held.end = wanted.end;
      }
      use(run);
    }
    begin = run.end;
  }
}

inline void CopyScaled(const float* from, float scale, int count, float* to) {
  int i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(to + i, _mm256_mul_ps(_mm256_loadu_ps(from + i), _mm256_set1_ps(scale)));
  }
  for (; i < count; ++i) to[i] = from[i] * scale;
}

// The scaled queries, padded with zeros. Query i = row * heads + head.
void LoadQueries(const AttentionTask& task, float* q) {
  for (int row = 0; row < task.row_count; ++row) {
    const float* source = task.q + task.rows[row].row * task.q_stride;
    for (int head = 0; head < task.heads; ++head, q += task.padded_dim) {
      CopyScaled(source + int64_t{head} * task.head_dim, task.scale, task.head_dim, q);
      for (int d = task.head_dim; d < task.padded_dim; ++d) q[d] = 0;
    }
  }
}

// Adds the products of eight elements to the scores of kQueries queries with the keys of a tile.
// Three queries fill the sixteen registers.
template <int kQueries>
inline void ScoreEight(const float* q, int64_t q_stride, const float* keys,
                       __m256 acc[kQueries][kTileVectors]) {
  TRIVIUM_UNROLL for (int d = 0; d < 8; ++d) {
    __m256 element[kQueries];
    TRIVIUM_UNROLL for (int i = 0; i < kQueries; ++i) {
      element[i] = _mm256_broadcast_ss(q + i * q_stride + d);
    }
    TRIVIUM_UNROLL for (int v = 0; v < kTileVectors; ++v) {
      const __m256 eight = _mm256_loadu_ps(keys + d * kTileKeys + 8 * v);
      TRIVIUM_UNROLL for (int i = 0; i < kQueries; ++i) {
        acc[i][v] = _mm256_fmadd_ps(element[i], eight, acc[i][v]);
      }
    }
  }
}

// A score is one chain of additions over the elements, whoever else is computed.
template <int kQueries>
void ScoreTile(const AttentionTask& task, const float* q, const float* tile, float* scores) {
  __m256 acc[kQueries][kTileVectors];
  TRIVIUM_UNROLL for (int i = 0; i < kQueries; ++i) {
    TRIVIUM_UNROLL for (int v = 0; v < kTileVectors; ++v) acc[i][v] = _mm256_setzero_ps();
  }
  for (int d = 0; d < task.padded_dim; d += 8) {
    ScoreEight<kQueries>(q + d, task.padded_dim, tile + int64_t{d} * kTileKeys, acc);
  }
  TRIVIUM_UNROLL for (int i = 0; i < kQueries; ++i) {
    TRIVIUM_UNROLL for (int v = 0; v < kTileVectors; ++v) {
      _mm256_storeu_ps(scores + i * kTileKeys + 8 * v, acc[i][v]);
    }
  }
}

// Scores that a row has no use for are computed where a neighbour needs them, and not used.
void ScoreRows(const AttentionTask& task, Range rows, int tile_begin, const AttentionScratch& s) {
  const int end = rows.end * task.heads;
  for (int query = rows.begin * task.heads; query < end;) {
    const float* q = s.q + int64_t{query} * task.padded_dim;
    float* scores = ScoresAt(task, s, query, tile_begin);
    const int left = end - query;
    if (left >= 3) {
      ScoreTile<3>(task, q, s.tile, scores);
    } else if (left == 2) {
      ScoreTile<2>(task, q, s.tile, scores);
    } else {
      ScoreTile<1>(task, q, s.tile, scores);
    }
    query += left < 3 ? left : 3;
  }
}

// Of the scores of a tile, those that the query does not see become -inf: a weight of 0.
void Mask(Range keys, float* scores) {
  for (int i = 0; i < kTileKeys; i += 8) {
    const __m256i seen = _mm256_andnot_si256(FirstLanes(keys.begin - i), FirstLanes(keys.end - i));
    const __m256 eight = _mm256_loadu_ps(scores + i);
    _mm256_storeu_ps(scores + i, _mm256_blendv_ps(_mm256_set1_ps(-__builtin_inff()), eight,
                                                  _mm256_castsi256_ps(seen)));
  }
}

void CapScores(float* scores, float cap) {
  for (int i = 0; i < kTileKeys; i += 8) {
    const __m256 part = _mm256_mul_ps(_mm256_loadu_ps(scores + i), _mm256_set1_ps(1 / cap));
    _mm256_storeu_ps(scores + i, _mm256_mul_ps(_mm256_set1_ps(cap), Tanh(part)));
  }
}

// exp(x) for x <= 0, to about two units in the last place; 0 below -87.3, NaN stays NaN. Adding
// kShift rounds to a whole number and leaves it in the low bits.
inline __m256 WeightOf(__m256 x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23
  const __m256 lowest = _mm256_set1_ps(-87.3f);
  const __m256 shifted = _mm256_fmadd_ps(_mm256_max_ps(lowest, x), _mm256_set1_ps(1.44269504f),
                                         _mm256_set1_ps(kShift));
  const __m256 n = _mm256_sub_ps(shifted, _mm256_set1_ps(kShift));
  const __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693147181f), _mm256_max_ps(lowest, x));
  __m256 p = _mm256_set1_ps(1.0f / 720);
  constexpr float kTaylor[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  TRIVIUM_UNROLL for (const float c : kTaylor) p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
  const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
  const __m256 weight = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
  return _mm256_andnot_ps(_mm256_cmp_ps(x, lowest, _CMP_LT_OQ), weight);
}

// The scores of one query with the tiles that it sees, `stride` floats apart.
struct QueryScores {
  float* begin;
  float* end;
  int64_t stride;
};

__m256 LargestScores(const QueryScores& scores) {
  __m256 largest = _mm256_set1_ps(-__builtin_inff());
  for (const float* tile = scores.begin; tile != scores.end; tile += scores.stride) {
    TRIVIUM_UNROLL for (int i = 0; i < kTileKeys; i += 8) {
      largest = _mm256_max_ps(largest, _mm256_loadu_ps(tile + i));
    }
  }
  return largest;
}

// Replaces scores by exp(score - max). Lane j of the sum always takes the keys j, j + 8, …
__m256 Weights(const QueryScores& scores, __m256 max) {
  __m256 sum = _mm256_setzero_ps();
  for (float* tile = scores.begin; tile != scores.end; tile += scores.stride) {
    TRIVIUM_UNROLL for (int i = 0; i < kTileKeys; i += 8) {
      const __m256 weight = WeightOf(_mm256_sub_ps(_mm256_loadu_ps(tile + i), max));
      _mm256_storeu_ps(tile + i, weight);
      sum = _mm256_add_ps(sum, weight);
    }
  }
  return sum;
}

// The scores of a query with the keys that it sees of the chunk become weights.
void Softmax(const AttentionTask& task, const AttentionScratch& s, int query, Range keys,
             const AttentionPartial& partial) {
  const int64_t stride = int64_t{task.row_count} * task.heads * kTileKeys;
  const int tiles_begin = keys.begin / kTileKeys, tiles_end = (keys.end - 1) / kTileKeys + 1;
  float* first = s.scores + int64_t{query} * kTileKeys;
  for (int t = tiles_begin; t < tiles_end; ++t) {
    const Range seen = {keys.begin - t * kTileKeys, keys.end - t * kTileKeys};
    if (task.softcap > 0) CapScores(first + t * stride, task.softcap);
    if (seen.begin > 0 || seen.end < kTileKeys) Mask(seen, first + t * stride);
  }
  const QueryScores scores = {first + tiles_begin * stride, first + tiles_end * stride, stride};
  const float max = MaxLanes(LargestScores(scores));
  partial.max[query] = max;
  partial.sum[query] = SumLanes(Weights(scores, _mm256_set1_ps(max)));
}

// out[kHeads][8 * kVectors at d] += weights[kHeads][count] * tile
template <int kHeads, int kVectors>
inline void WeighValues(const float* weights, const float* tile, int dim, int count, float* out) {
  __m256 acc[kHeads][kVectors];
  TRIVIUM_UNROLL for (int h = 0; h < kHeads; ++h) {
    TRIVIUM_UNROLL for (int v = 0; v < kVectors; ++v) acc[h][v] =
        _mm256_loadu_ps(out + int64_t{h} * dim + 8 * v);
  }
  _Pragma("GCC unroll 4") for (int i = 0; i < count; ++i) {
    __m256 w[kHeads];
    TRIVIUM_UNROLL for (int h = 0; h < kHeads; ++h) {
      w[h] = _mm256_broadcast_ss(weights + h * kTileKeys + i);
    }
    TRIVIUM_UNROLL for (int v = 0; v < kVectors; ++v) {
      const __m256 value = _mm256_loadu_ps(tile + int64_t{i} * dim + 8 * v);
      TRIVIUM_UNROLL for (int h = 0; h < kHeads; ++h) {
        acc[h][v] = _mm256_fmadd_ps(w[h], value, acc[h][v]);
      }
    }
  }
  TRIVIUM_UNROLL for (int h = 0; h < kHeads; ++h) {
    TRIVIUM_UNROLL for (int v = 0; v < kVectors; ++v)
        _mm256_storeu_ps(out + int64_t{h} * dim + 8 * v, acc[h][v]);
  }
}

template <int kHeads>
void WeighTile(const float* weights, const float* tile, int dim, int count, float* out) {
  int d = 0;
  for (; d + 32 <= dim; d += 32) WeighValues<kHeads, 4>(weights, tile + d, dim, count, out + d);
  for (; d < dim; d += 8) WeighValues<kHeads, 1>(weights, tile + d, dim, count, out + d);
}

// Queries that all see the same keys of the tile.
void WeighQueries(const AttentionTask& task, Range queries, Range keys, const float* weights,
                  const float* tile, float* out) {
  const int count = keys.end - keys.begin;
  tile += int64_t{keys.begin} * task.padded_dim;
  for (int query = queries.begin; query < queries.end;) {
    const int left = queries.end - query;
    const float* from = weights + int64_t{query} * kTileKeys + keys.begin;
    float* sums = out + int64_t{query} * task.padded_dim;
    if (left >= 3) {
      WeighTile<3>(from, tile, task.padded_dim, count, sums);
    } else if (left == 2) {
      WeighTile<2>(from, tile, task.padded_dim, count, sums);
    } else {
      WeighTile<1>(from, tile, task.padded_dim, count, sums);
    }
    query += left < 3 ? left : 3;
  }
}

// Keeps to each row's own keys: a value that a row must not see is never multiplied, not even by 0.
void WeighRows(const AttentionTask& task, Range rows, int chunk, int tile_begin,
               const AttentionScratch& s, float* out) {
  for (int row = rows.begin; row < rows.end;) {
    const Range keys = TileKeys(task, row, chunk, tile_begin);
    int end = row + 1;
    for (; end < rows.end; ++end) {
      const Range others = TileKeys(task, end, chunk, tile_begin);
      if (others.begin != keys.begin || others.end != keys.end) break;
    }
    if (!keys.empty()) {
      WeighQueries(task, {row * task.heads, end * task.heads}, keys,
                   ScoresAt(task, s, 0, tile_begin), s.tile, out);
    }
    row = end;
  }
}

// The tiles of a chunk that have keys which a row sees, each asked for while another is used.
struct Tiles {
  int chunk, begin, end;
};

void ScoreTiles(const AttentionTask& task, Range rows, Tiles tiles, const AttentionScratch& s) {
  for (int t = tiles.begin; t < tiles.end; t += kTileKeys) {
    const auto load = [&](int row, int first, Range part) {
      LoadKeys(task, task.rows[row].block_table, first, part, s.tile);
      if (t + kTileKeys < tiles.end) PrefetchTile(task, row, first + kTileKeys, 0);
      PrefetchTile(task, row, first, task.values_offset);
    };
    ForRunsOfTile(task, rows, tiles.chunk, t, s, load,
                  [&](Range run) { ScoreRows(task, run, t, s); });
  }
}

void WeighTiles(const AttentionTask& task, Range rows, Tiles tiles, const AttentionScratch& s,
                float* out) {
  for (int t = tiles.begin; t < tiles.end; t += kTileKeys) {
    const auto load = [&](int row, int first, Range part) {
      LoadValues(task, task.rows[row].block_table, first, part, s.tile);
      PrefetchTile(task, row, first + kChunkKeys, 0);
    };
    ForRunsOfTile(task, rows, tiles.chunk, t, s, load,
                  [&](Range run) { WeighRows(task, run, tiles.chunk, t, s, out); });
  }
}

// Calls use(keys, rows, tile) for the tiles of a streamed task, with the seen keys of each.
template <typename Use>
void ForStreamedTiles(const AttentionTask& task, Tiles tiles, const AttentionScratch& s,
                      int64_t offset, const Use& use) {
  for (int t = tiles.begin; t < tiles.end; t += kTileKeys) {
    const Range keys = TileKeys(task, 0, tiles.chunk, t);
    TileRows rows;
    FindRows(task, task.rows[0].block_table, tiles.chunk * kChunkKeys + t, keys, offset, &rows);
    *s.loaded_rows += keys.end - keys.begin;
    use(keys, rows, t);
  }
}

void StreamScores(const AttentionTask& task, Tiles tiles, const AttentionScratch& s) {
  ForStreamedTiles(task, tiles, s, 0, [&](Range keys, const TileRows& rows, int t) {
    if (t + kTileKeys < tiles.end) {
      PrefetchTile(task, 0, tiles.chunk * kChunkKeys + t + kTileKeys, 0);
    }
    PrefetchRows(task, rows, task.values_offset);
    WithTypeAndHeads(task, [&]<KvType kType, int kHeads>() {
      ScoreStreamed<kType, kHeads>(task, s.q, rows, keys, ScoresAt(task, s, 0, t));
    });
  });
}

void StreamValues(const AttentionTask& task, Tiles tiles, const AttentionScratch& s, float* out) {
  ForStreamedTiles(task, tiles, s, task.values_offset,
                   [&](Range keys, const TileRows& rows, int t) {
                     PrefetchTile(task, 0, (tiles.chunk + 1) * kChunkKeys + t, 0);
                     WithTypeAndHeads(task, [&]<KvType kType, int kHeads>() {
                       WeighStreamed<kType, kHeads>(task, ScoresAt(task, s, 0, t), rows, keys, out);
                     });
                   });
}

// Rows of which each has keys of this chunk in common with the one before it.
void AttendSharers(const AttentionTask& task, Range rows, int chunk, const AttentionScratch& s,
                   const AttentionPartial& partial) {
  const Range keys = KeysOfRows(task, rows, chunk * kChunkKeys, kChunkKeys);
  const Tiles tiles = {chunk, keys.begin / kTileKeys * kTileKeys, keys.end};
  const bool is_streamed = IsStreamed(task);
  if (is_streamed) {
    StreamScores(task, tiles, s);
  } else {
    ScoreTiles(task, rows, tiles, s);
  }
  for (int i = rows.begin * task.heads; i < rows.end * task.heads; ++i) {
    const Range seen = ChunkKeys(task, i / task.heads, chunk);
    if (seen.empty()) continue;
    Softmax(task, s, i, seen, partial);
    float* out = partial.out + int64_t{i} * task.padded_dim;
    for (int d = 0; d < task.padded_dim; d += 8) _mm256_storeu_ps(out + d, _mm256_setzero_ps());
  }
  if (is_streamed) return StreamValues(task, tiles, s, partial.out);
  WeighTiles(task, rows, tiles, s, partial.out);
}

void CopyQuery(const AttentionTask& task, int query, const AttentionPartial& from,
               const AttentionPartial& to) {
  to.max[query] = from.max[query];
  to.sum[query] = from.sum[query];
  const int64_t at = int64_t{query} * task.padded_dim;
  CopyScaled(from.out + at, 1, task.padded_dim, to.out + at);
}

inline float ExpScalar(float x) { return _mm256_cvtss_f32(Exp(_mm256_set1_ps(x))); }

}  // namespace

void AttendChunk(const AttentionTask& task, int chunk, const AttentionScratch& scratch,
                 const AttentionPartial& partial) {
  LoadQueries(task, scratch.q);
  for (int begin = 0; begin < task.row_count;) {
    const Range rows = LeadingSharers(task, {begin, task.row_count}, chunk * kChunkKeys + 1);
    AttendSharers(task, rows, chunk, scratch, partial);
    begin = rows.end;
  }
}

void MergeChunk(const AttentionTask& task, int chunk, const AttentionPartial& total,
                const AttentionPartial& partial) {
  for (int i = 0; i < task.row_count * task.heads; ++i) {
    if (ChunkKeys(task, i / task.heads, chunk).empty()) continue;
    if (SeenKeys(task, i / task.heads, 0, chunk * kChunkKeys).empty()) {
      CopyQuery(task, i, partial, total);
      continue;
    }
    const float max = total.max[i] > partial.max[i] ? total.max[i] : partial.max[i];
    const float a = ExpScalar(total.max[i] - max);
    const float b = ExpScalar(partial.max[i] - max);
    total.max[i] = max;
    total.sum[i] = total.sum[i] * a + partial.sum[i] * b;
    const int64_t at = int64_t{i} * task.padded_dim;
    for (int d = 0; d < task.padded_dim; d += 8) {
      const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(total.out + at + d), _mm256_set1_ps(a));
      _mm256_storeu_ps(total.out + at + d, _mm256_fmadd_ps(_mm256_loadu_ps(partial.out + at + d),
                                                           _mm256_set1_ps(b), scaled));
    }
  }
}

void FinishAttention(const AttentionTask& task, const AttentionPartial& total, float* out,
                     float* lse, int64_t lse_stride) {
  for (int i = 0; i < task.row_count * task.heads; ++i) {
    const int64_t row = task.rows[i / task.heads].row;
    const int head = i % task.heads;
    const float* source = total.out + int64_t{i} * task.padded_dim;
    float* target = out + row * task.q_stride + int64_t{head} * task.head_dim;
    CopyScaled(source, 1 / total.sum[i], task.head_dim, target);
    if (lse != nullptr) lse[row * lse_stride + head] = total.max[i] + __builtin_logf(total.sum[i]);
  }
}

}  // namespace trivium::kernels::TRIVIUM_SIMD
