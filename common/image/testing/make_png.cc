#include "common/image/testing/make_png.h"

#include <png.h>

#include <random>

#include "common/base/status.h"

namespace trivium::image {

std::string MakePng(const Image& image) {
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  png.width = static_cast<png_uint_32>(image.width);
  png.height = static_cast<png_uint_32>(image.height);
  png.format = PNG_FORMAT_RGB;
  png_alloc_size_t bytes = PNG_IMAGE_PNG_SIZE_MAX(png);
  std::string file(bytes, '\0');
  const int written =
      png_image_write_to_memory(&png, file.data(), &bytes, 0, image.rgb.data(), 0, nullptr);
  TRIVIUM_CHECK(written != 0, "libpng: {}", png.message);
  file.resize(bytes);
  return file;
}

Image NoiseImage(int32_t width, int32_t height, uint32_t seed) {
  std::mt19937 random(seed);
  Image image{
      width, height,
      std::vector<uint8_t>(size_t{3} * static_cast<size_t>(width) * static_cast<size_t>(height))};
  for (uint8_t& value : image.rgb) value = static_cast<uint8_t>(random());
  return image;
}

}  // namespace trivium::image
