// What decoding takes at the most, measured on the pictures that take most for their size. In a
// process of its own, whose peak is what is measured.
#include <gtest/gtest.h>
#include <jpeglib.h>
#include <malloc.h>
#include <webp/encode.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "common/image/decode.h"

namespace trivium::image {
namespace {

constexpr int kSide = 1024;
constexpr DecodeLimits kLimits{.bytes = 1 << 20, .side = kSide, .pixels = kSide * kSide};

// Four inks at full resolution, in several scans: all coefficients are kept until the last one.
std::vector<uint8_t> ProgressiveInk() {
  jpeg_compress_struct info = {};
  jpeg_error_mgr errors;
  info.err = jpeg_std_error(&errors);
  jpeg_create_compress(&info);
  uint8_t* data = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&info, &data, &size);
  info.image_width = info.image_height = kSide;
  info.input_components = 4;
  info.in_color_space = JCS_CMYK;
  jpeg_set_defaults(&info);
  jpeg_simple_progression(&info);
  jpeg_start_compress(&info, TRUE);
  const uint8_t turned[] = {'E',  'x', 'i', 'f', 0, 0, 'I', 'I', 42, 0, 8, 0, 0, 0, 1, 0,
                            0x12, 1,   3,   0,   1, 0, 0,   0,   6,  0, 0, 0, 0, 0, 0, 0};
  jpeg_write_marker(&info, JPEG_APP0 + 1, turned, sizeof(turned));
  std::vector<uint8_t> row(size_t{4} * kSide, 77);
  uint8_t* rows[] = {row.data()};
  while (info.next_scanline < info.image_height) jpeg_write_scanlines(&info, rows, 1);
  jpeg_finish_compress(&info);
  jpeg_destroy_compress(&info);
  std::vector<uint8_t> bytes(data, data + size);
  std::free(data);
  return bytes;
}

std::vector<uint8_t> WebpWithAlpha(bool lossless) {
  const std::vector<uint8_t> rgba(size_t{4} * kSide * kSide, 99);
  uint8_t* data = nullptr;
  const size_t size = lossless ? WebPEncodeLosslessRGBA(rgba.data(), kSide, kSide, 4 * kSide, &data)
                               : WebPEncodeRGBA(rgba.data(), kSide, kSide, 4 * kSide, 50, &data);
  std::vector<uint8_t> bytes(data, data + size);
  WebPFree(data);
  return bytes;
}

int64_t StatusBytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(key, 0) == 0) return std::atoll(line.c_str() + key.size()) * 1024;
  }
  return 0;
}

void ExpectWithinBound(const std::vector<uint8_t>& file) {
  // What was freed leaves the process, now and while it decodes.
  mallopt(M_MMAP_THRESHOLD, 1 << 16);
  malloc_trim(0);
  std::ofstream("/proc/self/clear_refs") << "5";  // the peak starts anew
  const int64_t before = StatusBytes("VmRSS:");
  const absl::StatusOr<Image> image = Decode(file, kLimits);
  ASSERT_TRUE(image.ok()) << image.status();
  const int64_t taken = StatusBytes("VmHWM:") - before;
  std::printf("%.1f bytes a pixel\n", static_cast<double>(taken) / kLimits.pixels);
  EXPECT_LE(taken, DecodeMemoryBytes(kLimits));
  EXPECT_GE(taken, kLimits.pixels * 3) << "measures nothing";
}

TEST(MemoryTest, ProgressiveJpeg) { ExpectWithinBound(ProgressiveInk()); }
TEST(MemoryTest, LossyWebp) { ExpectWithinBound(WebpWithAlpha(false)); }
TEST(MemoryTest, LosslessWebp) { ExpectWithinBound(WebpWithAlpha(true)); }

}  // namespace
}  // namespace trivium::image
