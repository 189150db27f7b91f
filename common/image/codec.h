// What the decoders of the three formats share. Internal to this folder; stateless.
#pragma once

#include <cstdint>
#include <span>

#include "common/base/status.h"
#include "common/image/decode.h"
#include "common/image/image.h"

namespace trivium::image {

// Width and height as they lie in the file.
struct Header {
  int32_t width = 0, height = 0;
  int32_t frames = 1;
  int32_t orientation = 1;
};

// Each reads no more than headers, and neither trusts nor limits what they say.
absl::StatusOr<Header> ReadJpegHeader(std::span<const uint8_t> bytes);
absl::StatusOr<Header> ReadPngHeader(std::span<const uint8_t> bytes);
absl::StatusOr<Header> ReadWebpHeader(std::span<const uint8_t> bytes);

// INVALID_ARGUMENT names the limit.
absl::Status CheckHeader(const Header& header, Format format, const DecodeLimits& limits);

// Only for files whose header was read and checked. The picture as it lies in the file, unrotated.
absl::StatusOr<Image> DecodeJpeg(std::span<const uint8_t> bytes, const Header& header,
                                 const DecodeLimits& limits);
absl::StatusOr<Image> DecodePng(std::span<const uint8_t> bytes, const Header& header);
absl::StatusOr<Image> DecodeWebp(std::span<const uint8_t> bytes, const Header& header);

// The orientation (1 … 8) in a block of EXIF, that begins with a TIFF header; 1 where it has none
// or is damaged: it is a remark on the picture, no part of it.
int32_t ExifOrientation(std::span<const uint8_t> tiff);

// The picture as it is to be seen.
Image Oriented(Image image, int32_t orientation);

// `count` pixels of RGBA blended over white.
void BlendOverWhite(const uint8_t* rgba, int64_t count, uint8_t* rgb);

}  // namespace trivium::image
