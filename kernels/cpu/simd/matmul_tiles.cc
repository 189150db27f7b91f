// Products of many rows: two panels at a time are unpacked into the first-level cache and
// multiplied with six rows at a time, so that neither weights nor activations are loaded often.
#include "kernels/cpu/simd/tile_steps.h"

namespace trivium::kernels::TRIVIUM_SIMD {
namespace {

constexpr int64_t kCacheRows = 16 * kTileRows;  // their integers stay in the second-level cache

// The shape of a kind's unpacked groups.
template <PanelKind kKind>
struct Shape {
  static constexpr QuantPanel kPanel = QuantPanelOf(kKind);
  static constexpr bool kBytes = kPanel.nibbles;
  static constexpr bool kSums = kPanel.sums();
  static constexpr int kGroups = kPanel.groups;
  static constexpr int kSteps = (kBytes ? 8 : 16) / kGroups;  // vectors of a group
  // Blocks that are unpacked together: 20 KiB. A word of low_blocks covers them.
  static constexpr int64_t kBlocks = kBytes ? 32 : 16;
};

// One group of both panels.
template <int kSteps>
struct alignas(64) Group {
  uint8_t weights[kSteps][kTilePanels][32];
  float scale[kTilePanels][kPanelOutputs];
  float minimum[kTilePanels][kPanelOutputs];
};

// Reads a panel's blocks in order.
template <PanelKind kKind>
class Unpacker {
 public:
  using S = Shape<kKind>;

  explicit Unpacker(const uint8_t* panel) : next_(panel) {}

  // Blocks begin … end - 1 into panel p of the groups.
  void Unpack(int64_t begin, int64_t end, int p, Group<S::kSteps>* groups) {
    for (int64_t b = begin; b < end; ++b) {
      next_ = scales_.Begin(b, next_);
      TRIVIUM_UNROLL for (int g = 0; g < S::kGroups; ++g, ++groups) {
        const auto store = [&](int i, __m256i v) __attribute__((always_inline)) {
          auto* to = reinterpret_cast<__m256i*>(groups->weights[i - g * S::kSteps][p]);
          _mm256_store_si256(to, v);
        };
        if constexpr (S::kBytes) {
          EachNibbles<kKind>(next_, g, store);
        } else {
          EachPair<kKind>(next_, g, store);
        }
        const __m256 scale = scales_.Scale(g);
        _mm256_store_ps(groups->scale[p], scale);
        if (S::kSums) _mm256_store_ps(groups->minimum[p], scales_.Minimum(g, scale));
      }
      next_ += S::kPanel.weight_bytes();
    }
  }

 private:
  const uint8_t* next_;
  Scales<kKind> scales_;
};

// The rows of a tile, from the first of the blocks at hand (QuantisedRows).
struct TileRows {
  const uint8_t* q;     // integers, or their high bytes
  int64_t low;          // bytes from the high part to the low part
  uint32_t low_blocks;  // bit b: some row has a low part in block b
  const float* scales;
  const float* sums;
};

// Sums of a group's products.
template <bool kBytes, int kSteps>
inline void Multiply(const uint8_t* weights, const uint8_t* q, TileSums& dot) {
  FourSteps<kBytes, true>(weights, q, dot);
  TRIVIUM_UNROLL for (int i = 4; i < kSteps; i += 4) {
    FourSteps<kBytes, false>(weights + i * kTilePanels * 32, q + i * kTileRows * 4, dot);
  }
}

template <PanelKind kKind>
inline void MultiplyGroup(const Group<Shape<kKind>::kSteps>& group, const TileRows& rows,
                          bool with_low, TileSums& dot) {
  using S = Shape<kKind>;
  const uint8_t* weights = group.weights[0][0];
  Multiply<S::kBytes, S::kSteps>(weights, rows.q, dot);
  if constexpr (S::kBytes) {
    TRIVIUM_UNROLL for (int r = 0; r < kTileRows; ++r) {
      TRIVIUM_UNROLL for (int p = 0; p < kTilePanels; ++p) dot[r][p] = WholeOfHigh(dot[r][p]);
    }
    if (!with_low) return;
    TileSums low;
    Multiply<true, S::kSteps>(weights, rows.q + rows.low, low);
    TRIVIUM_UNROLL for (int r = 0; r < kTileRows; ++r) {
      TRIVIUM_UNROLL for (int p = 0; p < kTilePanels; ++p) {
        dot[r][p] = AddLow(dot[r][p], low[r][p]);
      }
    }
  }
}

using TileOutputs = float[kTileRows][kTilePanels][kPanelOutputs];

template <PanelKind kKind>
void RunTile(const Group<Shape<kKind>::kSteps>* group, int64_t blocks, TileRows rows,
             TileOutputs& outputs) {
  using S = Shape<kKind>;
  __m256 acc[kTileRows][kTilePanels];
  TRIVIUM_UNROLL for (int r = 0; r < kTileRows; ++r) {
    TRIVIUM_UNROLL for (int p = 0; p < kTilePanels; ++p) acc[r][p] = _mm256_load_ps(outputs[r][p]);
  }
  for (int64_t b = 0; b < blocks; ++b) {
    TRIVIUM_ROLLED for (int g = 0; g < S::kGroups; ++g) {
      TileSums dot;
      MultiplyGroup<kKind>(*group, rows, rows.low_blocks >> b & 1, dot);
      TRIVIUM_UNROLL for (int r = 0; r < kTileRows; ++r) {
        TRIVIUM_UNROLL for (int p = 0; p < kTilePanels; ++p) {
          acc[r][p] =
              AddGroup<S::kSums>(acc[r][p], dot[r][p], _mm256_load_ps(group->scale[p]),
                                 _mm256_load_ps(group->minimum[p]), rows.scales[r], rows.sums[r]);
        }
      }
      ++group;
      rows.q += S::kSteps * kTileRows * 4;
      rows.sums += kTileRows;
    }
    rows.scales += kTileRows;
  }
  TRIVIUM_UNROLL for (int r = 0; r < kTileRows; ++r) {
    TRIVIUM_UNROLL for (int p = 0; p < kTilePanels; ++p) _mm256_store_ps(outputs[r][p], acc[r][p]);
  }
}

// Up to kCacheRows rows, from a multiple of kTileRows on, and two panels.
template <PanelKind kKind>
class PanelPair {
 public:
  using S = Shape<kKind>;

  PanelPair(const MatmulTask& task, int64_t row, int64_t end)
      : task_(task), row_(row), end_(end), blocks_(task.k / kQuantBlock) {}

  // Panels `panel` and, if that is below task.panel_end, the next.
  void Run(int64_t panel) {
    const int64_t tiles = (end_ - row_ + kTileRows - 1) / kTileRows;
    const int64_t panels = task_.panel_end - panel < kTilePanels ? 1 : kTilePanels;
    __builtin_memset(outputs_, 0, tiles * sizeof(outputs_[0]));
    Unpacker<kKind> unpackers[] = {
        Unpacker<kKind>(task_.panels + panel * task_.panel_bytes),
        Unpacker<kKind>(task_.panels + (panel + panels - 1) * task_.panel_bytes)};
    for (int64_t begin = 0; begin < blocks_; begin += S::kBlocks) {
      const int64_t end = begin + S::kBlocks < blocks_ ? begin + S::kBlocks : blocks_;
      for (int p = 0; p < kTilePanels; ++p) unpackers[p].Unpack(begin, end, p, groups_);
      for (int64_t t = 0; t < tiles; ++t) {
        RunTile<kKind>(groups_, end - begin, RowsOf(row_ / kTileRows + t, begin), outputs_[t]);
      }
    }
    for (int64_t p = 0; p < panels; ++p) Store(panel + p, p);
  }

 private:
  TileRows RowsOf(int64_t tile, int64_t block) const {
    const QuantisedRows& all = task_.quantised;
    TileRows rows{};
    rows.q =
        all.q + tile * kTileRows * 2 * task_.k + block * S::kGroups * S::kSteps * kTileRows * 4;
    rows.low = kTileRows * task_.k;
    const int64_t at = (tile * blocks_ + block) * kTileRows;
    rows.scales = all.scales + at;
    rows.sums = GroupSums<kKind>(all) + at * S::kGroups;
    if (S::kBytes) rows.low_blocks = all.low_blocks[tile * LowWords(blocks_) + block / S::kBlocks];
    return rows;
  }

  void Store(int64_t panel, int64_t p) const {
    const int64_t output = panel * kPanelOutputs;
    for (int64_t r = 0; r < end_ - row_; ++r) {
      const __m256 v = _mm256_load_ps(outputs_[r / kTileRows][r % kTileRows][p]);
      StoreOutputs(task_.y + (row_ + r) * task_.n + output, v, task_.n - output);
    }
  }

  const MatmulTask& task_;
  const int64_t row_, end_;
  const int64_t blocks_;
  alignas(64) Group<S::kSteps> groups_[S::kBlocks * S::kGroups];
  alignas(64) TileOutputs outputs_[kCacheRows / kTileRows];
};

}  // namespace

void MultiplyTiles(const MatmulTask& task) {
  WithKind(task.kind, [&]<PanelKind kKind>() {
    for (int64_t row = 0; row < task.rows; row += kCacheRows) {
      PanelPair<kKind> pair(task, row, row + kCacheRows < task.rows ? row + kCacheRows : task.rows);
      for (int64_t p = task.panel_begin; p < task.panel_end; p += kTilePanels) pair.Run(p);
    }
  });
}

}  // namespace trivium::kernels::TRIVIUM_SIMD
