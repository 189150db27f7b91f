#include "kernels/cpu/simd/simd.h"

namespace trivium::kernels {
namespace TRIVIUM_SIMD {
namespace {

void Matmul(const MatmulTask& task) {
  const bool is_float =
      task.kind == PanelKind::kF32 || task.kind == PanelKind::kF16 || task.kind == PanelKind::kBF16;
  if (is_float) return FloatMatmul(task);
  return task.rows <= kMostFewRows ? MultiplyRows(task) : MultiplyTiles(task);
}

constexpr KernelTable kTable = {
    .quantise8 = Quantise8,
    .quantise16 = Quantise16,
    .matmul = Matmul,
    .attend_chunk = AttendChunk,
    .merge_chunk = MergeChunk,
    .finish = FinishAttention,
    .rms_norm = RmsNormRow,
    .rope = RopeRow,
    .store_kv_row = StoreKvRow,
    .silu_mul = SiluMulRange,
    .add = AddRange,
    .encoder = {.layer_norm = LayerNormRow,
                .activate = ActivateRange,
                .softmax = SoftmaxRow,
                .scale = ScaleRange,
                .dot = DotRange},
};

}  // namespace
}  // namespace TRIVIUM_SIMD

const KernelTable& TRIVIUM_SIMD_TABLE() { return TRIVIUM_SIMD::kTable; }

}  // namespace trivium::kernels
