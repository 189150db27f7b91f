// Lossless packing of 16-bit floats: their upper bytes and their lower bytes as two planes, each
// through zstd at its fastest level. Signs, exponents and the first bits of the mantissas repeat
// themselves, the rest hardly does; mixed, neither would be seen. A checksum comes with it.
//
// Thread-safety: all functions, any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace trivium::kv {

// Of an even number of bytes. Empty when libzstd fails.
std::vector<uint8_t> PackPlanes(std::span<const uint8_t> words);
// The reverse. False, and `words` is as it was, for anything that PackPlanes did not make of as
// many bytes.
bool UnpackPlanes(std::span<const uint8_t> packed, std::span<uint8_t> words);

}  // namespace trivium::kv
