// The decoders against Pillow's own results, and what they refuse. The pictures and their recipe:
// testdata/make_pictures.py.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <random>

#include "common/image/codec.h"
#include "common/image/decode.h"

namespace trivium::image {
namespace {

using testing::HasSubstr;

struct Sample {
  std::vector<uint8_t> file;
  bool good = false;
  int tolerance = 0;
  Image expected;     // where good
  std::string error;  // else: what the message must hold
};

class SampleReader {
 public:
  explicit SampleReader(std::string bytes) : bytes_(std::move(bytes)) {}
  template <typename T>
  T Number() {
    T value;
    TRIVIUM_CHECK(bytes_.size() - at_ >= sizeof(T), "pictures.bin ends early");
    std::memcpy(&value, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  std::string Bytes(size_t size) {
    TRIVIUM_CHECK(bytes_.size() - at_ >= size, "pictures.bin ends early");
    at_ += size;
    return bytes_.substr(at_ - size, size);
  }
  std::string Text() { return Bytes(Number<uint32_t>()); }

 private:
  std::string bytes_;
  size_t at_ = 0;
};

std::vector<uint8_t> BytesOf(const std::string& text) { return {text.begin(), text.end()}; }

std::map<std::string, Sample> LoadSamples() {
  std::ifstream file(TRIVIUM_IMAGE_TESTDATA "/pictures.bin", std::ios::binary);
  SampleReader reader(std::string((std::istreambuf_iterator<char>(file)), {}));
  TRIVIUM_CHECK(reader.Bytes(4) == "TRVI" && reader.Number<uint32_t>() == 1, "not pictures.bin");
  std::map<std::string, Sample> samples;
  for (auto count = reader.Number<uint32_t>(); count > 0; --count) {
    Sample& sample = samples[reader.Text()];
    sample.file = BytesOf(reader.Text());
    sample.good = reader.Number<uint8_t>() != 0;
    if (!sample.good) {
      sample.error = reader.Text();
      continue;
    }
    sample.tolerance = reader.Number<uint8_t>();
    sample.expected.width = reader.Number<int32_t>();
    sample.expected.height = reader.Number<int32_t>();
    sample.expected.rgb = BytesOf(
        reader.Bytes(static_cast<size_t>(sample.expected.width) * sample.expected.height * 3));
  }
  return samples;
}

const std::map<std::string, Sample>& Samples() {
  static const auto* samples = new std::map<std::string, Sample>(LoadSamples());
  return *samples;
}

int MaxDifference(const Image& a, const Image& b) {
  int largest = 0;
  for (size_t i = 0; i < a.rgb.size(); ++i) {
    largest = std::max(largest, std::abs(int{a.rgb[i]} - int{b.rgb[i]}));
  }
  return largest;
}

std::string ErrorOf(const std::vector<uint8_t>& file, const DecodeLimits& limits = {}) {
  const absl::StatusOr<Image> image = Decode(file, limits);
  if (image.ok()) return "";
  EXPECT_EQ(image.status().code(), absl::StatusCode::kInvalidArgument);
  return Message(image.status());
}

TEST(DecodeTest, GivesWhatPillowGives) {
  int seen = 0;
  for (const auto& [name, sample] : Samples()) {
    if (!sample.good) continue;
    SCOPED_TRACE(name);
    const absl::StatusOr<Image> image = Decode(sample.file);
    ASSERT_TRUE(image.ok()) << image.status();
    ASSERT_EQ(image->width, sample.expected.width);
    ASSERT_EQ(image->height, sample.expected.height);
    ASSERT_EQ(image->rgb.size(), sample.expected.rgb.size());
    EXPECT_LE(MaxDifference(*image, sample.expected), sample.tolerance);
    const absl::StatusOr<ImageInfo> info = Inspect(sample.file);
    ASSERT_TRUE(info.ok()) << info.status();
    EXPECT_EQ(info->width, image->width);
    EXPECT_EQ(info->height, image->height);
    ++seen;
  }
  EXPECT_GE(seen, 30);
}

TEST(DecodeTest, RefusesWithAReason) {
  for (const auto& [name, sample] : Samples()) {
    if (sample.good) continue;
    SCOPED_TRACE(name);
    const std::string error = ErrorOf(sample.file);
    EXPECT_THAT(error, HasSubstr(sample.error));
    EXPECT_GT(error.size(), 5u);
  }
}

TEST(DecodeTest, EveryPrefixIsRefused) {
  for (const char* name : {"jpeg_progressive", "png_interlaced", "png_palette_alpha", "webp_lossy",
                           "webp_lossless_alpha", "jpeg_turned_6"}) {
    const std::vector<uint8_t>& file = Samples().at(name).file;
    for (size_t size = 0; size < file.size(); size += 1 + size / 40) {
      // A copy of its exact size, so that a sanitizer sees a read behind it.
      EXPECT_NE(ErrorOf({file.begin(), file.begin() + static_cast<int64_t>(size)}), "")
          << name << " cut to " << size << " bytes";
    }
  }
}

TEST(DecodeTest, DamageIsAnErrorOrAPictureOfTheSameSize) {
  std::mt19937 random(20261130);
  std::printf("seed 20261130\n");
  for (const auto& [name, sample] : Samples()) {
    if (!sample.good) continue;
    for (int round = 0; round < 30; ++round) {
      std::vector<uint8_t> file = sample.file;
      for (int flips = 1 + static_cast<int>(random() % 4); flips > 0; --flips) {
        file[random() % file.size()] ^= static_cast<uint8_t>(1u << random() % 8);
      }
      const absl::StatusOr<ImageInfo> info = Inspect(file, {.pixels = 1 << 16});
      const absl::StatusOr<Image> image = Decode(file, {.pixels = 1 << 16});
      if (!image.ok()) continue;
      ASSERT_TRUE(info.ok()) << name;
      EXPECT_EQ(info->width, image->width);
      EXPECT_EQ(image->rgb.size(), size_t{3} * static_cast<size_t>(info->width) * info->height);
    }
  }
}

TEST(DecodeTest, EachLimitIsNamedAndExact) {
  const std::vector<uint8_t>& file = Samples().at("png_rgb").file;
  const auto bytes = static_cast<int64_t>(file.size());
  EXPECT_EQ(ErrorOf(file, {.bytes = bytes, .side = 37, .pixels = 37 * 22}), "");
  EXPECT_THAT(ErrorOf(file, {.bytes = bytes - 1}), HasSubstr("bytes"));
  EXPECT_THAT(ErrorOf(file, {.side = 36}), HasSubstr("limit is 36 pixels a side"));
  EXPECT_THAT(ErrorOf(file, {.pixels = 37 * 22 - 1}), HasSubstr("limit is 813 pixels in all"));
  EXPECT_THAT(ErrorOf(Samples().at("jpeg_64_scans").file, {.scans = 63}),
              HasSubstr("limit is 63 scans"));
}

TEST(DecodeTest, AnAnimationWithinTheLimitGivesItsFirstFrame) {
  for (const char* kind : {"png", "webp"}) {
    const std::vector<uint8_t>& file = Samples().at(std::string(kind) + "_animated").file;
    const absl::StatusOr<Image> image = Decode(file, {.frames = 3});
    ASSERT_TRUE(image.ok()) << image.status();
    EXPECT_LE(MaxDifference(*image, Samples().at("png_rgb").expected), 0) << kind;
    EXPECT_THAT(ErrorOf(file, {.frames = 2}), HasSubstr("limit is 2 frames"));
    EXPECT_EQ(Inspect(file, {.frames = 3})->frames, 3);
  }
}

TEST(DecodeTest, ContentDecidesWhatAFileIs) {
  EXPECT_EQ(Sniff(Samples().at("jpeg_grey").file).value(), Format::kJpeg);
  EXPECT_EQ(Sniff(Samples().at("png_grey").file).value(), Format::kPng);
  EXPECT_EQ(Sniff(Samples().at("webp_lossy").file).value(), Format::kWebp);
}

TEST(OrientedTest, EveryOrientationUndoesItsInverse) {
  Image image{3, 2, std::vector<uint8_t>(18)};
  for (size_t i = 0; i < image.rgb.size(); ++i) image.rgb[i] = static_cast<uint8_t>(i);
  constexpr int kInverse[] = {0, 1, 2, 3, 4, 5, 8, 7, 6};
  for (int orientation = 1; orientation <= 8; ++orientation) {
    const Image turned = Oriented(image, orientation);
    EXPECT_EQ(turned.width, orientation > 4 ? 2 : 3);
    EXPECT_EQ(Oriented(turned, kInverse[orientation]).rgb, image.rgb) << orientation;
  }
}

}  // namespace
}  // namespace trivium::image
