#include "kernels/cpu/packed_matrix.h"

#include <cstring>
#include <new>

#include "kernels/check.h"

namespace trivium::kernels {
namespace {

constexpr int kHalfBytes = 2;

PanelKind KindOf(WeightType type) {
  switch (type) {
    case WeightType::kF32:
      return PanelKind::kF32;
    case WeightType::kF16:
      return PanelKind::kF16;
    case WeightType::kBF16:
      return PanelKind::kBF16;
    case WeightType::kQ8_0:
      return PanelKind::kQ8_0;
    case WeightType::kQ4_0:
      return PanelKind::kQ4_0;
    case WeightType::kQ4_1:
      return PanelKind::kQ4_1;
  }
  return PanelKind::kF32;
}

// The offset of the weights in a block of the file: after the scale, and the minimum if there is
// one.
int HeaderBytes(WeightType type) { return type == WeightType::kQ4_1 ? 4 : 2; }

uint8_t Nibble(const uint8_t* weights, int input) {
  return input < 16 ? weights[input] & 15 : weights[input - 16] >> 4;
}

void PackFourBits(const uint8_t* weights, int output, uint8_t* out) {
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const uint8_t low = Nibble(weights, 8 * i + j);
      const uint8_t high = Nibble(weights, 8 * i + 4 + j);
      out[32 * i + 4 * output + j] = static_cast<uint8_t>(low | high << 4);
    }
  }
}

void PackEightBits(const uint8_t* weights, int output, uint8_t* out) {
  for (int i = 0; i < 16; ++i) std::memcpy(out + 16 * i + 2 * output, weights + 2 * i, 2);
}

// One block of one output into the panel's block.
void PackBlock(WeightType type, const uint8_t* block, int output, uint8_t* out) {
  const int header = HeaderBytes(type);
  for (int i = 0; i < header / kHalfBytes; ++i) {
    std::memcpy(out + 16 * i + kHalfBytes * output, block + kHalfBytes * i, kHalfBytes);
  }
  uint8_t* weights = out + header * kPanelOutputs;
  if (type == WeightType::kQ8_0) {
    PackEightBits(block + header, output, weights);
  } else {
    PackFourBits(block + header, output, weights);
  }
}

}  // namespace

PackedMatrix::PackedMatrix(const WeightView& view, ThreadPool& pool)
    : view_(view), kind_(KindOf(view.type)) {
  KERNELS_CHECK(view.data != nullptr && view.rows >= 1 && view.cols >= 1);
  KERNELS_CHECK(view.cols % BlockElems(view.type) == 0);
  panel_bytes_ = RowBytes(view.type, view.cols) * kPanelOutputs;
  const size_t bytes = (panel_count() * panel_bytes_ + 63) / 64 * 64;
  panels_.reset(static_cast<uint8_t*>(std::aligned_alloc(64, bytes)));
  KERNELS_CHECK(panels_ != nullptr);
  pool.ParallelFor(panel_count(), 8, [this](int64_t begin, int64_t end, int) {
    for (int64_t panel = begin; panel < end; ++panel) PackPanel(panel);
  });
}

DenseMatmul* PackedMatrix::Dense(DenseType type, Isa isa, ThreadPool& pool) const {
  if (!dense_tried_) dense_ = DenseMatmul::Make(view_, type, isa, pool);
  dense_tried_ = true;
  return dense_.get();
}

void PackedMatrix::PackPanel(int64_t panel) {
  uint8_t* out = panels_.get() + panel * panel_bytes_;
  std::memset(out, 0, panel_bytes_);
  const int64_t block_bytes = BlockBytes(view_.type);
  const int64_t blocks = view_.cols / BlockElems(view_.type);
  const auto* data = static_cast<const uint8_t*>(view_.data);
  for (int output = 0; output < kPanelOutputs; ++output) {
    const int64_t row = panel * kPanelOutputs + output;
    if (row >= view_.rows) return;
    const uint8_t* source = data + row * blocks * block_bytes;
    for (int64_t b = 0; b < blocks; ++b) {
      uint8_t* target = out + b * block_bytes * kPanelOutputs;
      if (BlockElems(view_.type) == 1) {
        std::memcpy(target + output * block_bytes, source + b * block_bytes, block_bytes);
      } else {
        PackBlock(view_.type, source + b * block_bytes, output, target);
      }
    }
  }
}

}  // namespace trivium::kernels
