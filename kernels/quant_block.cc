#include "kernels/quant_block.h"

#include <cstring>

#include "kernels/check.h"
#include "kernels/uneven_levels.h"

namespace trivium::kernels {
namespace {

uint16_t LoadU16(const uint8_t* bytes) {
  uint16_t value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

// One scale for all, no minimum.
void SetPlain(QuantBlock& out, const uint8_t* d) {
  out.d = LoadU16(d);
  out.dmin = 0;
  std::memset(out.scales, 1, sizeof(out.scales));
  std::memset(out.minima, 0, sizeof(out.minima));
}

// The block of 32 with a scale and an added minimum, which is -1 subtracted.
void SetPlainWithMinimum(QuantBlock& out, const uint8_t* d) {
  SetPlain(out, d);
  out.dmin = LoadU16(d + 2);
  std::memset(out.minima, -1, sizeof(out.minima));
}

// The low nibbles of 16 bytes are the elements 0..15, the high ones 16..31.
void Nibbles16(const uint8_t* bytes, int8_t* out) {
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<int8_t>(bytes[i] & 15);
    out[i + 16] = static_cast<int8_t>(bytes[i] >> 4);
  }
}

// The low nibbles of 32 bytes are the elements 0..31, the high ones 32..63.
void Nibbles32(const uint8_t* bytes, int8_t* out) {
  for (int i = 0; i < 32; ++i) {
    out[i] = static_cast<int8_t>(bytes[i] & 15);
    out[i + 32] = static_cast<int8_t>(bytes[i] >> 4);
  }
}

void Offset(int count, int offset, int8_t* quants) {
  for (int i = 0; i < count; ++i) quants[i] = static_cast<int8_t>(quants[i] + offset);
}

// Nibbles, and a word with the fifth bit of each of 32 elements.
void Quants5(const uint8_t* fifth_bits, const uint8_t* nibbles, int8_t* out) {
  Nibbles16(nibbles, out);
  for (int i = 0; i < 32; ++i) {
    out[i] = static_cast<int8_t>(out[i] | (fifth_bits[i / 8] >> (i % 8) & 1) << 4);
  }
}

// Two bits an element: 32 bytes hold 128 of them, the lowest pairs the elements 0..31 and so on.
void Pairs(const uint8_t* bytes, int8_t* out) {
  for (int i = 0; i < 128; ++i) {
    out[i] = static_cast<int8_t>(bytes[i % 32] >> (i / 32 * 2) & 3);
  }
}

// Eight scales and eight minima of six bits in 12 bytes, as Q4_K and Q5_K have them: the first four
// in bytes 0-3 and 4-7; of the others the low four bits in bytes 8-11, the rest on top of the first
// four.
void SixBitScales(const uint8_t* bytes, QuantBlock& out) {
  for (int i = 0; i < 4; ++i) {
    out.scales[i] = static_cast<int8_t>(bytes[i] & 63);
    out.minima[i] = static_cast<int8_t>(bytes[4 + i] & 63);
    out.scales[4 + i] = static_cast<int8_t>((bytes[8 + i] & 15) | bytes[i] >> 6 << 4);
    out.minima[4 + i] = static_cast<int8_t>(bytes[8 + i] >> 4 | bytes[4 + i] >> 6 << 4);
  }
}

// 16 bytes of scales and minima, 64 of quants, d, dmin.
void UnpackQ2K(const uint8_t* block, QuantBlock& out) {
  out.d = LoadU16(block + 80);
  out.dmin = LoadU16(block + 82);
  for (int g = 0; g < 16; ++g) {
    out.scales[g] = static_cast<int8_t>(block[g] & 15);
    out.minima[g] = static_cast<int8_t>(block[g] >> 4);
  }
  for (int half = 0; half < 2; ++half) Pairs(block + 16 + 32 * half, out.quants + 128 * half);
}

// 32 bytes of third bits (set: no offset of -4), 64 of quants, 12 of scales, d.
void UnpackQ3K(const uint8_t* block, QuantBlock& out) {
  SetPlain(out, block + 108);
  const uint8_t* scales = block + 96;
  for (int g = 0; g < 16; ++g) {
    const int low = scales[g % 8] >> (g / 8 * 4) & 15;
    const int high = scales[8 + g % 4] >> (g / 4 * 2) & 3;
    out.scales[g] = static_cast<int8_t>((low | high << 4) - 32);
  }
  for (int half = 0; half < 2; ++half) Pairs(block + 32 + 32 * half, out.quants + 128 * half);
  for (int i = 0; i < 256; ++i) {
    if ((block[i % 32] >> (i / 32) & 1) == 0) {
      out.quants[i] = static_cast<int8_t>(out.quants[i] - 4);
    }
  }
}

// d, dmin, 12 bytes of scales, 128 of quants.
void UnpackQ4K(const uint8_t* block, QuantBlock& out) {
  out.d = LoadU16(block);
  out.dmin = LoadU16(block + 2);
  SixBitScales(block + 4, out);
  for (int part = 0; part < 4; ++part) Nibbles32(block + 16 + 32 * part, out.quants + 64 * part);
}

// As Q4_K, with 32 bytes of fifth bits before the quants.
void UnpackQ5K(const uint8_t* block, QuantBlock& out) {
  out.d = LoadU16(block);
  out.dmin = LoadU16(block + 2);
  SixBitScales(block + 4, out);
  for (int part = 0; part < 4; ++part) Nibbles32(block + 48 + 32 * part, out.quants + 64 * part);
  for (int i = 0; i < 256; ++i) {
    out.quants[i] = static_cast<int8_t>(out.quants[i] | (block[16 + i % 32] >> (i / 32) & 1) << 4);
  }
}

// 128 bytes of low nibbles, 64 of high pairs, 16 scales, d. Half a block after the other; in each
// the low nibbles of 64 bytes are the elements 0..63, the high ones 64..127.
void UnpackQ6K(const uint8_t* block, QuantBlock& out) {
  SetPlain(out, block + 208);
  std::memcpy(out.scales, block + 192, 16);
  for (int half = 0; half < 2; ++half) {
    int8_t* quants = out.quants + 128 * half;
    int8_t high[128];
    Pairs(block + 128 + 32 * half, high);
    for (int i = 0; i < 128; ++i) {
      const int low = block[64 * half + i % 64] >> (i / 64 * 4) & 15;
      quants[i] = static_cast<int8_t>((low | high[i] << 4) - 32);
    }
  }
}

}  // namespace

int QuantGroup(WeightType type) {
  const bool small =
      type == WeightType::kQ2_K || type == WeightType::kQ3_K || type == WeightType::kQ6_K;
  return small ? 16 : 32;
}

void UnpackBlock(WeightType type, const uint8_t* block, QuantBlock& out) {
  switch (type) {
    case WeightType::kQ4_0:
      SetPlain(out, block);
      Nibbles16(block + 2, out.quants);
      return Offset(32, -8, out.quants);
    case WeightType::kQ4_1:
      SetPlainWithMinimum(out, block);
      return Nibbles16(block + 4, out.quants);
    case WeightType::kQ5_0:
      SetPlain(out, block);
      Quants5(block + 2, block + 6, out.quants);
      return Offset(32, -16, out.quants);
    case WeightType::kQ5_1:
      SetPlainWithMinimum(out, block);
      return Quants5(block + 4, block + 8, out.quants);
    case WeightType::kQ8_0:
      SetPlain(out, block);
      std::memcpy(out.quants, block + 2, 32);
      return;
    case WeightType::kQ2_K:
      return UnpackQ2K(block, out);
    case WeightType::kQ3_K:
      return UnpackQ3K(block, out);
    case WeightType::kQ4_K:
      return UnpackQ4K(block, out);
    case WeightType::kQ5_K:
      return UnpackQ5K(block, out);
    case WeightType::kQ6_K:
      return UnpackQ6K(block, out);
    case WeightType::kIQ4_NL:
      SetPlain(out, block);
      Nibbles16(block + 2, out.quants);
      for (int i = 0; i < 32; ++i) out.quants[i] = kUnevenLevels[out.quants[i]];
      return;
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16:
      break;
  }
  KERNELS_CHECK(false);
}

}  // namespace trivium::kernels
