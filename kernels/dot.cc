#include "kernels/dot.h"

#include "kernels/cpu/kernel_table.h"
#include "kernels/ops.h"

namespace trivium::kernels {
namespace {

float PlainDot(const float* a, const float* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += double{a[i]} * b[i];
  return static_cast<float>(sum);
}

}  // namespace

DotFunction BestDot() {
  static const DotFunction best = [] {
    switch (BestIsa()) {
      case Isa::kReference:
        return PlainDot;
      case Isa::kAvx2:
        return Avx2Kernels().encoder.dot;
      default:
        return Avx512Kernels().encoder.dot;
    }
  }();
  return best;
}

}  // namespace trivium::kernels
