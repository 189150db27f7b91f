// Products of many rows in bfloat16 on the tiles of AMX, spread over the pool: rows are narrowed
// once for all matrices that take them, and each piece of a matrix is widened by the thread that
// multiplies with it. Not thread-safe: belongs to the thread that drives the Ops.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/packed_matrix.h"
#include "kernels/ops.h"
#include "kernels/thread_pool.h"

namespace trivium::kernels {

class TileMatmul {
 public:
  explicit TileMatmul(ThreadPool& pool) : pool_(pool) {}

  // Whether the matrices take one narrowed form of the rows. None is for weights in float32: a file
  // has few of them, and such as decide between ways to go.
  static bool CanShare(std::span<const Product> products);
  // Whether RunGated takes them.
  static bool CanGate(Activation activation, const Product& gate, const Product& up);

  // Whether RunGatedDown takes them.
  static bool CanGateDown(Activation activation, const Product& gate, const Product& up,
                          const Product& down);

  // y = x[rows, K] * w^T for each.
  void Run(std::span<const Product> products, const float* x, int rows);
  // gate.y = silu(x * gate^T) * (x * up^T); up.y has anything in it afterwards.
  void RunGated(const Product& gate, const Product& up, const float* x, int rows);
  // The same into a product with `down`, for which it is narrowed as it is computed.
  void RunGatedDown(const Product& gate, const Product& up, const Product& down, const float* x,
                    int rows);

 private:
  // Of a step, what one row puts into a tile.
  struct alignas(64) TileRow {
    uint16_t inputs[kAmxInputs];
  };

  static void GrowTo(std::vector<TileRow>& buffer, int64_t rows, int64_t inputs);
  void Narrow(const PackedMatrix& matrix, const float* x, int64_t rows);
  BfloatTask TaskOf(const Product& product, int64_t rows) const;
  void Gate(BfloatTask task, const Product& gate, const Product& up);

  ThreadPool& pool_;
  std::vector<TileRow> tile_rows_, gated_rows_;
};

}  // namespace trivium::kernels
