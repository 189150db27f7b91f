// A weight matrix in panels of eight outputs, the layout of the kernels in simd/.
//
// Quantised panels are a sequence of blocks of 32 inputs. A block is the eight scales (float16),
// the eight minima if the kind has some, then the integers: nibbles as four vectors of 32 bytes,
// byte 4 o + j of vector i holding the inputs 8 i + j (low nibble) and 8 i + 4 + j (high) of output
// o; bytes as sixteen vectors of 16, byte 2 o + j of vector i holding input 2 i + j of output o. In
// a kind with super-blocks the scales (and negated minima) in float16 stand once before eight
// blocks, and each block begins with eight 8-bit scales (and minima) for each group. No weight
// changes its value: what the kernels multiply is what DequantizeRow gives, but for rounding.
// Float panels are the inputs in order, eight outputs each. Missing outputs of the last panel are
// zero.
//
// The panels are a copy and immutable. The dense form of large batches is made from the file at its
// first use, by the one thread that drives the Ops.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/cpu/dense_matmul.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/panel_memory.h"
#include "kernels/ops.h"
#include "kernels/thread_pool.h"

namespace trivium::kernels {

class PackedMatrix final : public Matrix {
 public:
  PackedMatrix(const WeightView& view, PanelMemory& memory, ThreadPool& pool);

  int64_t rows() const override { return view_.rows; }
  int64_t cols() const override { return view_.cols; }
  // The matrix in the file; what lies there stays mapped as long as the matrix lives.
  const WeightView& view() const { return view_; }
  PanelKind kind() const { return kind_; }
  const uint8_t* panels() const { return panels_.get(); }
  int64_t panel_bytes() const { return panel_bytes_; }
  int64_t panel_count() const { return (view_.rows + kPanelOutputs - 1) / kPanelOutputs; }
  // The form for large batches in float32; null where there is none.
  DenseMatmul* Dense(Isa isa, ThreadPool& pool) const;

 private:
  void PackFloats(const uint8_t* row, int output, uint8_t* panel) const;
  void PackIntegers(const uint8_t* row, int output, uint8_t* panel) const;
  void PackPanel(int64_t panel);

  WeightView view_;
  PanelKind kind_;
  int64_t panel_bytes_;
  std::shared_ptr<uint8_t> panels_;
  mutable bool dense_tried_ = false;
  mutable std::unique_ptr<DenseMatmul> dense_;
};

}  // namespace trivium::kernels
