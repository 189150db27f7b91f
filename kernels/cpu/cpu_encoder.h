// The encoders' operations on x86-64 processors with AVX2 or more; belongs to a CpuOps, whose pool
// and inner loops it uses.
//
// Attention over all rows is two float32 matrix products a head, with keys and values packed into
// panels as weights are (packed_matrix.h), and a softmax between them.
#pragma once

#include <vector>

#include "kernels/cpu/kernel_table.h"
#include "kernels/encoder_ops.h"
#include "kernels/thread_pool.h"

namespace trivium::kernels {

class CpuEncoder final : public EncoderOps {
 public:
  CpuEncoder(const KernelTable& kernels, ThreadPool& pool)
      : kernels_(kernels), pool_(pool), scratch_(static_cast<size_t>(pool.threads())) {}

  void LayerNorm(const float* x, const float* weight, const float* bias, float eps, int rows,
                 int dim, float* out) override;
  void AddBias(float* x, const float* bias, int rows, int dim) override;
  void Activate(Activation activation, float* x, int64_t count) override;
  void FullAttention(const FullAttentionArgs& args) override;
  void RotateHalves(const RotateHalvesArgs& args) override;

 private:
  // Of one thread; grows to the longest span seen.
  struct Scratch {
    std::vector<float> keys;    // panels of 8 keys, [D, 8] each
    std::vector<float> values;  // panels of 8 elements of D, [keys, 8] each
    std::vector<float> q, scores, out;
  };

  void AttendHead(const FullAttentionArgs& args, const RowSpan& span, int head, Scratch& s) const;
  void AttendRows(const FullAttentionArgs& args, const RowSpan& span, int head, int row, int count,
                  Scratch& s) const;

  const KernelTable& kernels_;
  ThreadPool& pool_;
  std::vector<Scratch> scratch_;
};

}  // namespace trivium::kernels
