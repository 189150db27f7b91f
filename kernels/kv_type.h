// How a KV cache keeps its numbers. No code: the files of cpu/simd/ include it too.
#pragma once

#include <cstdint>

namespace trivium::kernels {

// kInt8: integers within ±127 and, for each token and kv head, a float16 scale, the largest
// magnitude / 127.
enum class KvType : uint8_t { kF16, kBF16, kInt8 };

}  // namespace trivium::kernels
