#include <algorithm>

#include "kernels/check.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/ops.h"
#include "kernels/reference/reference_ops.h"

namespace trivium::kernels {

std::unique_ptr<Ops> MakeOps(const OpsOptions& options) {
  KERNELS_CHECK(options.threads >= 1 && options.threads <= 256);
  const std::vector<Isa> supported = SupportedIsas();
  if (std::find(supported.begin(), supported.end(), options.isa) == supported.end()) return nullptr;
  if (options.isa == Isa::kReference) return MakeReferenceOps(options);
  return MakeCpuOps(options);
}

}  // namespace trivium::kernels
