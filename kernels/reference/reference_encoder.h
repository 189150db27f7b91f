// The oracle of the encoders' operations: plain C++ in float64, one element after another.
#pragma once

#include "kernels/encoder_ops.h"
#include "kernels/thread_pool.h"

namespace trivium::kernels {

class ReferenceEncoder final : public EncoderOps {
 public:
  explicit ReferenceEncoder(ThreadPool& pool) : pool_(pool) {}

  void LayerNorm(const float* x, const float* weight, const float* bias, float eps, int rows,
                 int dim, float* out) override;
  void AddBias(float* x, const float* bias, int rows, int dim) override;
  void Activate(Activation activation, float* x, int64_t count) override;
  void FullAttention(const FullAttentionArgs& args) override;
  void RotateHalves(const RotateHalvesArgs& args) override;

 private:
  ThreadPool& pool_;
};

}  // namespace trivium::kernels
