// What must hold of every picture, whatever its bytes are. Stateless.
#pragma once

#include <cstdint>
#include <span>

#include "common/image/decode.h"

namespace trivium::fuzz {

// Pictures are small here, so that an input takes milliseconds: what larger ones would do beyond
// that is to take longer.
inline constexpr image::DecodeLimits kPictureLimits{
    .bytes = 1 << 16, .side = 4096, .pixels = 1 << 18, .frames = 4, .scans = 16};

// A picture that is decoded is as large as its header said, and within the limits; one whose header
// is refused is not decoded.
inline void CheckPicture(std::span<const uint8_t> bytes, image::Format format) {
  const absl::StatusOr<image::Format> sniffed = image::Sniff(bytes);
  if (!sniffed.ok() || *sniffed != format) return;
  const absl::StatusOr<image::ImageInfo> info = image::Inspect(bytes, kPictureLimits);
  const absl::StatusOr<image::Image> image = image::Decode(bytes, kPictureLimits);
  for (const absl::Status& status : {info.status(), image.status()}) {
    TRIVIUM_CHECK(status.ok() || status.code() == absl::StatusCode::kInvalidArgument, "{}",
                  Message(status));
    TRIVIUM_CHECK(status.message().size() < 400, "a message of {} bytes", status.message().size());
  }
  if (!image.ok()) return;
  TRIVIUM_CHECK(info.ok(), "decoded, but not inspected: {}", Message(info.status()));
  TRIVIUM_CHECK(info->width == image->width && info->height == image->height,
                "{} x {}, not {} x {}", image->width, image->height, info->width, info->height);
  const int64_t pixels = int64_t{image->width} * image->height;
  TRIVIUM_CHECK(pixels >= 1 && pixels <= kPictureLimits.pixels, "{} pixels", pixels);
  TRIVIUM_CHECK(static_cast<int64_t>(image->rgb.size()) == 3 * pixels, "{} bytes",
                image->rgb.size());
}

}  // namespace trivium::fuzz
