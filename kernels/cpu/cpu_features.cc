#include "kernels/cpu/cpu_features.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace trivium::kernels {
namespace {

struct Registers {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers Cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  if (!__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d)) return Registers{};
  return r;
}

bool Bit(uint32_t word, int bit) { return (word >> bit & 1u) != 0; }

// Which register states the operating system saves; 0 without OSXSAVE.
uint64_t SavedStates(const Registers& leaf1) {
  if (!Bit(leaf1.c, 27)) return 0;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

// Tile data is off until a process asks for it; without the request the first tile load is SIGILL.
bool RequestTileState() {
  constexpr int kArchReqXcompPerm = 0x1023;
  constexpr int kTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
}

CpuFeatures Detect() {
  const Registers leaf1 = Cpuid(1, 0);
  const Registers leaf7 = Cpuid(7, 0);
  const uint64_t saved = SavedStates(leaf1);
  const auto saves = [saved](uint64_t mask) { return (saved & mask) == mask; };
  CpuFeatures cpu;
  cpu.avx2 =
      saves(0x6) && Bit(leaf1.c, 28) && Bit(leaf1.c, 12) && Bit(leaf1.c, 29) && Bit(leaf7.b, 5);
  cpu.avx512 = saves(0xe6) && Bit(leaf7.b, 16) && Bit(leaf7.b, 17) && Bit(leaf7.b, 30) &&
               Bit(leaf7.b, 31) && Bit(leaf7.c, 11);
  cpu.amx = saves(0x60000) && Bit(leaf7.d, 22) && Bit(leaf7.d, 24) && Bit(Cpuid(7, 1).a, 5) &&
            RequestTileState();
  return cpu;
}

}  // namespace

const CpuFeatures& DetectCpu() {
  static const CpuFeatures cpu = Detect();
  return cpu;
}

}  // namespace trivium::kernels
