// What this processor and its operating system can run, read from CPUID and XGETBV.
// Stateless; safe from any thread.
#pragma once

namespace trivium::kernels {

struct CpuFeatures {
  bool avx2 = false;    // AVX2, FMA, F16C, and the system saves ymm registers
  bool avx512 = false;  // AVX-512 F, BW, DQ, VL and VNNI, and the system saves zmm registers
  // AMX tiles with bf16, AVX-512 BF16, and the system grants this process the tile state
  bool amx = false;
};

// Looked up once a process.
const CpuFeatures& DetectCpu();

}  // namespace trivium::kernels
