// Resizing in 8 bits a channel, bit for bit as Pillow does it: a separable filter, stretched by the
// factor of reduction, with coefficients of 22 fractional bits; columns first, rounded to 8 bits,
// then rows. Stateless; safe from any thread.
#pragma once

#include <cstdint>

#include "common/image/image.h"

namespace trivium::vision {

enum class Filter : uint8_t { kBicubic, kLanczos };

// width and height at least 1; a picture of that size already is returned as it is.
image::Image Resample(const image::Image& image, int32_t width, int32_t height, Filter filter);

}  // namespace trivium::vision
