// What the products of integer activations and quantised weights share, for few rows
// (matmul_rows.cc) and many (matmul_tiles.cc). Stateless; safe from any thread.
// Invariants: integer sums are exact, and the order of the float operations of an output is group
// by group, scale product, then minimum; so both give the same bits for a row.
#pragma once

#include "kernels/cpu/simd/lanes.h"

namespace trivium::kernels::TRIVIUM_SIMD {

// The scales of a block, and what stands before its integers. `Place` is one in a panel or the same
// in two (lanes.h).
template <PanelKind kKind, typename Place = const uint8_t*>
class Scales {
 public:
  using Floats = decltype(LoadHalfs(Place()));

  // Takes the scales from the block's head; returns its integers.
  Place Begin(int64_t block, Place p) {
    if (!kPanel.super || block % kSuperBlocks == 0) {
      d_ = LoadHalfs(p);
      if constexpr (kPanel.minima) dmin_ = LoadHalfs(p + 16);
      p += kWideBytes;
    }
    groups_ = p;
    return p + kGroupBytes * kPanel.groups;
  }
  Floats Scale(int group) const {
    return kPanel.super ? Multiply(d_, LoadScales(groups_ + group * kGroupBytes)) : d_;
  }
  // What one unit of the sum of the activations adds. `scale` is that of the group.
  Floats Minimum(int group, Floats scale) const {
    if constexpr (!kPanel.minima) return Multiply(scale, FillFloats<Floats>(-kPanel.offset));
    return kPanel.super ? Multiply(dmin_, LoadScales(groups_ + group * kGroupBytes + 8)) : dmin_;
  }

 private:
  static constexpr QuantPanel kPanel = QuantPanelOf(kKind);
  static constexpr int kWideBytes = kPanel.wide_scale_bytes();
  static constexpr int kGroupBytes = kPanel.group_scale_bytes() / kPanel.groups;

  Floats d_ = Floats(), dmin_ = Floats();
  Place groups_ = Place();
};

// acc + dot * scale * the scale of the activations + minimum * the sum of the activations.
template <bool kSums, typename Floats, typename Ints>
inline Floats AddGroup(Floats acc, Ints dot, Floats scale, Floats minimum, float activation_scale,
                       float activation_sum) {
  const Floats both = Multiply(scale, FillFloats<Floats>(activation_scale));
  acc = MultiplyAdd(ToFloats(dot), both, acc);
  return kSums ? MultiplyAdd(minimum, FillFloats<Floats>(activation_sum), acc) : acc;
}

// The sums that go with the groups of a kind.
template <PanelKind kKind>
inline const float* GroupSums(const QuantisedRows& rows) {
  return QuantPanelOf(kKind).groups == 1 ? rows.sums : rows.half_sums;
}

// Calls fn(i) for begin … end - 1. Rolled loops keep few values alive.
template <bool kUnrolled, typename Fn>
inline void ForEach(int begin, int end, const Fn& fn) {
  if constexpr (kUnrolled) {
    TRIVIUM_UNROLL for (int i = begin; i < end; ++i) fn(i);
  } else {
    TRIVIUM_ROLLED for (int i = begin; i < end; ++i) fn(i);
  }
}

// Calls fn(i, bytes) for the inputs 4 i … 4 i + 3 of one group (packed_matrix.h).
template <PanelKind kKind, bool kUnrolled = false, typename Place, typename Fn>
inline void EachNibbles(Place p, int group, const Fn& fn) {
  constexpr int kVectors = 4 / QuantPanelOf(kKind).groups;
  using Ints = decltype(LoadInts(p));
  const Ints low = FillBytes<Ints>(15);
  ForEach<kUnrolled>(group * kVectors, (group + 1) * kVectors, [&](int i) TRIVIUM_INLINE {
    const Ints both = LoadInts(p + 32 * i);
    fn(2 * i, Both(both, low));
    fn(2 * i + 1, Both(WordsRight(both, 4), low));
  });
}

// Nibbles, one a word, to the levels of IQ4_NL plus kLevelOffset.
template <typename Ints>
inline Ints Levels(Ints nibbles, Ints levels) {
  // A byte with its top bit set gives zero: the upper half of each word.
  return PickBytes(levels, Either(nibbles, FillWords<Ints>(-0x8000)));
}

template <typename Ints>
inline Ints LevelTable() {
  const __m128i levels = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kUnevenLevels));
  return Repeat<Ints>(_mm_add_epi8(levels, _mm_set1_epi8(-kLevelOffset)));
}

// Calls fn(i, words) for each pair of inputs 2 i and 2 i + 1 of one group (packed_matrix.h).
template <PanelKind kKind, bool kUnrolled = false, typename Place, typename Fn>
inline void EachPair(Place p, int group, const Fn& fn) {
  constexpr QuantPanel kPanel = QuantPanelOf(kKind);
  using Ints = decltype(LoadInts(p));
  const Ints mask = FillWords<Ints>((1 << kPanel.bits) - 1);
  Ints spare = Ints();
  if constexpr (kPanel.bits == 8) {
    constexpr int kPairs = 16 / kPanel.groups;
    ForEach<kUnrolled>(group * kPairs, (group + 1) * kPairs,
                       [&](int i) TRIVIUM_INLINE { fn(i, LoadSignedBytes(p + 16 * i)); });
  } else if constexpr (kPanel.bits == 4) {
    const Ints levels = LevelTable<Ints>();
    ForEach<kUnrolled>(0, 4, [&](int i) TRIVIUM_INLINE {
      const Ints v = LoadInts(p + 32 * i);
      fn(4 * i, Levels(Both(v, mask), levels));
      fn(4 * i + 1, Levels(Both(WordsRight(v, 4), mask), levels));
      fn(4 * i + 2, Levels(Both(WordsRight(v, 8), mask), levels));
      fn(4 * i + 3, Levels(WordsRight(v, 12), levels));
    });
  } else if constexpr (kPanel.bits == 5) {
    ForEach<kUnrolled>(0, 5, [&](int i) TRIVIUM_INLINE {
      const Ints v = LoadInts(p + 32 * i);
      fn(3 * i, Both(v, mask));
      fn(3 * i + 1, Both(WordsRight(v, 5), mask));
      fn(3 * i + 2, Both(WordsRight(v, 10), mask));
      spare = Either(WordsLeft(spare, 1), WordsRight(v, 15));
    });
    fn(15, spare);
  } else {
    ForEach<kUnrolled>(0, 3, [&](int i) TRIVIUM_INLINE {
      const Ints v = LoadInts(p + 32 * (3 * group + i));
      fn(8 * group + 2 * i, Both(v, mask));
      fn(8 * group + 2 * i + 1, Both(WordsRight(v, 6), mask));
      spare = Either(WordsLeft(spare, 4), WordsRight(v, 12));
    });
    fn(8 * group + 6, Both(spare, mask));
    fn(8 * group + 7, WordsRight(spare, 6));
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
