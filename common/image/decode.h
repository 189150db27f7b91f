// JPEG, PNG and WebP to RGB, out of bytes that nobody vouches for.
//
// What a file is, its first bytes say, never its name. Every limit is checked against the file's
// header before anything is decoded; an error says which limit it was. What stands on transparent
// ground is blended over white. A rotation that EXIF asks for is applied. CMYK becomes RGB without
// a profile; of 16-bit samples the upper byte counts; embedded profiles and gamma are ignored, as
// the preprocessors of vision models do. A damaged or truncated file is an error, never a picture
// with a grey rest. Thread-safety: stateless; safe from any thread. Memory: DecodeMemoryBytes.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "common/base/status.h"
#include "common/image/image.h"

namespace trivium::image {

struct DecodeLimits {
  int64_t bytes = int64_t{20} << 20;   // of the file
  int32_t side = 16384;                // of the longer edge, in pixels; at most 65500
  int64_t pixels = int64_t{36} << 20;  // width * height
  // An animation has more than one frame. Of one that is within the limit, the first frame is
  // taken; by default every animation is refused.
  int32_t frames = 1;
  // Of a JPEG: progressive ones refine the whole picture in every scan, for a few bytes each.
  int32_t scans = 64;
};

// What a picture's header says.
struct ImageInfo {
  Format format = Format::kJpeg;
  int32_t width = 0, height = 0;  // as it is to be seen: after the rotation
  int32_t frames = 1;
  int32_t orientation = 1;  // 1 … 8 as EXIF numbers them
};

// The format by the first bytes. INVALID_ARGUMENT: none of the three.
absl::StatusOr<Format> Sniff(std::span<const uint8_t> bytes);

// Reads the header only, and checks it: in microseconds, without decoding. INVALID_ARGUMENT for
// what is no picture, is damaged, or breaks a limit, which the message names.
absl::StatusOr<ImageInfo> Inspect(std::span<const uint8_t> bytes, const DecodeLimits& limits = {});

// Errors as for Inspect, and INVALID_ARGUMENT where the picture itself is damaged or truncated.
absl::StatusOr<Image> Decode(std::span<const uint8_t> bytes, const DecodeLimits& limits = {});

// The most memory that Decode takes beside the file's own bytes, whatever is in the file.
int64_t DecodeMemoryBytes(const DecodeLimits& limits);

}  // namespace trivium::image
