// Products of few rows: the panels are unpacked as they pass by, once for up to kMostFewRows rows.
// Memory is the bound here, so what comes next is asked for early.
#include "kernels/cpu/simd/quantised.h"

namespace trivium::kernels::TRIVIUM_SIMD {
namespace {

#ifdef __AVX512VNNI__
using Place = TwoPlaces;
constexpr int kPanels = 2;
#else
using Place = const uint8_t*;
constexpr int kPanels = 1;
#endif
using Ints = decltype(LoadInts(Place()));
using Floats = decltype(LoadHalfs(Place()));

// Where the registers are enough.
constexpr bool IsUnrolled(int rows) { return kPanels == 2 || rows == 1; }

// Far enough for memory to answer, near enough for the second-level cache.
constexpr int64_t kAheadBytes = 4096;

// What the rows of a tile are multiplied by.
struct Tile {
  Place panel;
  const uint8_t* next;  // what is read after the tile begins here
  int64_t blocks;
};

inline void Prefetch(const uint8_t* from, const uint8_t* to) {
  for (; from < to; from += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0);
  }
}

template <PanelKind kKind>
constexpr int BlockBytes() {
  constexpr QuantPanel kPanel = QuantPanelOf(kKind);
  return kPanel.weight_bytes() + kPanel.group_scale_bytes() +
         kPanel.wide_scale_bytes() / (kPanel.super ? kSuperBlocks : 1);
}

// The products of group g, of bytes.
template <PanelKind kKind, int kRows>
inline void DotGroup(Place block, int g, const uint8_t* q, int64_t low_part, Ints* dot) {
  Ints low[kRows];
  TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) dot[r] = low[r] = Ints();
  EachNibbles<kKind, IsUnrolled(kRows)>(block, g, [&](int i, Ints weights) TRIVIUM_INLINE {
    TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) {
      const uint8_t* four = q + 4 * (i * kRows + r);
      dot[r] = DotBytes(dot[r], weights, FillFours<Ints>(LoadFour(four)));
      low[r] = DotBytes(low[r], weights, FillFours<Ints>(LoadFour(four + low_part)));
    }
  });
  TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) dot[r] = AddLow(WholeOfHigh(dot[r]), low[r]);
}

// Of one row, the low parts of which may be left out.
template <PanelKind kKind>
inline Ints DotGroupOfOne(Place block, int g, const uint8_t* q, int64_t low_part, bool with_low) {
  constexpr int kSteps = 8 / QuantPanelOf(kKind).groups;
  Ints weights[kSteps], high = Ints(), low = Ints();
  EachNibbles<kKind, true>(block, g, [&](int i, Ints four) TRIVIUM_INLINE {
    weights[i - g * kSteps] = four;
    high = DotBytes(high, four, FillFours<Ints>(LoadFour(q + 4 * i)));
  });
  if (!with_low) return WholeOfHigh(high);
  q += low_part + g * kSteps * 4;
  TRIVIUM_UNROLL for (int i = 0; i < kSteps; ++i) {
    low = DotBytes(low, weights[i], FillFours<Ints>(LoadFour(q + 4 * i)));
  }
  return AddLow(WholeOfHigh(high), low);
}

// Of words.
template <PanelKind kKind, int kRows>
inline void DotGroupOfWords(Place block, int g, const uint8_t* q, Ints* dot) {
  TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) dot[r] = Ints();
  EachPair<kKind, IsUnrolled(kRows)>(block, g, [&](int i, Ints weights) TRIVIUM_INLINE {
    TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) {
      dot[r] = DotWords(dot[r], weights, FillFours<Ints>(LoadFour(q + 4 * (i * kRows + r))));
    }
  });
}

template <PanelKind kKind, int kRows>
inline void RunTile(const MatmulTask& task, const Tile& tile, Floats* acc) {
  constexpr QuantPanel kPanel = QuantPanelOf(kKind);
  constexpr int kActivationBytes = kPanel.nibbles ? 1 : 2;
  const QuantisedRows& rows = task.quantised;
  const float* sums = GroupSums<kKind>(rows);
  const uint8_t *q = rows.q, *next = tile.next;
  Place block = tile.panel;
  Scales<kKind, Place> scales;
  for (int64_t b = 0; b < tile.blocks; ++b) {
    Prefetch(next, next + kPanels * BlockBytes<kKind>());
    next += kPanels * BlockBytes<kKind>();
    block = scales.Begin(b, block);
    TRIVIUM_UNROLL for (int g = 0; g < kPanel.groups; ++g) {
      Ints dot[kRows];
      if constexpr (kPanel.nibbles && kRows == 1) {
        const bool with_low = rows.low_blocks[b / 32] >> b % 32 & 1;
        dot[0] = DotGroupOfOne<kKind>(block, g, q, task.k, with_low);
      } else if constexpr (kPanel.nibbles) {
        DotGroup<kKind, kRows>(block, g, q, task.k * kRows, dot);
      } else {
        DotGroupOfWords<kKind, kRows>(block, g, q, dot);
      }
      const Floats scale = scales.Scale(g), minimum = scales.Minimum(g, scale);
      TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) {
        acc[r] = AddGroup<kPanel.sums()>(acc[r], dot[r], scale, minimum, rows.scales[b * kRows + r],
                                         sums[(b * kPanel.groups + g) * kRows + r]);
      }
    }
    block += kPanel.weight_bytes();
    q += kActivationBytes * kQuantBlock * kRows;
  }
}

inline Tile TileAt(const MatmulTask& task, int64_t panel) {
  const uint8_t* first = task.panels + panel * task.panel_bytes;
  const int64_t blocks = task.k / kQuantBlock;
#ifdef __AVX512VNNI__
  const bool is_last = panel + 1 == task.panel_end;
  return {{first, is_last ? first : first + task.panel_bytes}, first + kAheadBytes, blocks};
#else
  return {first, first + kAheadBytes, blocks};
#endif
}

template <PanelKind kKind, int kRows>
void Run(const MatmulTask& task) {
  for (int64_t panel = task.panel_begin; panel < task.panel_end; panel += kPanels) {
    Floats acc[kRows];
    TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) acc[r] = Floats();
    RunTile<kKind, kRows>(task, TileAt(task, panel), acc);
    const int64_t output = panel * kPanelOutputs;
    const int64_t end = task.panel_end * kPanelOutputs;
    TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) {
      StoreOutputs(task.y + r * task.n + output, acc[r], (end < task.n ? end : task.n) - output);
    }
  }
}

}  // namespace

void MultiplyRows(const MatmulTask& task) {
  WithKind(task.kind, [&]<PanelKind kKind>() {
    switch (task.rows) {
      case 1:
        return Run<kKind, 1>(task);
      case 2:
        return Run<kKind, 2>(task);
      case 3:
        return Run<kKind, 3>(task);
      case 4:
        return Run<kKind, 4>(task);
    }
  });
}

}  // namespace trivium::kernels::TRIVIUM_SIMD
