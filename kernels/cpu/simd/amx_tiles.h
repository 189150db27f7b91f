// The tiles of AMX as they are used here, eight of 16 rows of 64 bytes, and bfloat16 to fill them.
// Stateless but for the tiles, which belong to the thread.
#pragma once

#include "kernels/cpu/simd/simd.h"

namespace trivium::kernels::TRIVIUM_SIMD {

inline constexpr int64_t kTileBytes = 1024;
inline constexpr float kLog2E = 1.44269504f;

void NarrowRows(PanelKind kind, const float* x, int64_t k, int64_t rows, uint16_t* tile);
void MultiplyBfloat(const BfloatTask& task);
void AttendOnTiles(const AttentionTask& task, int chunk, uint8_t* scratch, int64_t* loaded_rows,
                   const AttentionPartial& partial);

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Tiles are state of a thread that the system must save: they are given back after each task.
class Tiles {
 public:
  Tiles() {
    static constexpr TileConfig kConfig;
    _tile_loadconfig(&kConfig);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// Of 2^x for 0 <= x <= 1, interpolated at the zeros of a Chebyshev polynomial.
inline constexpr float kPower[] = {1.00000349f, 0.692972922f, 0.241604357f, 0.0517449978f,
                                   0.0136703095f};

// 2^x to 4e-6 of it.
inline __m512 PowerOfTwo(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, 1);  // x - floor(x)
  __m512 p = _mm512_set1_ps(kPower[4]);
  TRIVIUM_UNROLL for (int i = 3; i >= 0; --i) {
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(kPower[i]));
  }
  return _mm512_scalef_ps(p, x);
}

// Lanes 0 … count - 1 of sixteen.
inline __mmask16 LeadingLanes(int64_t count) {
  if (count <= 0) return 0;
  return count >= 16 ? 0xffff : static_cast<__mmask16>((1u << count) - 1);
}

// Sixteen floats and sixteen more, to bfloat16.
inline __m512i NarrowPair(__m512 low, __m512 high) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

}  // namespace trivium::kernels::TRIVIUM_SIMD
