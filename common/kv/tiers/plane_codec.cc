#include "common/kv/tiers/plane_codec.h"

#include <zstd.h>

#include <memory>

#include "common/base/status.h"

namespace trivium::kv {
namespace {

constexpr int kLevel = 1;

// Both are costly to make and belong to one thread.
ZSTD_CCtx* Compressor() {
  thread_local const std::unique_ptr<ZSTD_CCtx, decltype(&ZSTD_freeCCtx)> context(ZSTD_createCCtx(),
                                                                                  ZSTD_freeCCtx);
  return context.get();
}
ZSTD_DCtx* Decompressor() {
  thread_local const std::unique_ptr<ZSTD_DCtx, decltype(&ZSTD_freeDCtx)> context(ZSTD_createDCtx(),
                                                                                  ZSTD_freeDCtx);
  return context.get();
}

// Appends a frame. False when libzstd fails.
bool AppendFrame(std::span<const uint8_t> plane, std::vector<uint8_t>* packed) {
  ZSTD_CCtx* const context = Compressor();
  if (context == nullptr) return false;
  ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, kLevel);
  ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
  const size_t begin = packed->size(), bound = ZSTD_compressBound(plane.size());
  packed->resize(begin + bound);
  const size_t size =
      ZSTD_compress2(context, packed->data() + begin, bound, plane.data(), plane.size());
  if (ZSTD_isError(size)) return false;
  packed->resize(begin + size);
  return true;
}

}  // namespace

std::vector<uint8_t> PackPlanes(std::span<const uint8_t> words) {
  TRIVIUM_CHECK(words.size() % 2 == 0, "{} bytes of 16-bit words", words.size());
  const size_t count = words.size() / 2;
  std::vector<uint8_t> planes(words.size());
  for (size_t i = 0; i < count; ++i) {
    planes[i] = words[2 * i + 1];
    planes[count + i] = words[2 * i];
  }
  // A frame for each, lest they share a table of frequencies; read as one, they give both.
  std::vector<uint8_t> packed;
  const std::span<const uint8_t> both(planes);
  if (AppendFrame(both.first(count), &packed) && AppendFrame(both.subspan(count), &packed)) {
    return packed;
  }
  return {};
}

bool UnpackPlanes(std::span<const uint8_t> packed, std::span<uint8_t> words) {
  const size_t count = words.size() / 2;
  std::vector<uint8_t> planes(words.size());
  ZSTD_DCtx* const context = Decompressor();
  if (context == nullptr) return false;
  const size_t size =
      ZSTD_decompressDCtx(context, planes.data(), planes.size(), packed.data(), packed.size());
  if (size != planes.size()) return false;  // an error is larger
  for (size_t i = 0; i < count; ++i) {
    words[2 * i + 1] = planes[i];
    words[2 * i] = planes[count + i];
  }
  return true;
}

}  // namespace trivium::kv
