#include "common/transfer/copy.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include <cstring>

namespace trivium::transfer {
namespace {
constexpr size_t kPiece = 64;
}  // namespace

// In fixed pieces, which the compiler turns into vector moves: for runs of this length the C
// library prefers string instructions, which read memory that is not in cache several times slower.
void CopyRun(std::span<const uint8_t> from, uint8_t* to, std::span<const uint8_t> next) {
  size_t done = 0;
  for (; done + kPiece <= next.size(); done += kPiece) {
    __builtin_prefetch(next.data() + done, 0, 2);
    std::memcpy(to + done, from.data() + done, kPiece);
  }
  for (; done + kPiece <= from.size(); done += kPiece) {
    std::memcpy(to + done, from.data() + done, kPiece);
  }
  std::memcpy(to + done, from.data() + done, from.size() - done);
}

void StreamRun(const uint8_t* from, uint8_t* to, size_t bytes) {
  size_t done = 0;
#ifdef __SSE2__
  if (reinterpret_cast<uintptr_t>(to) % sizeof(__m128i) == 0) {
    for (; done + kPiece <= bytes; done += kPiece) {
      for (size_t i = done; i < done + kPiece; i += sizeof(__m128i)) {
        _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                         _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
      }
    }
  }
#endif
  CopyRun({from + done, bytes - done}, to + done);
}

void EndStream() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

}  // namespace trivium::transfer
