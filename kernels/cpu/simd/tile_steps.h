// Four steps of the products of a tile of six rows and two panels: twelve sums. A step takes four
// bytes of each row (four inputs of bytes, two of words) and a vector of each panel.
// Stateless; safe from any thread. Sums of bytes are as DotBytes leaves them.
#pragma once

#include "kernels/cpu/simd/quantised.h"

namespace trivium::kernels::TRIVIUM_SIMD {

using TileSums = __m256i[kTileRows][kTilePanels];

#ifdef __AVX512VNNI__

template <bool kBytes, bool kFirst>
inline void FourSteps(const uint8_t* weights, const uint8_t* q, TileSums& dot) {
  TRIVIUM_UNROLL for (int i = 0; i < 4; ++i) {
    TRIVIUM_UNROLL for (int r = 0; r < kTileRows; ++r) {
      const __m256i a = Spread(q + 4 * (kTileRows * i + r));
      TRIVIUM_UNROLL for (int p = 0; p < kTilePanels; ++p) {
        const __m256i w = LoadInts(weights + 32 * (kTilePanels * i + p));
        const __m256i sum = kFirst && i == 0 ? _mm256_setzero_si256() : dot[r][p];
        dot[r][p] = kBytes ? DotBytes(sum, w, a) : DotWords(sum, w, a);
      }
    }
  }
}

#else

// All sixteen registers are in use here; g++ left to itself spills a third of the sums.
#define TRIVIUM_LOAD(step)              \
  "vmovdqa 64*" #step "(%[w]), %[w0]\n" \
  "vmovdqa 64*" #step "+32(%[w]), %[w1]\n"
#define TRIVIUM_SPREAD(step, row) "vpbroadcastd 4*(6*" #step "+" #row ")(%[q]), %[a]\n"
#define TRIVIUM_FIRST_ROW(mul, add, step, row) \
  TRIVIUM_SPREAD(step, row)                    \
  mul " %[a], %[w0], %[d" #row "0]\n" mul " %[a], %[w1], %[d" #row "1]\n"
#define TRIVIUM_ROW(mul, add, step, row)                                     \
  TRIVIUM_SPREAD(step, row)                                                  \
  mul " %[a], %[w0], %[t]\n" add " %[t], %[d" #row "0], %[d" #row "0]\n" mul \
      " %[a], %[w1], %[t]\n" add " %[t], %[d" #row "1], %[d" #row "1]\n"
#define TRIVIUM_STEP(row, mul, add, step)                                                     \
  TRIVIUM_LOAD(step)                                                                          \
  row(mul, add, step, 0) row(mul, add, step, 1) row(mul, add, step, 2) row(mul, add, step, 3) \
      row(mul, add, step, 4) row(mul, add, step, 5)
#define TRIVIUM_SUM(mode, r) [d##r##0] mode(dot[r][0]), [d##r##1] mode(dot[r][1])
#define TRIVIUM_STEPS(row, mode, mul, add)                                                        \
  asm volatile(TRIVIUM_STEP(row, mul, add, 0) TRIVIUM_STEP(TRIVIUM_ROW, mul, add, 1)              \
                   TRIVIUM_STEP(TRIVIUM_ROW, mul, add, 2) TRIVIUM_STEP(TRIVIUM_ROW, mul, add, 3)  \
               : TRIVIUM_SUM(mode, 0), TRIVIUM_SUM(mode, 1), TRIVIUM_SUM(mode, 2),                \
                 TRIVIUM_SUM(mode, 3), TRIVIUM_SUM(mode, 4),                                      \
                 TRIVIUM_SUM(mode, 5), [w0] "=&x"(w0), [w1] "=&x"(w1), [a] "=&x"(a), [t] "=&x"(t) \
               : [w] "r"(weights), [q] "r"(q)                                                     \
               : "memory")

template <bool kBytes, bool kFirst>
inline void FourSteps(const uint8_t* weights, const uint8_t* q, TileSums& dot) {
  static_assert(kTileRows == 6 && kTilePanels == 2);
  __m256i w0, w1, a, t;
  if constexpr (kBytes && kFirst) {
    TRIVIUM_STEPS(TRIVIUM_FIRST_ROW, "=&x", "vpmaddubsw", "vpaddw");
  } else if constexpr (kBytes) {
    TRIVIUM_STEPS(TRIVIUM_ROW, "+&x", "vpmaddubsw", "vpaddw");
  } else if constexpr (kFirst) {
    TRIVIUM_STEPS(TRIVIUM_FIRST_ROW, "=&x", "vpmaddwd", "vpaddd");
  } else {
    TRIVIUM_STEPS(TRIVIUM_ROW, "+&x", "vpmaddwd", "vpaddd");
  }
}

#undef TRIVIUM_STEPS
#undef TRIVIUM_SUM
#undef TRIVIUM_STEP
#undef TRIVIUM_ROW
#undef TRIVIUM_FIRST_ROW
#undef TRIVIUM_SPREAD
#undef TRIVIUM_LOAD

#endif

}  // namespace trivium::kernels::TRIVIUM_SIMD
