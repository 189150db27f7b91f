// Matrix products of integer activations and quantised weights. Integer sums are exact, so the
// order of the float operations of an output is: block by block, scale product, then offset.
#include "kernels/cpu/simd/simd.h"

namespace trivium::kernels::TRIVIUM_SIMD {
namespace {

constexpr int kTileRows = 4;        // rows that share the unpacking of a weight
constexpr int64_t kCacheRows = 64;  // rows whose integers stay in cache while the panels pass by

inline __m256 Halfs(const uint8_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// Four bytes of activations, in every 32-bit lane.
inline __m256i Spread(const void* p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return _mm256_set1_epi32(word);
}

inline void StoreOutputs(float* y, __m256 v, int64_t outputs) {
  if (outputs >= kPanelOutputs) {
    _mm256_storeu_ps(y, v);
  } else {
    _mm256_maskstore_ps(y, FirstLanes(outputs), v);
  }
}

#ifdef __AVX512VNNI__
inline __m256i DotBytes(__m256i sum, __m256i u, __m256i s) {
  return _mm256_dpbusd_epi32(sum, u, s);
}
inline __m256i DotWords(__m256i sum, __m256i a, __m256i b) {
  return _mm256_dpwssd_epi32(sum, a, b);
}
inline __m256i JoinBytes(__m256i high, __m256i low) {
  return _mm256_add_epi32(_mm256_slli_epi32(high, kLowBits), low);
}
#else
// Weights 0..15 times |activations| <= 127: a 16-bit lane holds all 16 products of a block.
inline __m256i DotBytes(__m256i sum, __m256i u, __m256i s) {
  return _mm256_add_epi16(sum, _mm256_maddubs_epi16(u, s));
}
inline __m256i DotWords(__m256i sum, __m256i a, __m256i b) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
inline __m256i JoinBytes(__m256i high, __m256i low) {
  return _mm256_add_epi32(_mm256_madd_epi16(high, _mm256_set1_epi16(1 << kLowBits)),
                          _mm256_madd_epi16(low, _mm256_set1_epi16(1)));
}
#endif

struct Tile {
  const uint8_t* panel;
  int64_t blocks;
  int64_t row;
};

template <int kRows, bool kHasMin>
void Tile4(const MatmulTask& task, const Tile& tile, __m256* acc) {
  const int8_t* q = task.quantised.q8 + tile.row * task.k * 2;
  const float* scales = task.quantised.scales + tile.row * tile.blocks;
  const float* sums = task.quantised.sums + tile.row * tile.blocks;
  const __m256i low = _mm256_set1_epi8(15);
  const uint8_t* block = tile.panel;
  for (int64_t b = 0; b < tile.blocks; ++b) {
    const __m256 d = Halfs(block);
    const __m256 m = kHasMin ? Halfs(block + 16) : _mm256_mul_ps(d, _mm256_set1_ps(-8.0f));
    block += kHasMin ? 32 : 16;
    __m256i high[kRows], rest[kRows];
    TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) high[r] = rest[r] = _mm256_setzero_si256();
    TRIVIUM_ROLLED for (int i = 0; i < 4; ++i) {
      const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block) + i);
      const __m256i even = _mm256_and_si256(both, low);
      const __m256i odd = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
      TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) {
        const int8_t* a = q + (r * task.k + b * kQuantBlock) * 2 + 8 * i;
        high[r] = DotBytes(DotBytes(high[r], even, Spread(a)), odd, Spread(a + 4));
        a += kQuantBlock;
        rest[r] = DotBytes(DotBytes(rest[r], even, Spread(a)), odd, Spread(a + 4));
      }
    }
    block += 128;
    TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) {
      const __m256 product = _mm256_cvtepi32_ps(JoinBytes(high[r], rest[r]));
      const int64_t at = r * tile.blocks + b;
      acc[r] = _mm256_fmadd_ps(product, _mm256_mul_ps(d, _mm256_set1_ps(scales[at])), acc[r]);
      acc[r] = _mm256_fmadd_ps(m, _mm256_set1_ps(sums[at]), acc[r]);
    }
  }
}

template <int kRows>
void Tile8(const MatmulTask& task, const Tile& tile, __m256* acc) {
  const int16_t* q = task.quantised.q16 + tile.row * task.k;
  const float* scales = task.quantised.scales + tile.row * tile.blocks;
  const uint8_t* block = tile.panel;
  for (int64_t b = 0; b < tile.blocks; ++b) {
    const __m256 d = Halfs(block);
    block += 16;
    __m256i dot[kRows];
    TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) dot[r] = _mm256_setzero_si256();
    TRIVIUM_ROLLED for (int i = 0; i < 16; ++i) {
      const __m256i w =
          _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block) + i));
      TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) {
        dot[r] = DotWords(dot[r], w, Spread(q + r * task.k + b * kQuantBlock + 2 * i));
      }
    }
    block += 256;
    TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) {
      const __m256 scale = _mm256_mul_ps(d, _mm256_set1_ps(scales[r * tile.blocks + b]));
      acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r]), scale, acc[r]);
    }
  }
}

template <PanelKind kKind, int kRows>
void RunTile(const MatmulTask& task, int64_t panel, int64_t row) {
  const Tile tile{task.panels + panel * task.panel_bytes, task.k / kQuantBlock, row};
  __m256 acc[kRows];
  TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) acc[r] = _mm256_setzero_ps();
  if constexpr (kKind == PanelKind::kQ8_0) {
    Tile8<kRows>(task, tile, acc);
  } else {
    Tile4<kRows, kKind == PanelKind::kQ4_1>(task, tile, acc);
  }
  const int64_t output = panel * kPanelOutputs;
  TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) {
    StoreOutputs(task.y + (row + r) * task.n + output, acc[r], task.n - output);
  }
}

template <PanelKind kKind>
void RunPanel(const MatmulTask& task, int64_t panel, int64_t row, int64_t end) {
  for (; row + kTileRows <= end; row += kTileRows) RunTile<kKind, kTileRows>(task, panel, row);
  switch (end - row) {
    case 3:
      return RunTile<kKind, 3>(task, panel, row);
    case 2:
      return RunTile<kKind, 2>(task, panel, row);
    case 1:
      return RunTile<kKind, 1>(task, panel, row);
  }
}

template <PanelKind kKind>
void Run(const MatmulTask& task) {
  for (int64_t row = 0; row < task.rows; row += kCacheRows) {
    const int64_t end = row + kCacheRows < task.rows ? row + kCacheRows : task.rows;
    for (int64_t p = task.panel_begin; p < task.panel_end; ++p) RunPanel<kKind>(task, p, row, end);
  }
}

}  // namespace

void QuantisedMatmul(const MatmulTask& task) {
  switch (task.kind) {
    case PanelKind::kQ4_0:
      return Run<PanelKind::kQ4_0>(task);
    case PanelKind::kQ4_1:
      return Run<PanelKind::kQ4_1>(task);
    case PanelKind::kQ8_0:
      return Run<PanelKind::kQ8_0>(task);
    default:
      return;
  }
}

}  // namespace trivium::kernels::TRIVIUM_SIMD
