// Weights of two neighbouring panels as the bfloat16 tiles that AMX multiplies by: 32 inputs and 16
// outputs, a row of 64 bytes for each pair of inputs, both inputs of an output side by side.
// Stateless but for the place in the panels; safe from any thread on different objects.
//
// Which inputs make a pair follows from how the panels lie; InputOrder gives the order that the
// activations must have. A weight is scale * integer + minimum, rounded once in float32 and once
// more to bfloat16.
#pragma once

#include "kernels/cpu/simd/amx_tiles.h"
#include "kernels/cpu/simd/quantised.h"

namespace trivium::kernels::TRIVIUM_SIMD {

constexpr bool IsFloat(PanelKind kind) {
  return kind == PanelKind::kF16 || kind == PanelKind::kBF16;
}

// Nibbles lie so that the inputs 0 and 2, 1 and 3 of four pair up.
inline bool SwapsInputs(PanelKind kind) { return !IsFloat(kind) && QuantPanelOf(kind).nibbles; }

// Input order[i] of 32 has place i.
inline __m512i InputOrder(PanelKind kind) {
  alignas(64) uint16_t order[32];
  const bool nibbles = SwapsInputs(kind);
  for (int i = 0; i < 32; ++i) {
    const int swapped = (i & ~3) | (i & 1) << 1 | (i & 2) >> 1;
    order[i] = static_cast<uint16_t>(nibbles ? swapped : i);
  }
  return _mm512_load_si512(order);
}

// Of eight outputs, each twice.
inline __m512 Twice(__m256 v) {
  const __m512i lanes = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  return _mm512_permutexvar_ps(lanes, _mm512_castps256_ps512(v));
}

template <PanelKind kKind>
class PairWidener {
 public:
  static constexpr QuantPanel kPanel = QuantPanelOf(kKind);

  // Panels that the matrix does not have count as zero.
  PairWidener(const BfloatTask& task, const uint8_t* panels, int64_t panel) {
    const int64_t there = (task.n + kPanelOutputs - 1) / kPanelOutputs - panel;
    ahead_ = kAmxPanels * task.panel_bytes;
    for (int p = 0; p < 2; ++p) {
      next_[p] = there > 0 ? panels + (panel + (p < there ? p : 0)) * task.panel_bytes : nullptr;
      lanes_[p] = p < there ? 0xffff : 0;
    }
  }

  // Steps are asked for in order, from 0 on.
  void Step(int64_t step, uint8_t* tile) {
    if (next_[0] == nullptr) return Clear(tile);
    for (int p = 0; p < 2; ++p) next_[p] = scales_[p].Begin(step, next_[p]);
    TRIVIUM_UNROLL for (int g = 0; g < kPanel.groups; ++g) {
      if constexpr (kPanel.nibbles) {
        WidenNibbles(g, tile);
      } else {
        WidenWords(g, tile);
      }
    }
    for (int p = 0; p < 2; ++p) {
      for (int at = 0; at < kPanel.weight_bytes(); at += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(next_[p] + ahead_ + at), _MM_HINT_T0);
      }
      next_[p] += kPanel.weight_bytes();
    }
  }

 private:
  struct Factors {
    __m512 scale[2], minimum[2];
  };

  static void Clear(uint8_t* tile) {
    for (int i = 0; i < 16; ++i) _mm512_store_si512(tile + 64 * i, _mm512_setzero_si512());
  }

  Factors FactorsOf(int g) const {
    Factors factors;
    TRIVIUM_UNROLL for (int p = 0; p < 2; ++p) {
      const __m256 scale = scales_[p].Scale(g);
      factors.scale[p] = _mm512_maskz_mov_ps(lanes_[p], Twice(scale));
      factors.minimum[p] = kPanel.sums()
                               ? _mm512_maskz_mov_ps(lanes_[p], Twice(scales_[p].Minimum(g, scale)))
                               : _mm512_setzero_ps();
    }
    return factors;
  }

  // Two bytes in a lane hold four nibbles, which stay where they are: the scale makes up for it.
  void WidenNibbles(int g, uint8_t* tile) const {
    constexpr int kVectors = 4 / kPanel.groups;
    constexpr int kMasks[] = {0x000f, 0x0f00, 0x00f0, 0xf000};
    constexpr float kParts[] = {1, 0x1p-8f, 0x1p-4f, 0x1p-12f};
    const Factors whole = FactorsOf(g);
    Factors part[4];
    TRIVIUM_UNROLL for (int j = 0; j < 4; ++j) {
      part[j] = whole;
      TRIVIUM_UNROLL for (int p = 0; p < 2; ++p) {
        part[j].scale[p] = _mm512_mul_ps(whole.scale[p], _mm512_set1_ps(kParts[j]));
      }
    }
    TRIVIUM_UNROLL for (int i = g * kVectors; i < (g + 1) * kVectors; ++i) {
      const __m512i a = _mm512_cvtepu16_epi32(LoadInts(next_[0] + 32 * i));
      const __m512i b = _mm512_cvtepu16_epi32(LoadInts(next_[1] + 32 * i));
      TRIVIUM_UNROLL for (int j = 0; j < 4; ++j) {
        const __m512i mask = _mm512_set1_epi32(kMasks[j]);
        Store(_mm512_and_si512(a, mask), _mm512_and_si512(b, mask), part[j],
              tile + 64 * (4 * i + j));
      }
    }
  }

  void WidenWords(int g, uint8_t* tile) const {
    constexpr int kVectors = 16 / kPanel.groups;
    __m256i words[2][kVectors];
    TRIVIUM_UNROLL for (int p = 0; p < 2; ++p) {
      EachPair<kKind>(
          next_[p], g, [&](int i, __m256i v) __attribute__((always_inline)) {
            words[p][i - g * kVectors] = v;
          });
    }
    const Factors factors = FactorsOf(g);
    for (int i = 0; i < kVectors; ++i) {
      Store(_mm512_cvtepi16_epi32(words[0][i]), _mm512_cvtepi16_epi32(words[1][i]), factors,
            tile + 64 * (g * kVectors + i));
    }
  }

  static void Store(__m512i a, __m512i b, const Factors& factors, uint8_t* row) {
    const __m512 first =
        _mm512_fmadd_ps(_mm512_cvtepi32_ps(a), factors.scale[0], factors.minimum[0]);
    const __m512 second =
        _mm512_fmadd_ps(_mm512_cvtepi32_ps(b), factors.scale[1], factors.minimum[1]);
    _mm512_store_si512(row, NarrowPair(first, second));
  }

  int64_t ahead_;
  const uint8_t* next_[2];
  __mmask16 lanes_[2];
  Scales<kKind> scales_[2];
};

// Floats of 16 bits: any number of inputs, those behind the last are zero.
template <PanelKind kKind>
requires(IsFloat(kKind)) class PairWidener<kKind> {
 public:
  PairWidener(const BfloatTask& task, const uint8_t* panels, int64_t panel) : k_(task.k) {
    const int64_t there = (task.n + kPanelOutputs - 1) / kPanelOutputs - panel;
    for (int p = 0; p < 2; ++p) {
      panels_[p] = p < there ? panels + (panel + p) * task.panel_bytes : nullptr;
    }
  }

  void Step(int64_t step, uint8_t* tile) {
    // Side by side: output n of the first input (place n or n + 8) and of the second.
    alignas(64) uint16_t order[32];
    for (int i = 0; i < 32; ++i) {
      order[i] = static_cast<uint16_t>(i / 16 * 16 + i % 2 * 8 + i / 2 % 8);
    }
    const __m512i both = _mm512_load_si512(order);
    for (int pair = 0; pair < 16; ++pair) {
      const int64_t input = step * kAmxInputs + 2 * pair;
      const __m512i v = NarrowPair(Load(0, input), Load(1, input));
      _mm512_store_si512(tile + 64 * pair, _mm512_permutexvar_epi16(both, v));
    }
  }

 private:
  // Two inputs of eight outputs.
  __m512 Load(int p, int64_t input) const {
    if (panels_[p] == nullptr) return _mm512_setzero_ps();
    const __mmask16 lanes = LeadingLanes((k_ - input) * kPanelOutputs);
    const __m256i words = _mm256_maskz_loadu_epi16(lanes, panels_[p] + input * 16);
    if constexpr (kKind == PanelKind::kF16) return _mm512_cvtph_ps(words);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
  }

  const int64_t k_;
  const uint8_t* panels_[2];
};

// Calls fn.operator()<kind>() for all kinds but float32, which is not narrowed.
template <typename Fn>
inline void WithAnyKind(PanelKind kind, const Fn& fn) {
  switch (kind) {
    case PanelKind::kF16:
      return fn.template operator()<PanelKind::kF16>();
    case PanelKind::kBF16:
      return fn.template operator()<PanelKind::kBF16>();
    default:
      return WithKind(kind, fn);
  }
}

}  // namespace trivium::kernels::TRIVIUM_SIMD
