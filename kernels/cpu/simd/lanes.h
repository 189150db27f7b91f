// The vectors of the products with quantised panels: a lane of 32 bits an output, of one panel or,
// with 512 bits, of two neighbours (TwoPlaces). An output gets the same bits from both. Stateless.
#pragma once

#include "kernels/cpu/simd/simd.h"

namespace trivium::kernels::TRIVIUM_SIMD {

inline __m128i Load128(const uint8_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
inline __m128i Load64(const uint8_t* p) {
  return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
}

// Four bytes of activations.
inline int32_t LoadFour(const void* p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return word;
}

// The same in every 32-bit lane.
inline __m256i Spread(const void* four) { return _mm256_set1_epi32(LoadFour(four)); }

inline __m256i LoadInts(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline __m256i LoadSignedBytes(const uint8_t* p) { return _mm256_cvtepi8_epi16(Load128(p)); }
inline __m256 LoadHalfs(const uint8_t* p) { return _mm256_cvtph_ps(Load128(p)); }
inline __m256 LoadScales(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(Load64(p)));
}

inline __m256i Both(__m256i a, __m256i b) { return _mm256_and_si256(a, b); }
inline __m256i Either(__m256i a, __m256i b) { return _mm256_or_si256(a, b); }
inline __m256i WordsRight(__m256i v, int bits) { return _mm256_srli_epi16(v, bits); }
inline __m256i WordsLeft(__m256i v, int bits) { return _mm256_slli_epi16(v, bits); }
inline __m256i PickBytes(__m256i table, __m256i at) { return _mm256_shuffle_epi8(table, at); }
inline __m256 Multiply(__m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
inline __m256 MultiplyAdd(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
inline __m256 ToFloats(__m256i v) { return _mm256_cvtepi32_ps(v); }

// Vectors of one value, as wide as V.
template <typename V>
inline V FillBytes(int v) {
  return _mm256_set1_epi8(static_cast<char>(v));
}
template <typename V>
inline V FillWords(int v) {
  return _mm256_set1_epi16(static_cast<int16_t>(v));
}
template <typename V>
inline V FillFours(int32_t v) {
  return _mm256_set1_epi32(v);
}
template <typename V>
inline V FillFloats(float v) {
  return _mm256_set1_ps(v);
}
template <typename V>
inline V Repeat(__m128i v) {
  return _mm256_broadcastsi128_si256(v);
}

// Sums of products: of unsigned by signed bytes, the high or the low parts of activations, which
// WholeOfHigh and AddLow join; and of words.
#ifdef __AVX512VNNI__
inline __m256i DotBytes(__m256i sum, __m256i u, __m256i s) {
  return _mm256_dpbusd_epi32(sum, u, s);
}
inline __m256i DotWords(__m256i sum, __m256i a, __m256i b) {
  return _mm256_dpwssd_epi32(sum, a, b);
}
inline __m256i WholeOfHigh(__m256i high) { return _mm256_slli_epi32(high, kLowBits); }
inline __m256i AddLow(__m256i whole, __m256i low) { return _mm256_add_epi32(whole, low); }
#else
// Weights 0..15 times |activations| <= 128: a 16-bit lane holds all 16 products of a block.
inline __m256i DotBytes(__m256i sum, __m256i u, __m256i s) {
  return _mm256_add_epi16(sum, _mm256_maddubs_epi16(u, s));
}
inline __m256i DotWords(__m256i sum, __m256i a, __m256i b) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
inline __m256i WholeOfHigh(__m256i high) {
  return _mm256_madd_epi16(high, _mm256_set1_epi16(1 << kLowBits));
}
inline __m256i AddLow(__m256i whole, __m256i low) {
  return _mm256_add_epi32(whole, _mm256_madd_epi16(low, _mm256_set1_epi16(1)));
}
#endif

inline void StoreOutputs(float* y, __m256 v, int64_t outputs) {
  if (outputs >= kPanelOutputs) {
    _mm256_storeu_ps(y, v);
  } else {
    _mm256_maskstore_ps(y, FirstLanes(outputs), v);
  }
}

#ifdef __AVX512VNNI__

// The same place in two panels.
struct TwoPlaces {
  const uint8_t *p, *q;
  TwoPlaces operator+(int64_t bytes) const { return {p + bytes, q + bytes}; }
  TwoPlaces& operator+=(int64_t bytes) { return *this = *this + bytes; }
};

inline __m256i Load128(TwoPlaces at) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(Load128(at.p)), Load128(at.q), 1);
}

inline __m512i LoadInts(TwoPlaces at) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(LoadInts(at.p)), LoadInts(at.q), 1);
}
inline __m512i LoadSignedBytes(TwoPlaces at) { return _mm512_cvtepi8_epi16(Load128(at)); }
inline __m512 LoadHalfs(TwoPlaces at) { return _mm512_cvtph_ps(Load128(at)); }
inline __m512 LoadScales(TwoPlaces at) {
  const __m128i bytes = _mm_unpacklo_epi64(Load64(at.p), Load64(at.q));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

inline __m512i Both(__m512i a, __m512i b) { return _mm512_and_si512(a, b); }
inline __m512i Either(__m512i a, __m512i b) { return _mm512_or_si512(a, b); }
inline __m512i WordsRight(__m512i v, int bits) {
  return _mm512_srli_epi16(v, static_cast<unsigned>(bits));
}
inline __m512i WordsLeft(__m512i v, int bits) {
  return _mm512_slli_epi16(v, static_cast<unsigned>(bits));
}
inline __m512i PickBytes(__m512i table, __m512i at) { return _mm512_shuffle_epi8(table, at); }
inline __m512 Multiply(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
inline __m512 MultiplyAdd(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
inline __m512 ToFloats(__m512i v) { return _mm512_cvtepi32_ps(v); }

template <>
inline __m512i FillBytes<__m512i>(int v) {
  return _mm512_set1_epi8(static_cast<char>(v));
}
template <>
inline __m512i FillWords<__m512i>(int v) {
  return _mm512_set1_epi16(static_cast<int16_t>(v));
}
template <>
inline __m512i FillFours<__m512i>(int32_t v) {
  return _mm512_set1_epi32(v);
}
template <>
inline __m512 FillFloats<__m512>(float v) {
  return _mm512_set1_ps(v);
}
template <>
inline __m512i Repeat<__m512i>(__m128i v) {
  return _mm512_broadcast_i32x4(v);
}

inline __m512i DotBytes(__m512i sum, __m512i u, __m512i s) {
  return _mm512_dpbusd_epi32(sum, u, s);
}
inline __m512i DotWords(__m512i sum, __m512i a, __m512i b) {
  return _mm512_dpwssd_epi32(sum, a, b);
}
inline __m512i WholeOfHigh(__m512i high) { return _mm512_slli_epi32(high, kLowBits); }
inline __m512i AddLow(__m512i whole, __m512i low) { return _mm512_add_epi32(whole, low); }

inline void StoreOutputs(float* y, __m512 v, int64_t outputs) {
  StoreOutputs(y, _mm512_castps512_ps256(v), outputs);
  if (outputs <= kPanelOutputs) return;
  StoreOutputs(y + kPanelOutputs, _mm512_extractf32x8_ps(v, 1), outputs - kPanelOutputs);
}

#endif

}  // namespace trivium::kernels::TRIVIUM_SIMD
