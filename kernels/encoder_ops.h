// The operations that encoders (of pictures, of text in both directions) need beside those of
// ops.h; their matrix products are Ops::Matmul. Names of dimensions, thread-safety, numerics and
// preconditions are those of ops.h.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/activation.h"

namespace trivium::kernels {

// Rows that all see one another and nobody else.
struct RowSpan {
  int row_begin = 0;
  int row_count = 0;
};

struct FullAttentionArgs {
  const float* q = nullptr;  // [R, H, D]
  const float* k = nullptr;  // [R, H, D]
  const float* v = nullptr;  // [R, H, D]
  std::span<const RowSpan> spans;
  int heads = 0, head_dim = 0;
  float scale = 0;       // usually 1 / sqrt(D)
  float* out = nullptr;  // [R, H, D]
};

// x[R, H, D] in place: elements i and i + D / 2 are a pair, turned by an angle that depends on the
// row and i alone.
struct RotateHalvesArgs {
  float* x = nullptr;
  int rows = 0, heads = 0, head_dim = 0;
  const float* cosines = nullptr;  // [R, D / 2]
  const float* sines = nullptr;    // [R, D / 2]
};

class EncoderOps {
 public:
  virtual ~EncoderOps() = default;

  // out[R, dim] = (x - mean(x)) / sqrt(variance(x) + eps) * weight[dim] + bias[dim]; out may be x
  virtual void LayerNorm(const float* x, const float* weight, const float* bias, float eps,
                         int rows, int dim, float* out) = 0;
  // x[R, dim] += bias[dim]
  virtual void AddBias(float* x, const float* bias, int rows, int dim) = 0;
  // x[i] = activation(x[i])
  virtual void Activate(Activation activation, float* x, int64_t count) = 0;
  virtual void FullAttention(const FullAttentionArgs& args) = 0;
  virtual void RotateHalves(const RotateHalvesArgs& args) = 0;
};

}  // namespace trivium::kernels
