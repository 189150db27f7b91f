#include "kernels/cpu/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "kernels/check.h"
#include "kernels/quant_block.h"
#include "kernels/uneven_levels.h"

namespace trivium::kernels {
namespace {

PanelKind KindOf(WeightType type) {
  switch (type) {
    case WeightType::kF32:
      return PanelKind::kF32;
    case WeightType::kF16:
      return PanelKind::kF16;
    case WeightType::kBF16:
      return PanelKind::kBF16;
    case WeightType::kQ4_0:
      return PanelKind::kQ4_0;
    case WeightType::kQ4_1:
      return PanelKind::kQ4_1;
    case WeightType::kQ5_1:
      return PanelKind::kQ5_1;
    case WeightType::kQ5_0:
      return PanelKind::kQ5_0;
    case WeightType::kQ8_0:
      return PanelKind::kQ8_0;
    case WeightType::kIQ4_NL:
      return PanelKind::kIQ4_NL;
    case WeightType::kQ2_K:
      return PanelKind::kQ2_K;
    case WeightType::kQ3_K:
      return PanelKind::kQ3_K;
    case WeightType::kQ4_K:
      return PanelKind::kQ4_K;
    case WeightType::kQ5_K:
      return PanelKind::kQ5_K;
    case WeightType::kQ6_K:
      return PanelKind::kQ6_K;
  }
  return PanelKind::kF32;
}

int64_t PanelBytes(const WeightView& view, PanelKind kind) {
  if (BlockElems(view.type) == 1) return RowBytes(view.type, view.cols) * kPanelOutputs;
  const QuantPanel panel = QuantPanelOf(kind);
  const int64_t blocks = view.cols / kQuantBlock;
  return (panel.super ? blocks / kSuperBlocks : blocks) * panel.wide_scale_bytes() +
         blocks * (panel.group_scale_bytes() + panel.weight_bytes());
}

void PackNibbles(const int8_t* quants, int offset, int output, uint8_t* out) {
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int low = quants[8 * i + j] + offset, high = quants[8 * i + 4 + j] + offset;
      out[32 * i + 4 * output + j] = static_cast<uint8_t>(low | high << 4);
    }
  }
}

void PackBytes(const int8_t* quants, int output, uint8_t* out) {
  for (int i = 0; i < 16; ++i) std::memcpy(out + 16 * i + 2 * output, quants + 2 * i, 2);
}

int LevelIndex(int8_t level) {
  const auto* found = std::find(std::begin(kUnevenLevels), std::end(kUnevenLevels), level);
  return static_cast<int>(found - std::begin(kUnevenLevels));
}

// Word i of 4-, 5- or 6-bit integers; `at(n)` is integer n of every second input.
template <typename At>
int JoinIntegers(int bits, int i, const At& at) {
  if (bits == 4) return at(4 * i) | at(4 * i + 1) << 4 | at(4 * i + 2) << 8 | at(4 * i + 3) << 12;
  if (bits == 5) {
    const int spare = at(15) >> (4 - i) & 1;
    return at(3 * i) | at(3 * i + 1) << 5 | at(3 * i + 2) << 10 | spare << 15;
  }
  const int first = i / 3 * 8, word = i % 3;
  const int spare = (at(first + 6) | at(first + 7) << 6) >> (8 - 4 * word) & 15;
  return at(first + 2 * word) | at(first + 2 * word + 1) << 6 | spare << 12;
}

void PackWords(const int8_t* quants, const QuantPanel& panel, int output, uint8_t* out) {
  for (int i = 0; i < panel.bits; ++i) {
    for (int j = 0; j < 2; ++j) {
      const auto at = [&](int n) {
        const int8_t quant = quants[2 * n + j];
        return panel.bits == 4 ? LevelIndex(quant) : quant + panel.offset;
      };
      const auto word = static_cast<uint16_t>(JoinIntegers(panel.bits, i, at));
      std::memcpy(out + 32 * i + 4 * output + 2 * j, &word, sizeof(word));
    }
  }
}

// The float16 numbers of one output; returns what follows them.
uint8_t* PackWideScales(const QuantBlock& block, const QuantPanel& panel, int output,
                        uint8_t* out) {
  std::memcpy(out + 2 * output, &block.d, 2);
  if (panel.minima) {
    // The kernels add; a block of 32 subtracts -1 times its minimum already.
    const auto minimum = static_cast<uint16_t>(block.dmin ^ (panel.super ? 0x8000u : 0u));
    std::memcpy(out + 16 + 2 * output, &minimum, 2);
  }
  return out + panel.wide_scale_bytes();
}

// The 8-bit scales of one output in one block of 32; returns what follows them.
uint8_t* PackGroupScales(const int8_t* scales, const int8_t* minima, const QuantPanel& panel,
                         int output, uint8_t* out) {
  if (!panel.super) return out;
  for (int g = 0; g < panel.groups; ++g) {
    out[output] = static_cast<uint8_t>(scales[g]);
    if (panel.minima) out[8 + output] = static_cast<uint8_t>(minima[g]);
    out += panel.minima ? 16 : 8;
  }
  return out;
}

}  // namespace

PackedMatrix::PackedMatrix(const WeightView& view, PanelMemory& memory, ThreadPool& pool)
    : view_(view), kind_(KindOf(view.type)) {
  KERNELS_CHECK(view.data != nullptr && view.rows >= 1 && view.cols >= 1);
  KERNELS_CHECK(view.cols % BlockElems(view.type) == 0);
  panel_bytes_ = PanelBytes(view, kind_);
  panels_ = memory.Take(panel_count() * panel_bytes_);
  pool.ParallelFor(panel_count(), 8, [this](int64_t begin, int64_t end, int) {
    for (int64_t panel = begin; panel < end; ++panel) PackPanel(panel);
  });
}

DenseMatmul* PackedMatrix::Dense(Isa isa, ThreadPool& pool) const {
  if (!dense_tried_) dense_ = DenseMatmul::Make(view_, isa, pool);
  dense_tried_ = true;
  return dense_.get();
}

void PackedMatrix::PackFloats(const uint8_t* row, int output, uint8_t* panel) const {
  const int64_t bytes = BlockBytes(view_.type);
  for (int64_t i = 0; i < view_.cols; ++i) {
    std::memcpy(panel + (i * kPanelOutputs + output) * bytes, row + i * bytes, bytes);
  }
}

void PackedMatrix::PackIntegers(const uint8_t* row, int output, uint8_t* panel) const {
  const QuantPanel layout = QuantPanelOf(kind_);
  const int64_t elems = BlockElems(view_.type), bytes = BlockBytes(view_.type);
  QuantBlock block;
  for (int64_t done = 0; done < view_.cols; done += elems, row += bytes) {
    UnpackBlock(view_.type, row, block);
    panel = PackWideScales(block, layout, output, panel);
    for (int64_t i = 0; i < elems; i += kQuantBlock) {
      const int64_t group = i / kQuantBlock * layout.groups;
      panel = PackGroupScales(block.scales + group, block.minima + group, layout, output, panel);
      if (layout.nibbles) {
        PackNibbles(block.quants + i, layout.offset, output, panel);
      } else if (layout.bits < 8) {
        PackWords(block.quants + i, layout, output, panel);
      } else {
        PackBytes(block.quants + i, output, panel);
      }
      panel += layout.weight_bytes();
    }
  }
}

void PackedMatrix::PackPanel(int64_t panel) {
  uint8_t* out = panels_.get() + panel * panel_bytes_;
  std::memset(out, 0, panel_bytes_);
  const int64_t row_bytes = RowBytes(view_.type, view_.cols);
  for (int output = 0; output < kPanelOutputs; ++output) {
    const int64_t row = panel * kPanelOutputs + output;
    if (row >= view_.rows) return;
    const uint8_t* source = static_cast<const uint8_t*>(view_.data) + row * row_bytes;
    if (BlockElems(view_.type) == 1) {
      PackFloats(source, output, out);
    } else {
      PackIntegers(source, output, out);
    }
  }
}

}  // namespace trivium::kernels
