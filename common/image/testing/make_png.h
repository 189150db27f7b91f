// For tests: a picture as the bytes of a PNG file. Stateless; safe from any thread.
#pragma once

#include <string>

#include "common/image/image.h"

namespace trivium::image {

std::string MakePng(const Image& image);
// Random pixels; the same seed gives the same ones.
Image NoiseImage(int32_t width, int32_t height, uint32_t seed);

}  // namespace trivium::image
