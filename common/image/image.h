// A decoded picture, and the formats that pictures come in. Plain data.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace trivium::image {

// Invariant: width and height are at least 1, and rgb has 3 * width * height bytes.
struct Image {
  int32_t width = 0, height = 0;
  std::vector<uint8_t>
      rgb;  // [height, width, 3], sRGB as far as the file says so: no colour profile
};

enum class Format : uint8_t { kJpeg, kPng, kWebp };

std::string_view FormatName(Format format);  // "JPEG"

}  // namespace trivium::image
