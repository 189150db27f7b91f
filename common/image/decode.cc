#include "common/image/decode.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "common/image/codec.h"

namespace trivium::image {
namespace {

// At the worst, a progressive JPEG in CMYK with all of its coefficients (8 bytes a pixel) beside
// the picture (3); or a WebP: its own planes, their RGBA (4), the picture and that rotated.
constexpr int64_t kBytesPerPixel = 16;
// A JPEG's blocks reach up to 31 pixels, of 8 bytes each, past both edges.
constexpr int64_t kBytesPerSide = 2 * 32 * 8;
constexpr int64_t kFixedBytes = int64_t{4} << 20;  // tables, rows in flight

bool StartsWith(std::span<const uint8_t> bytes, size_t at, std::string_view what) {
  return bytes.size() >= at + what.size() &&
         std::memcmp(bytes.data() + at, what.data(), what.size()) == 0;
}

absl::StatusOr<Header> ReadHeader(std::span<const uint8_t> bytes, Format format) {
  switch (format) {
    case Format::kJpeg:
      return ReadJpegHeader(bytes);
    case Format::kPng:
      return ReadPngHeader(bytes);
    case Format::kWebp:
      return ReadWebpHeader(bytes);
  }
  return InvalidArgument("no such format");
}

absl::StatusOr<Image> DecodeFormat(std::span<const uint8_t> bytes, Format format,
                                   const Header& header, const DecodeLimits& limits) {
  switch (format) {
    case Format::kJpeg:
      return DecodeJpeg(bytes, header, limits);
    case Format::kPng:
      return DecodePng(bytes, header);
    case Format::kWebp:
      return DecodeWebp(bytes, header);
  }
  return InvalidArgument("no such format");
}

absl::StatusOr<Header> CheckedHeader(std::span<const uint8_t> bytes, Format format,
                                     const DecodeLimits& limits) {
  ASSIGN_OR_RETURN(const Header header, ReadHeader(bytes, format));
  RETURN_IF_ERROR(CheckHeader(header, format, limits));
  return header;
}

absl::StatusOr<Format> CheckedFormat(std::span<const uint8_t> bytes, const DecodeLimits& limits) {
  if (bytes.size() > static_cast<size_t>(limits.bytes)) {
    return InvalidArgument("a picture of {} bytes; the limit is {} bytes", bytes.size(),
                           limits.bytes);
  }
  return Sniff(bytes);
}

}  // namespace

std::string_view FormatName(Format format) {
  constexpr std::string_view kNames[] = {"JPEG", "PNG", "WebP"};
  return kNames[static_cast<size_t>(format)];
}

absl::StatusOr<Format> Sniff(std::span<const uint8_t> bytes) {
  if (StartsWith(bytes, 0, "\xff\xd8\xff")) return Format::kJpeg;
  if (StartsWith(bytes, 0, "\x89PNG\r\n\x1a\n")) return Format::kPng;
  if (StartsWith(bytes, 0, "RIFF") && StartsWith(bytes, 8, "WEBP")) return Format::kWebp;
  return InvalidArgument("not a picture in JPEG, PNG or WebP ({} bytes)", bytes.size());
}

absl::Status CheckHeader(const Header& header, Format format, const DecodeLimits& limits) {
  const std::string_view name = FormatName(format);
  if (header.width < 1 || header.height < 1) {
    return InvalidArgument("a {} of {} x {} pixels", name, header.width, header.height);
  }
  if (std::max(header.width, header.height) > limits.side) {
    return InvalidArgument("a {} of {} x {} pixels; the limit is {} pixels a side", name,
                           header.width, header.height, limits.side);
  }
  if (int64_t{header.width} * header.height > limits.pixels) {
    return InvalidArgument("a {} of {} x {} pixels; the limit is {} pixels in all", name,
                           header.width, header.height, limits.pixels);
  }
  if (header.frames > limits.frames) {
    return InvalidArgument("an animated {} of {} frames; the limit is {} frames", name,
                           header.frames, limits.frames);
  }
  return absl::OkStatus();
}

absl::StatusOr<ImageInfo> Inspect(std::span<const uint8_t> bytes, const DecodeLimits& limits) {
  ASSIGN_OR_RETURN(const Format format, CheckedFormat(bytes, limits));
  ASSIGN_OR_RETURN(const Header header, CheckedHeader(bytes, format, limits));
  ImageInfo info{format, header.width, header.height, header.frames, header.orientation};
  if (info.orientation > 4) std::swap(info.width, info.height);
  return info;
}

absl::StatusOr<Image> Decode(std::span<const uint8_t> bytes, const DecodeLimits& limits) {
  ASSIGN_OR_RETURN(const Format format, CheckedFormat(bytes, limits));
  ASSIGN_OR_RETURN(const Header header, CheckedHeader(bytes, format, limits));
  ASSIGN_OR_RETURN(Image image, DecodeFormat(bytes, format, header, limits));
  return Oriented(std::move(image), header.orientation);
}

int64_t DecodeMemoryBytes(const DecodeLimits& limits) {
  // Remarks in the file are copied before they are read.
  return limits.bytes + limits.pixels * kBytesPerPixel + limits.side * kBytesPerSide + kFixedBytes;
}

}  // namespace trivium::image
