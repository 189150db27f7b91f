// Attention of some query rows over one chunk of keys, in three passes: scores, softmax, values.
// Keys and values are read and converted to float32 one tile at a time, once for all neighbours
// that have them in the same pages.
#include "kernels/cpu/simd/simd.h"

namespace trivium::kernels::TRIVIUM_SIMD {
namespace {

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

inline Range TileKeys(const AttentionTask& task, int row, int chunk, int tile_begin) {
  return SeenKeys(task, row, chunk * kChunkKeys + tile_begin, kTileKeys);
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

// The first rows of the range, up to one that has less than `keys` leading keys in common with the
// row before it.
inline Range LeadingSharers(const AttentionTask& task, Range rows, int keys) {
  int end = rows.begin + 1;
  while (end < rows.end && task.rows[end].shared >= keys) ++end;
  return {rows.begin, end};
}

// Pads with zeros: an earlier call may have left anything there, and 0 * NaN is NaN.
inline void ConvertRow(const uint16_t* half, int dim, int padded_dim, float* out) {
  int d = 0;
  for (; d + 8 <= dim; d += 8) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(half + d));
    _mm256_storeu_ps(out + d, _mm256_cvtph_ps(v));
  }
  for (; d < dim; ++d) out[d] = _cvtsh_ss(half[d]);
  for (; d < padded_dim; ++d) out[d] = 0;
}

// Fills the rows begin … end - 1 of a tile with the keys (offset 0) or values (offset of the second
// half of a page) from position `first` on.
void LoadTile(const AttentionTask& task, const int32_t* block_table, int first, Range part,
              int64_t offset, float* tile) {
  int block = (first + part.begin) / task.block_tokens;
  int slot = (first + part.begin) % task.block_tokens;
  for (int i = part.begin; i < part.end; ++i) {
    const uint16_t* row =
        task.kv_group + block_table[block] * task.page_elems + offset + slot * task.row_elems;
    ConvertRow(row, task.head_dim, task.padded_dim, tile + int64_t{i} * task.padded_dim);
    if (++slot == task.block_tokens) {
      slot = 0;
      ++block;
    }
  }
}

// Calls use(run) for each run of rows that have the tile in the same pages, when what they see of
// it is loaded. What a run shares with the one before it may be there already.
template <typename Use>
inline void ForRunsOfTile(const AttentionTask& task, Range rows, int chunk, int tile_begin,
                          int64_t offset, const AttentionScratch& s, const Use& use) {
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
        LoadTile(task, task.rows[begin].block_table, first, {held.end, wanted.end}, offset, s.tile);
        *s.loaded_rows += wanted.end - held.end;
        held.end = wanted.end;
      }
      use(run);
    }
    begin = run.end;
  }
}

// The scaled queries, padded with zeros. Query i = row * heads + head.
void LoadQueries(const AttentionTask& task, float* q) {
  for (int i = 0; i < task.row_count * task.heads; ++i) {
    const float* source = task.q + task.rows[i / task.heads].row * task.q_stride +
                          int64_t{i % task.heads} * task.head_dim;
    float* row = q + int64_t{i} * task.padded_dim;
    for (int d = 0; d < task.head_dim; ++d) row[d] = source[d] * task.scale;
    for (int d = task.head_dim; d < task.padded_dim; ++d) row[d] = 0;
  }
}

// Lane sums of four vectors; each is ((0+1)+(2+3)) + ((4+5)+(6+7)).
inline __m128 SumFour(const __m256* v) {
  const __m256 ab = _mm256_hadd_ps(v[0], v[1]);
  const __m256 cd = _mm256_hadd_ps(v[2], v[3]);
  const __m256 abcd = _mm256_hadd_ps(ab, cd);
  return _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
}

// Scores of kQueries queries with four keys. Three queries fill the sixteen registers.
template <int kQueries>
inline void ScoreFour(const float* q, const float* keys, int dim, float* scores) {
  __m256 acc[kQueries][4];
  TRIVIUM_UNROLL for (int i = 0; i < kQueries; ++i) {
    TRIVIUM_UNROLL for (int j = 0; j < 4; ++j) acc[i][j] = _mm256_setzero_ps();
  }
  for (int d = 0; d < dim; d += 8) {
    __m256 v[kQueries];
    TRIVIUM_UNROLL for (int i = 0; i < kQueries; ++i) {
      v[i] = _mm256_loadu_ps(q + int64_t{i} * dim + d);
    }
    TRIVIUM_UNROLL for (int j = 0; j < 4; ++j) {
      const __m256 k = _mm256_loadu_ps(keys + int64_t{j} * dim + d);
      TRIVIUM_UNROLL for (int i = 0; i < kQueries; ++i) {
        acc[i][j] = _mm256_fmadd_ps(v[i], k, acc[i][j]);
      }
    }
  }
  TRIVIUM_UNROLL for (int i = 0; i < kQueries; ++i) {
    _mm_storeu_ps(scores + i * kChunkKeys, SumFour(acc[i]));
  }
}

template <int kQueries>
void ScoreTile(const float* q, const float* tile, int dim, int count, float* scores) {
  for (int j = 0; j < count; j += 4) {
    ScoreFour<kQueries>(q, tile + int64_t{j} * dim, dim, scores + j);
  }
}

// Scores that a row has no use for are computed where a neighbour needs them, and not used.
void ScoreRows(const AttentionTask& task, Range rows, int chunk, int tile_begin,
               const AttentionScratch& s) {
  const int end = rows.end * task.heads;
  for (int query = rows.begin * task.heads; query < end;) {
    const int count = end - query < 3 ? end - query : 3;
    int seen = 0;
    for (int i = query; i < query + count; ++i) {
      const Range keys = TileKeys(task, i / task.heads, chunk, tile_begin);
      if (!keys.empty() && keys.end > seen) seen = keys.end;
    }
    const float* q = s.q + int64_t{query} * task.padded_dim;
    float* scores = s.scores + int64_t{query} * kChunkKeys + tile_begin;
    if (count == 3) {
      ScoreTile<3>(q, s.tile, task.padded_dim, seen, scores);
    } else if (count == 2) {
      ScoreTile<2>(q, s.tile, task.padded_dim, seen, scores);
    } else {
      ScoreTile<1>(q, s.tile, task.padded_dim, seen, scores);
    }
    query += count;
  }
}

// Of eight keys from `i` on, those in the range.
inline __m256 SeenLanes(Range keys, int i) {
  return _mm256_castsi256_ps(
      _mm256_andnot_si256(FirstLanes(keys.begin - i), FirstLanes(keys.end - i)));
}

void CapScores(float* scores, Range keys, float cap) {
  for (int i = keys.begin / 8 * 8; i < keys.end; i += 8) {
    const __m256 part = _mm256_mul_ps(_mm256_loadu_ps(scores + i), _mm256_set1_ps(1 / cap));
    _mm256_storeu_ps(scores + i, _mm256_mul_ps(_mm256_set1_ps(cap), Tanh(part)));
  }
}

// Replaces scores by exp(score - max). Lane j of the sum always takes the keys j, j + 8, …
void Softmax(float* scores, Range keys, float* max_out, float* sum_out) {
  const __m256 nothing = _mm256_set1_ps(-__builtin_inff());
  const int first = keys.begin / 8 * 8;
  __m256 largest = nothing;
  for (int i = first; i < keys.end; i += 8) {
    const __m256 seen = SeenLanes(keys, i);
    largest = _mm256_max_ps(largest, _mm256_blendv_ps(nothing, _mm256_loadu_ps(scores + i), seen));
  }
  const float max = MaxLanes(largest);
  __m256 sum = _mm256_setzero_ps();
  for (int i = first; i < keys.end; i += 8) {
    const __m256 seen = SeenLanes(keys, i);
    const __m256 shifted = _mm256_sub_ps(_mm256_loadu_ps(scores + i), _mm256_set1_ps(max));
    const __m256 e = _mm256_and_ps(seen, Exp(shifted));
    _mm256_storeu_ps(scores + i, e);
    sum = _mm256_add_ps(sum, e);
  }
  *max_out = max;
  *sum_out = SumLanes(sum);
}

// out[kHeads][8 * kVectors at d] += weights[kHeads][count] * tile
template <int kHeads, int kVectors>
inline void WeighValues(const float* weights, const float* tile, int dim, int count, float* out) {
  __m256 acc[kHeads][kVectors];
  TRIVIUM_UNROLL for (int h = 0; h < kHeads; ++h) {
    TRIVIUM_UNROLL for (int v = 0; v < kVectors; ++v) acc[h][v] =
        _mm256_loadu_ps(out + int64_t{h} * dim + 8 * v);
  }
  for (int i = 0; i < count; ++i) {
    __m256 w[kHeads];
    TRIVIUM_UNROLL for (int h = 0; h < kHeads; ++h) {
      w[h] = _mm256_broadcast_ss(weights + h * kChunkKeys + i);
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
    const float* from = weights + int64_t{query} * kChunkKeys + keys.begin;
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
      WeighQueries(task, {row * task.heads, end * task.heads}, keys, s.scores + tile_begin, s.tile,
                   out);
    }
    row = end;
  }
}

// Rows of which each has keys of this chunk in common with the one before it.
void AttendSharers(const AttentionTask& task, Range rows, int chunk, const AttentionScratch& s,
                   const AttentionPartial& partial) {
  const Range keys = KeysOfRows(task, rows, chunk * kChunkKeys, kChunkKeys);
  const int first_tile = keys.begin / kTileKeys * kTileKeys;
  for (int t = first_tile; t < keys.end; t += kTileKeys) {
    ForRunsOfTile(task, rows, chunk, t, 0, s,
                  [&](Range run) { ScoreRows(task, run, chunk, t, s); });
  }
  for (int i = rows.begin * task.heads; i < rows.end * task.heads; ++i) {
    const Range seen = ChunkKeys(task, i / task.heads, chunk);
    if (seen.empty()) continue;
    float* scores = s.scores + int64_t{i} * kChunkKeys;
    if (task.softcap > 0) CapScores(scores, seen, task.softcap);
    Softmax(scores, seen, partial.max + i, partial.sum + i);
    float* out = partial.out + int64_t{i} * task.padded_dim;
    for (int d = 0; d < task.padded_dim; ++d) out[d] = 0;
  }
  const int64_t values = task.block_tokens * task.row_elems;
  for (int t = first_tile; t < keys.end; t += kTileKeys) {
    ForRunsOfTile(task, rows, chunk, t, values, s,
                  [&](Range run) { WeighRows(task, run, chunk, t, s, partial.out); });
  }
}

void CopyQuery(const AttentionTask& task, int query, const AttentionPartial& from,
               const AttentionPartial& to) {
  to.max[query] = from.max[query];
  to.sum[query] = from.sum[query];
  const int64_t at = int64_t{query} * task.padded_dim;
  for (int d = 0; d < task.padded_dim; ++d) to.out[at + d] = from.out[at + d];
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
    for (int d = 0; d < task.head_dim; ++d) target[d] = source[d] / total.sum[i];
    if (lse != nullptr) lse[row * lse_stride + head] = total.max[i] + __builtin_logf(total.sum[i]);
  }
}

}  // namespace trivium::kernels::TRIVIUM_SIMD
