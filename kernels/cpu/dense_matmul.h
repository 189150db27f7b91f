// Large batches through oneDNN: a matrix in float32, cut into one slice of outputs a thread, each
// slice a primitive of its own that its thread executes alone.
//
// Rows go in tiles of kTileRows, so that one primitive a slice serves every batch size. K is never
// split. Not thread-safe; belongs to the thread that drives the Ops. Where oneDNN has no such
// primitive, Make returns null.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/ops.h"
#include "kernels/thread_pool.h"

namespace trivium::kernels {

class DenseMatmul {
 public:
  static constexpr int kTileRows = 64;

  virtual ~DenseMatmul() = default;

  // `isa` caps what oneDNN may use; the first call decides for the process.
  static std::unique_ptr<DenseMatmul> Make(const WeightView& view, Isa isa, ThreadPool& pool);
  // Call in each thread of the pool before its first matrix: keeps OpenMP, inside oneDNN, to that
  // thread.
  static void StayInThisThread();

  // y[rows, N] = x[rows, K] * w^T for any number of rows.
  virtual void Run(const float* x, int rows, float* y) = 0;
};

}  // namespace trivium::kernels
