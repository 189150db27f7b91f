// Matrix products of integer activations and quantised weights. Integer sums are exact, so the
// order of the float operations of an output is: group by group, scale product, then minimum.
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

// The scales of a block, and what stands before its integers.
template <PanelKind kKind>
class Scales {
 public:
  // Takes the scales from the block's head; returns its integers.
  const uint8_t* Begin(int64_t block, const uint8_t* p) {
    if (!kPanel.super || block % kSuperBlocks == 0) {
      d_ = Halfs(p);
      if constexpr (kPanel.minima) dmin_ = Halfs(p + 16);
      p += kWideBytes;
    }
    groups_ = p;
    return p + kGroupBytes * kPanel.groups;
  }
  __m256 Scale(int group) const {
    return kPanel.super ? _mm256_mul_ps(d_, Bytes(groups_ + group * kGroupBytes)) : d_;
  }
  // What one unit of the sum of the activations adds. `scale` is that of the group.
  __m256 Minimum(int group, __m256 scale) const {
    if constexpr (!kPanel.minima) return _mm256_mul_ps(scale, _mm256_set1_ps(-kPanel.offset));
    return kPanel.super ? _mm256_mul_ps(dmin_, Bytes(groups_ + group * kGroupBytes + 8)) : dmin_;
  }

 private:
  static constexpr QuantPanel kPanel = QuantPanelOf(kKind);
  static constexpr int kWideBytes = kPanel.wide_scale_bytes();
  static constexpr int kGroupBytes = kPanel.group_scale_bytes() / kPanel.groups;

  static __m256 Bytes(const uint8_t* p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  }

  __m256 d_ = _mm256_setzero_ps(), dmin_ = _mm256_setzero_ps();
  const uint8_t* groups_ = nullptr;
};

struct Tile {
  const uint8_t* panel;
  int64_t blocks;
  int64_t row;
};

// Adds the products of one group of one row: integers times scale, then the minimum.
template <PanelKind kKind>
inline __m256 AddGroup(const QuantisedRows& rows, int64_t block, int group, __m256i dot,
                       __m256 scale, __m256 minimum, __m256 acc) {
  constexpr QuantPanel kPanel = QuantPanelOf(kKind);
  constexpr bool kSums = kPanel.sums();
  const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(rows.scales[block]));
  acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), both, acc);
  if constexpr (!kSums) return acc;
  const float sum = kPanel.groups == 1 ? rows.sums[block] : rows.half_sums[2 * block + group];
  return _mm256_fmadd_ps(minimum, _mm256_set1_ps(sum), acc);
}

template <PanelKind kKind, int kRows>
void NibbleTile(const MatmulTask& task, const Tile& tile, __m256* acc) {
  constexpr QuantPanel kPanel = QuantPanelOf(kKind);
  constexpr int kWeightBytes = kPanel.weight_bytes();
  const int8_t* q = task.quantised.q8 + tile.row * task.k * 2;
  const __m256i low = _mm256_set1_epi8(15);
  const uint8_t* block = tile.panel;
  Scales<kKind> scales;
  for (int64_t b = 0; b < tile.blocks; ++b) {
    block = scales.Begin(b, block);
    TRIVIUM_UNROLL for (int g = 0; g < kPanel.groups; ++g) {
      __m256i high[kRows], rest[kRows];
      TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) high[r] = rest[r] = _mm256_setzero_si256();
      TRIVIUM_ROLLED for (int i = g * 4 / kPanel.groups; i < (g + 1) * 4 / kPanel.groups; ++i) {
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
      const __m256 scale = scales.Scale(g), minimum = scales.Minimum(g, scale);
      TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) {
        acc[r] = AddGroup<kKind>(task.quantised, (tile.row + r) * tile.blocks + b, g,
                                 JoinBytes(high[r], rest[r]), scale, minimum, acc[r]);
      }
    }
    block += kWeightBytes;
  }
}

inline __m256i LoadWords(const uint8_t* p, int i) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p) + i);
}

// Nibbles, one a word, to the levels of IQ4_NL plus kLevelOffset.
inline __m256i Levels(__m256i nibbles, __m256i levels) {
  // A byte with its top bit set gives zero: the upper half of each word.
  return _mm256_shuffle_epi8(levels, _mm256_or_si256(nibbles, _mm256_set1_epi16(-0x8000)));
}

inline __m256i LevelTable() {
  const __m128i levels = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kUnevenLevels));
  return _mm256_broadcastsi128_si256(_mm_add_epi8(levels, _mm_set1_epi8(-kLevelOffset)));
}

// Calls fn(i, words) for each pair of inputs 2 i and 2 i + 1 of one group (packed_matrix.h).
template <PanelKind kKind, typename Fn>
inline void EachPair(const uint8_t* p, int group, const Fn& fn) {
  constexpr QuantPanel kPanel = QuantPanelOf(kKind);
  const __m256i mask = _mm256_set1_epi16((1 << kPanel.bits) - 1);
  __m256i spare = _mm256_setzero_si256();
  if constexpr (kPanel.bits == 8) {
    constexpr int kPairs = 16 / kPanel.groups;
    TRIVIUM_ROLLED for (int i = group * kPairs; i < (group + 1) * kPairs; ++i) {
      fn(i, _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + i)));
    }
  } else if constexpr (kPanel.bits == 4) {
    const __m256i levels = LevelTable();
    TRIVIUM_ROLLED for (int i = 0; i < 4; ++i) {
      const __m256i v = LoadWords(p, i);
      fn(4 * i, Levels(_mm256_and_si256(v, mask), levels));
      fn(4 * i + 1, Levels(_mm256_and_si256(_mm256_srli_epi16(v, 4), mask), levels));
      fn(4 * i + 2, Levels(_mm256_and_si256(_mm256_srli_epi16(v, 8), mask), levels));
      fn(4 * i + 3, Levels(_mm256_srli_epi16(v, 12), levels));
    }
  } else if constexpr (kPanel.bits == 5) {
    TRIVIUM_ROLLED for (int i = 0; i < 5; ++i) {
      const __m256i v = LoadWords(p, i);
      fn(3 * i, _mm256_and_si256(v, mask));
      fn(3 * i + 1, _mm256_and_si256(_mm256_srli_epi16(v, 5), mask));
      fn(3 * i + 2, _mm256_and_si256(_mm256_srli_epi16(v, 10), mask));
      spare = _mm256_or_si256(_mm256_slli_epi16(spare, 1), _mm256_srli_epi16(v, 15));
    }
    fn(15, spare);
  } else {
    TRIVIUM_ROLLED for (int i = 0; i < 3; ++i) {
      const __m256i v = LoadWords(p, 3 * group + i);
      fn(8 * group + 2 * i, _mm256_and_si256(v, mask));
      fn(8 * group + 2 * i + 1, _mm256_and_si256(_mm256_srli_epi16(v, 6), mask));
      spare = _mm256_or_si256(_mm256_slli_epi16(spare, 4), _mm256_srli_epi16(v, 12));
    }
    fn(8 * group + 6, _mm256_and_si256(spare, mask));
    fn(8 * group + 7, _mm256_srli_epi16(spare, 6));
  }
}

template <PanelKind kKind, int kRows>
void WordTile(const MatmulTask& task, const Tile& tile, __m256* acc) {
  constexpr QuantPanel kPanel = QuantPanelOf(kKind);
  constexpr int kWeightBytes = kPanel.weight_bytes();
  const int16_t* q = task.quantised.q16 + tile.row * task.k;
  const uint8_t* block = tile.panel;
  Scales<kKind> scales;
  for (int64_t b = 0; b < tile.blocks; ++b) {
    block = scales.Begin(b, block);
    TRIVIUM_UNROLL for (int g = 0; g < kPanel.groups; ++g) {
      __m256i dot[kRows];
      TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) dot[r] = _mm256_setzero_si256();
      const auto add = [&](int i, __m256i w) __attribute__((always_inline)) {
        TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) {
          dot[r] = DotWords(dot[r], w, Spread(q + r * task.k + b * kQuantBlock + 2 * i));
        }
      };
      EachPair<kKind>(block, g, add);
      const __m256 scale = scales.Scale(g), minimum = scales.Minimum(g, scale);
      TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) {
        acc[r] = AddGroup<kKind>(task.quantised, (tile.row + r) * tile.blocks + b, g, dot[r], scale,
                                 minimum, acc[r]);
      }
    }
    block += kWeightBytes;
  }
}

template <PanelKind kKind, int kRows>
void RunTile(const MatmulTask& task, int64_t panel, int64_t row) {
  const Tile tile{task.panels + panel * task.panel_bytes, task.k / kQuantBlock, row};
  __m256 acc[kRows];
  TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) acc[r] = _mm256_setzero_ps();
  if constexpr (QuantPanelOf(kKind).nibbles) {
    NibbleTile<kKind, kRows>(task, tile, acc);
  } else {
    WordTile<kKind, kRows>(task, tile, acc);
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
    case PanelKind::kQ4_K:
      return Run<PanelKind::kQ4_K>(task);
    case PanelKind::kQ2_K:
      return Run<PanelKind::kQ2_K>(task);
    case PanelKind::kQ3_K:
      return Run<PanelKind::kQ3_K>(task);
    case PanelKind::kQ8_0:
      return Run<PanelKind::kQ8_0>(task);
    case PanelKind::kIQ4_NL:
      return Run<PanelKind::kIQ4_NL>(task);
    case PanelKind::kQ5_0:
      return Run<PanelKind::kQ5_0>(task);
    case PanelKind::kQ5_1:
      return Run<PanelKind::kQ5_1>(task);
    case PanelKind::kQ5_K:
      return Run<PanelKind::kQ5_K>(task);
    case PanelKind::kQ6_K:
      return Run<PanelKind::kQ6_K>(task);
    default:
      return;
  }
}

}  // namespace trivium::kernels::TRIVIUM_SIMD
