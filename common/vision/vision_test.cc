// Towers' files that are wrong, plans, and what an encoder promises of batches. Equality with the
// reference: tests/oracle/vision_oracle_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <random>

#include "common/model/testing/gguf_writer.h"
#include "common/vision/picture_encoder.h"
#include "common/vision/picture_key.h"
#include "common/vision/picture_prompt.h"
#include "common/vision/resample.h"
#include "common/vision/testing/tiny_tower.h"

namespace trivium::vision {
namespace {

using testing::HasSubstr;

std::string PathFor(std::string_view name) {
  return fmt::format("{}vision_test_{}_{}", testing::TempDir(), name, getpid());
}

std::shared_ptr<const Tower> MakeTower(const TinyTowerOptions& options = {}) {
  const std::string path = PathFor("tower");
  TRIVIUM_CHECK(WriteTinyTower(path, options).ok(), "cannot write {}", path);
  auto tower = Tower::Load(path);
  TRIVIUM_CHECK(tower.ok(), "{}", Message(tower.status()));
  std::remove(path.c_str());
  return *std::move(tower);
}

image::Image Noise(int32_t width, int32_t height, uint32_t seed) {
  std::mt19937 random(seed);
  image::Image image{width, height, std::vector<uint8_t>(size_t{3} * width * height)};
  for (uint8_t& value : image.rgb) value = static_cast<uint8_t>(random());
  return image;
}

std::vector<float> Encode(PictureEncoder& encoder, std::span<const image::Image> slices) {
  int32_t tokens = 0;
  for (const image::Image& slice : slices) tokens += encoder.TokensOf(slice);
  std::vector<float> out(static_cast<size_t>(tokens) * encoder.tower().config.out_hidden);
  encoder.Encode(slices, out.data());
  return out;
}

TEST(TowerTest, SaysWhatItIs) {
  const auto tower = MakeTower();
  EXPECT_EQ(tower->config.kind, "idefics3");
  EXPECT_EQ(tower->config.out_hidden, 16);
  EXPECT_EQ(tower->fingerprint.size(), 64u);
  EXPECT_EQ(tower->fingerprint, MakeTower()->fingerprint);
  EXPECT_NE(tower->fingerprint, MakeTower({.seed = 2})->fingerprint);
}

TEST(TowerTest, EveryMissingTensorIsNamed) {
  const std::string path = PathFor("missing");
  for (const std::string& name : TinyTowerTensors({})) {
    if (name.ends_with(".bias") && name.find("ln") == std::string::npos) continue;  // may be absent
    if (name.starts_with("v.post_ln.")) continue;
    ASSERT_TRUE(WriteTinyTower(path, {.without = name}).ok());
    const auto tower = Tower::Load(path);
    ASSERT_FALSE(tower.ok()) << name;
    EXPECT_THAT(Message(tower.status()), HasSubstr(name));
  }
  std::remove(path.c_str());
}

TEST(TowerTest, NumbersThatCannotBeAreRefused) {
  const std::string path = PathFor("numbers");
  const auto error = [&](const TinyTowerOptions& options) {
    TRIVIUM_CHECK(WriteTinyTower(path, options).ok(), "cannot write {}", path);
    const auto tower = Tower::Load(path);
    return tower.ok() ? std::string() : Message(tower.status());
  };
  EXPECT_EQ(error({}), "");
  EXPECT_THAT(error({.heads = 5}), HasSubstr("attention.head_count"));
  EXPECT_THAT(error({.heads = 0}), HasSubstr("attention.head_count"));
  EXPECT_THAT(error({.image = 30}), HasSubstr("image_size"));
  EXPECT_THAT(error({.image = 128, .patch = 1}), HasSubstr("image_size"));
  EXPECT_THAT(error({.kind = "ldpv2"}), HasSubstr("ldpv2"));
  EXPECT_THAT(error({.extra = "v.blk.0.ls1.weight"}), HasSubstr("v.blk.0.ls1.weight"));
  std::remove(path.c_str());
}

TEST(TowerTest, DamagedFilesAreErrors) {
  const std::string path = PathFor("damaged");
  ASSERT_TRUE(WriteTinyTower(path, {}).ok());
  std::ifstream in(path, std::ios::binary);
  const std::string good((std::istreambuf_iterator<char>(in)), {});
  std::mt19937 random(7);
  std::printf("seed 7\n");
  for (int round = 0; round < 300; ++round) {
    std::string bytes = good;
    // The metadata is in front.
    for (int i = 0; i < 3; ++i) bytes[random() % 3000] ^= static_cast<char>(1u << random() % 8);
    std::ofstream(path, std::ios::binary) << bytes;
    (void)Tower::Load(path);
  }
  std::remove(path.c_str());
}

TEST(EncoderTest, ASlicesTokensAreTheSameBitsInAnyCompany) {
  for (const kernels::Isa isa : kernels::SupportedIsas()) {
    PictureEncoder encoder(MakeTower(),
                           kernels::MakeOps({isa, kernels::Numerics::kBatchInvariant, 2}));
    std::vector<image::Image> slices;
    for (uint32_t i = 0; i < 40; ++i) slices.push_back(Noise(32, 32, i));
    const std::vector<float> together = Encode(encoder, slices);  // two passes
    ASSERT_GT(40 * 64, PictureEncoder::kPassRows);
    const size_t each = together.size() / slices.size();
    for (size_t i : {size_t{0}, size_t{7}, size_t{39}}) {
      const std::vector<float> alone = Encode(encoder, std::span(slices).subspan(i, 1));
      ASSERT_EQ(alone.size(), each);
      EXPECT_EQ(std::memcmp(alone.data(), together.data() + i * each, each * sizeof(float)), 0);
    }
  }
}

TEST(PlanTest, HoldsItsBounds) {
  TowerConfig config;
  config.slicing = Slicing::kTiles;
  config.image_size = 512;
  config.patch_size = 16;
  config.merge = 4;
  config.longest_edge = 2048;
  for (const auto& [width, height] : {std::pair{1, 1}, {16384, 1}, {1, 16384}, {5000, 5000}}) {
    const auto plan = PlanPicture(config, width, height);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_LE(plan->slices(), 17);
    EXPECT_EQ(plan->tokens(), plan->slices() * 64);
  }
  config.slicing = Slicing::kCentre;
  EXPECT_FALSE(PlanPicture(config, 65000, 1).ok());
  config.slicing = Slicing::kTiles;
  config.image_size = 4;
  config.patch_size = config.merge = 1;
  EXPECT_THAT(Message(PlanPicture(config, 5000, 5000).status()), HasSubstr("tokens"));
}

TEST(ResampleTest, AFlatPictureStaysFlat) {
  const image::Image flat{50, 31, std::vector<uint8_t>(50 * 31 * 3, 201)};
  for (const Filter filter : {Filter::kBicubic, Filter::kLanczos}) {
    for (const auto& [width, height] : {std::pair{7, 90}, {50, 31}, {1, 1}, {333, 2}}) {
      const image::Image out = Resample(flat, width, height, filter);
      EXPECT_EQ(out.rgb, std::vector<uint8_t>(size_t{3} * width * height, 201));
    }
  }
}

TEST(PictureKeyTest, EveryPartCounts) {
  const image::Image picture = Noise(4, 6, 1), turned{6, 4, picture.rgb};
  EXPECT_NE(PixelDigest(picture), PixelDigest(turned));
  EXPECT_NE(PixelDigest(picture), PixelDigest(Noise(4, 6, 2)));
  const auto tower = MakeTower(), other = MakeTower({.seed = 2});
  const std::string digest = PixelDigest(picture), key = PictureKey(digest, *tower, "fast/avx2");
  EXPECT_EQ(key.size(), 32u);
  EXPECT_EQ(key, PictureKey(digest, *tower, "fast/avx2"));
  EXPECT_NE(key, PictureKey(PixelDigest(turned), *tower, "fast/avx2"));
  EXPECT_NE(key, PictureKey(digest, *other, "fast/avx2"));
  EXPECT_NE(key, PictureKey(digest, *tower, "batch_invariant/avx2"));
}

}  // namespace
}  // namespace trivium::vision
