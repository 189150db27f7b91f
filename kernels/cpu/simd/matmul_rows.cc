// Products of few rows: the panels are unpacked as they pass by, once for up to kMostFewRows rows.
#include "kernels/cpu/simd/quantised.h"

namespace trivium::kernels::TRIVIUM_SIMD {
namespace {

// What the rows of a tile are multiplied by.
struct Tile {
  const uint8_t* panel;
  int64_t blocks;
};

template <PanelKind kKind, int kRows>
void NibbleTile(const MatmulTask& task, const Tile& tile, __m256* acc) {
  constexpr QuantPanel kPanel = QuantPanelOf(kKind);
  constexpr int kWeightBytes = kPanel.weight_bytes();
  const QuantisedRows& rows = task.quantised;
  const float* sums = GroupSums<kKind>(rows);
  const uint8_t* block = tile.panel;
  Scales<kKind> scales;
  for (int64_t b = 0; b < tile.blocks; ++b) {
    block = scales.Begin(b, block);
    TRIVIUM_UNROLL for (int g = 0; g < kPanel.groups; ++g) {
      __m256i high[kRows], low[kRows];
      TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) high[r] = low[r] = _mm256_setzero_si256();
      const auto add = [&](int i, __m256i weights) __attribute__((always_inline)) {
        TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) {
          const uint8_t* q = rows.q + b * kQuantBlock * kRows + 4 * (i * kRows + r);
          high[r] = DotBytes(high[r], weights, Spread(q));
          low[r] = DotBytes(low[r], weights, Spread(q + task.k * kRows));
        }
      };
      EachNibbles<kKind>(block, g, add);
      const __m256 scale = scales.Scale(g), minimum = scales.Minimum(g, scale);
      TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) {
        acc[r] = AddGroup<kPanel.sums()>(acc[r], AddLow(WholeOfHigh(high[r]), low[r]), scale,
                                         minimum, rows.scales[b * kRows + r],
                                         sums[(b * kPanel.groups + g) * kRows + r]);
      }
    }
    block += kWeightBytes;
  }
}

template <PanelKind kKind, int kRows>
void WordTile(const MatmulTask& task, const Tile& tile, __m256* acc) {
  constexpr QuantPanel kPanel = QuantPanelOf(kKind);
  constexpr int kWeightBytes = kPanel.weight_bytes();
  const QuantisedRows& rows = task.quantised;
  const float* sums = GroupSums<kKind>(rows);
  const uint8_t* block = tile.panel;
  Scales<kKind> scales;
  for (int64_t b = 0; b < tile.blocks; ++b) {
    block = scales.Begin(b, block);
    TRIVIUM_UNROLL for (int g = 0; g < kPanel.groups; ++g) {
      __m256i dot[kRows];
      TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) dot[r] = _mm256_setzero_si256();
      const auto add = [&](int i, __m256i weights) __attribute__((always_inline)) {
        TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) {
          const uint8_t* q = rows.q + 2 * b * kQuantBlock * kRows + 4 * (i * kRows + r);
          dot[r] = DotWords(dot[r], weights, Spread(q));
        }
      };
      EachPair<kKind>(block, g, add);
      const __m256 scale = scales.Scale(g), minimum = scales.Minimum(g, scale);
      TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) {
        acc[r] = AddGroup<kPanel.sums()>(acc[r], dot[r], scale, minimum, rows.scales[b * kRows + r],
                                         sums[(b * kPanel.groups + g) * kRows + r]);
      }
    }
    block += kWeightBytes;
  }
}

template <PanelKind kKind, int kRows>
void Run(const MatmulTask& task) {
  for (int64_t panel = task.panel_begin; panel < task.panel_end; ++panel) {
    const Tile tile{task.panels + panel * task.panel_bytes, task.k / kQuantBlock};
    __m256 acc[kRows];
    TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) acc[r] = _mm256_setzero_ps();
    if constexpr (QuantPanelOf(kKind).nibbles) {
      NibbleTile<kKind, kRows>(task, tile, acc);
    } else {
      WordTile<kKind, kRows>(task, tile, acc);
    }
    const int64_t output = panel * kPanelOutputs;
    TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) {
      StoreOutputs(task.y + r * task.n + output, acc[r], task.n - output);
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
