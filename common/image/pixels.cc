// What happens to pixels once they are decoded: turned as EXIF says, and put over white.
#include <cstring>
#include <utility>

#include "common/image/codec.h"

namespace trivium::image {
namespace {

constexpr uint16_t kOrientationTag = 0x0112;
constexpr uint16_t kShort = 3;

// Reads numbers of either byte order. Invariant: nothing past the end is read.
class TiffReader {
 public:
  explicit TiffReader(std::span<const uint8_t> bytes) : bytes_(bytes) {
    if (bytes.size() >= 2) little_ = bytes[0] == 'I' && bytes[1] == 'I';
  }
  bool Has(uint64_t at, uint64_t size) const {
    return at <= bytes_.size() && size <= bytes_.size() - at;
  }
  // What is not there reads as 0.
  uint32_t Number(uint64_t at, int size) const {
    if (!Has(at, static_cast<uint64_t>(size))) return 0;
    uint32_t value = 0;
    for (int i = 0; i < size; ++i) {
      value = value << 8 | bytes_[at + static_cast<uint64_t>(little_ ? size - 1 - i : i)];
    }
    return value;
  }

 private:
  std::span<const uint8_t> bytes_;
  bool little_ = false;
};

// Where the pixel (x, y) of the turned picture lies in the picture of w x h.
int64_t SourceOf(int32_t orientation, int64_t x, int64_t y, int64_t w, int64_t h) {
  switch (orientation) {
    case 2:
      return y * w + (w - 1 - x);
    case 3:
      return (h - 1 - y) * w + (w - 1 - x);
    case 4:
      return (h - 1 - y) * w + x;
    case 5:
      return x * w + y;
    case 6:
      return (h - 1 - x) * w + y;
    case 7:
      return (h - 1 - x) * w + (w - 1 - y);
    case 8:
      return x * w + (w - 1 - y);
    default:
      return y * w + x;
  }
}

}  // namespace

int32_t ExifOrientation(std::span<const uint8_t> tiff) {
  const TiffReader reader(tiff);
  if (reader.Number(2, 2) != 42) return 1;
  const uint64_t directory = reader.Number(4, 4);
  const uint32_t entries = reader.Number(directory, 2);
  for (uint32_t i = 0; i < entries; ++i) {
    const uint64_t entry = directory + 2 + uint64_t{12} * i;
    if (!reader.Has(entry, 12)) return 1;
    if (reader.Number(entry, 2) != kOrientationTag) continue;
    const uint32_t value = reader.Number(entry + 8, 2);
    const bool known = reader.Number(entry + 2, 2) == kShort && value >= 1 && value <= 8;
    return known ? static_cast<int32_t>(value) : 1;
  }
  return 1;
}

Image Oriented(Image image, int32_t orientation) {
  if (orientation <= 1) return image;
  Image turned{image.width, image.height, std::vector<uint8_t>(image.rgb.size())};
  if (orientation > 4) std::swap(turned.width, turned.height);
  uint8_t* out = turned.rgb.data();
  for (int32_t y = 0; y < turned.height; ++y) {
    for (int32_t x = 0; x < turned.width; ++x, out += 3) {
      std::memcpy(out, &image.rgb[3 * SourceOf(orientation, x, y, image.width, image.height)], 3);
    }
  }
  return turned;
}

void BlendOverWhite(const uint8_t* rgba, int64_t count, uint8_t* rgb) {
  for (int64_t i = 0; i < count; ++i, rgba += 4, rgb += 3) {
    const int alpha = rgba[3];
    for (int c = 0; c < 3; ++c) {
      rgb[c] = static_cast<uint8_t>((rgba[c] * alpha + 255 * (255 - alpha) + 127) / 255);
    }
  }
}

}  // namespace trivium::image
