// What the products of integer activations and quantised weights share, for few rows
// (matmul_rows.cc) and many (matmul_tiles.cc). Stateless; safe from any thread.
// Invariants: integer sums are exact, and the order of the float operations of an output is group
// by group, scale product, then minimum; so both give the same bits for a row.
#pragma once

#include "kernels/cpu/simd/simd.h"

namespace trivium::kernels::TRIVIUM_SIMD {

inline __m256 Halfs(const uint8_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// Four bytes of activations, in every 32-bit lane.
inline __m256i Spread(const void* p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return _mm256_set1_epi32(word);
}

inline __m256i LoadWords(const uint8_t* p, int i) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p) + i);
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
inline __m256i WholeOfHigh(__m256i high) { return _mm256_slli_epi32(high, kLowBits); }
inline __m256i AddLow(__m256i whole, __m256i low) { return _mm256_add_epi32(whole, low); }
#else
// Weights 0..15 times |activations| <= 128: a 16-bit lane holds all 16 products of a block.
inline __m256i DotBytes(__m256i sum, __m256i u, __m256i s) {
  return _mm256_add_epi16(sum, _mm256_maddubs_epi16(u, s));
}
inline __m256i DotWords(__m256i sum, __m256i a, __m256i b) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
inline __m256i WholeOfHigh(__m256i high) {
  return _mm256_madd_epi16(high, _mm256_set1_epi16(1 << kLowBits));
}
inline __m256i AddLow(__m256i whole, __m256i low) {
  return _mm256_add_epi32(whole, _mm256_madd_epi16(low, _mm256_set1_epi16(1)));
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

// acc + dot * scale * the scale of the activations + minimum * the sum of the activations.
template <bool kSums>
inline __m256 AddGroup(__m256 acc, __m256i dot, __m256 scale, __m256 minimum,
                       float activation_scale, float activation_sum) {
  const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(activation_scale));
  acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), both, acc);
  return kSums ? _mm256_fmadd_ps(minimum, _mm256_set1_ps(activation_sum), acc) : acc;
}

// The sums that go with the groups of a kind.
template <PanelKind kKind>
inline const float* GroupSums(const QuantisedRows& rows) {
  return QuantPanelOf(kKind).groups == 1 ? rows.sums : rows.half_sums;
}

// Calls fn(i, bytes) for the inputs 4 i … 4 i + 3 of one group (packed_matrix.h).
template <PanelKind kKind, typename Fn>
inline void EachNibbles(const uint8_t* p, int group, const Fn& fn) {
  constexpr int kVectors = 4 / QuantPanelOf(kKind).groups;
  const __m256i low = _mm256_set1_epi8(15);
  TRIVIUM_ROLLED for (int i = group * kVectors; i < (group + 1) * kVectors; ++i) {
    const __m256i both = LoadWords(p, i);
    fn(2 * i, _mm256_and_si256(both, low));
    fn(2 * i + 1, _mm256_and_si256(_mm256_srli_epi16(both, 4), low));
  }
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

// Calls fn.operator()<kind>() for a quantised kind.
template <typename Fn>
inline void WithKind(PanelKind kind, const Fn& fn) {
  switch (kind) {
    case PanelKind::kQ4_0:
      return fn.template operator()<PanelKind::kQ4_0>();
    case PanelKind::kQ4_1:
      return fn.template operator()<PanelKind::kQ4_1>();
    case PanelKind::kQ4_K:
      return fn.template operator()<PanelKind::kQ4_K>();
    case PanelKind::kQ2_K:
      return fn.template operator()<PanelKind::kQ2_K>();
    case PanelKind::kQ3_K:
      return fn.template operator()<PanelKind::kQ3_K>();
    case PanelKind::kQ8_0:
      return fn.template operator()<PanelKind::kQ8_0>();
    case PanelKind::kIQ4_NL:
      return fn.template operator()<PanelKind::kIQ4_NL>();
    case PanelKind::kQ5_0:
      return fn.template operator()<PanelKind::kQ5_0>();
    case PanelKind::kQ5_1:
      return fn.template operator()<PanelKind::kQ5_1>();
    case PanelKind::kQ5_K:
      return fn.template operator()<PanelKind::kQ5_K>();
    case PanelKind::kQ6_K:
      return fn.template operator()<PanelKind::kQ6_K>();
    default:
      return;
  }
}

}  // namespace trivium::kernels::TRIVIUM_SIMD
