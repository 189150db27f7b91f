// Matrix products with float weights: each output is one chain of fused multiply-adds over the
// inputs.
#include "kernels/cpu/simd/simd.h"

namespace trivium::kernels::TRIVIUM_SIMD {
namespace {

constexpr int kTileRows = 6;
constexpr int64_t kCacheRows = 48;

template <PanelKind kKind>
constexpr int64_t kStepBytes = kPanelOutputs*(kKind == PanelKind::kF32 ? 4 : 2);

// The eight weights of one input.
template <PanelKind kKind>
inline __m256 Weights(const uint8_t* p) {
  if constexpr (kKind == PanelKind::kF32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
  } else {
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    if constexpr (kKind == PanelKind::kF16) return _mm256_cvtph_ps(narrow);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
  }
}

inline void StoreOutputs(float* y, __m256 v, int64_t outputs) {
  if (outputs >= kPanelOutputs) {
    _mm256_storeu_ps(y, v);
  } else if (outputs > 0) {
    _mm256_maskstore_ps(y, FirstLanes(outputs), v);
  }
}

template <PanelKind kKind, int kRows, int kPanels>
void RunTile(const MatmulTask& task, int64_t panel, int64_t row) {
  __m256 acc[kRows][kPanels];
  TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) {
    TRIVIUM_UNROLL for (int p = 0; p < kPanels; ++p) acc[r][p] = _mm256_setzero_ps();
  }
  const uint8_t* weights = task.panels + panel * task.panel_bytes;
  const float* x = task.x + row * task.k;
  for (int64_t k = 0; k < task.k; ++k) {
    __m256 w[kPanels];
    TRIVIUM_UNROLL for (int p = 0; p < kPanels; ++p) {
      w[p] = Weights<kKind>(weights + p * task.panel_bytes + k * kStepBytes<kKind>);
    }
    TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) {
      const __m256 a = _mm256_broadcast_ss(x + r * task.k + k);
      TRIVIUM_UNROLL for (int p = 0; p < kPanels; ++p) acc[r][p] =
          _mm256_fmadd_ps(a, w[p], acc[r][p]);
    }
  }
  TRIVIUM_UNROLL for (int r = 0; r < kRows; ++r) {
    TRIVIUM_UNROLL for (int p = 0; p < kPanels; ++p) {
      const int64_t output = (panel + p) * kPanelOutputs;
      StoreOutputs(task.y + (row + r) * task.n + output, acc[r][p], task.n - output);
    }
  }
}

template <PanelKind kKind, int kPanels>
void RunPanels(const MatmulTask& task, int64_t panel, int64_t row, int64_t end) {
  for (; row + kTileRows <= end; row += kTileRows) {
    RunTile<kKind, kTileRows, kPanels>(task, panel, row);
  }
  switch (end - row) {
    case 5:
      return RunTile<kKind, 5, kPanels>(task, panel, row);
    case 4:
      return RunTile<kKind, 4, kPanels>(task, panel, row);
    case 3:
      return RunTile<kKind, 3, kPanels>(task, panel, row);
    case 2:
      return RunTile<kKind, 2, kPanels>(task, panel, row);
    case 1:
      return RunTile<kKind, 1, kPanels>(task, panel, row);
  }
}

// A single row has too few chains to hide the latency of one; wide steps give it eight.
template <PanelKind kKind>
int64_t RunSingleRow(const MatmulTask& task) {
  int64_t p = task.panel_begin;
  for (; p + 8 <= task.panel_end; p += 8) RunTile<kKind, 1, 8>(task, p, 0);
  return p;
}

template <PanelKind kKind>
void Run(const MatmulTask& task) {
  const int64_t begin = task.rows == 1 ? RunSingleRow<kKind>(task) : task.panel_begin;
  for (int64_t row = 0; row < task.rows; row += kCacheRows) {
    const int64_t end = row + kCacheRows < task.rows ? row + kCacheRows : task.rows;
    int64_t p = begin;
    for (; p + 2 <= task.panel_end; p += 2) RunPanels<kKind, 2>(task, p, row, end);
    if (p < task.panel_end) RunPanels<kKind, 1>(task, p, row, end);
  }
}

}  // namespace

void FloatMatmul(const MatmulTask& task) {
  switch (task.kind) {
    case PanelKind::kF32:
      return Run<PanelKind::kF32>(task);
    case PanelKind::kF16:
      return Run<PanelKind::kF16>(task);
    case PanelKind::kBF16:
      return Run<PanelKind::kBF16>(task);
    default:
      return;
  }
}

}  // namespace trivium::kernels::TRIVIUM_SIMD
