#include "kernels/cpu/cpu_features.h"
#include "kernels/ops.h"

namespace trivium::kernels {
namespace {

constexpr Isa kAllIsas[] = {Isa::kReference, Isa::kAvx2, Isa::kAvx512, Isa::kAmx};

bool Supported(Isa isa, const CpuFeatures& cpu) {
  switch (isa) {
    case Isa::kReference:
      return true;
    case Isa::kAvx2:
      return cpu.avx2;
    case Isa::kAvx512:
      return cpu.avx2 && cpu.avx512;
    case Isa::kAmx:
      return cpu.avx2 && cpu.avx512 && cpu.amx;
  }
  return false;
}

}  // namespace

const char* IsaName(Isa isa) {
  switch (isa) {
    case Isa::kReference:
      return "reference";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAmx:
      return "amx";
  }
  return "unknown";
}

bool ParseIsa(const std::string& name, Isa* isa) {
  for (const Isa candidate : kAllIsas) {
    if (name == IsaName(candidate)) {
      *isa = candidate;
      return true;
    }
  }
  return false;
}

std::vector<Isa> SupportedIsas() {
  const CpuFeatures& cpu = DetectCpu();
  std::vector<Isa> result;
  for (const Isa isa : kAllIsas) {
    if (Supported(isa, cpu)) result.push_back(isa);
  }
  return result;
}

Isa BestIsa() { return SupportedIsas().back(); }

}  // namespace trivium::kernels
