#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <random>

#include "common/model/gguf.h"
#include "common/model/testing/gguf_writer.h"

namespace trivium::model {
namespace {

using kernels::WeightType;
using ::testing::HasSubstr;

constexpr int kParts = 3;

std::string Uint16(uint16_t value) {
  return {static_cast<char>(value & 0xFF), static_cast<char>(value >> 8)};
}

void AddPlace(GgufWriter& writer, uint16_t number, uint16_t count, int32_t tensors) {
  writer.AddRaw("split.no", 2, Uint16(number));
  writer.AddRaw("split.count", 2, Uint16(count));
  std::string bytes(sizeof(tensors), '\0');
  std::memcpy(bytes.data(), &tensors, sizeof(tensors));
  writer.AddRaw("split.tensors.count", 5, bytes);
}

class GgufSplit : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "gguf_split_test_" + std::to_string(getpid());
    std::filesystem::create_directories(folder_);
    for (int i = 0; i < kParts; ++i) ASSERT_TRUE(Part(i).WriteFile(Path(i)).ok());
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Path(int number, int count = kParts) const {
    return fmt::format("{}/tiny-{:05}-of-{:05}.gguf", folder_, number + 1, count);
  }

  // Two tensors a part; the metadata of the model is in the first one.
  static GgufWriter Part(int number) {
    GgufWriter writer;
    AddPlace(writer, static_cast<uint16_t>(number), kParts, 2 * kParts);
    if (number == 0) writer.AddString("a.string", "hello");
    for (int i = 0; i < 2; ++i) {
      writer.AddTensor(fmt::format("t.{}.{}", number, i), {8}, WeightType::kF32,
                       std::string(32, static_cast<char>('a' + 2 * number + i)));
    }
    return writer;
  }

  void ExpectError(const std::string& path, absl::StatusCode code, const std::string& text) const {
    auto file = GgufFile::Open(path);
    ASSERT_FALSE(file.ok()) << text;
    EXPECT_EQ(file.status().code(), code) << Message(file.status());
    EXPECT_THAT(Message(file.status()), HasSubstr(text));
  }

  std::string folder_;
};

TEST_F(GgufSplit, OpensAllPartsByTheNameOfAny) {
  for (int named = 0; named < kParts; ++named) {
    auto opened = GgufFile::Open(Path(named));
    ASSERT_TRUE(opened.ok()) << Message(opened.status());
    const GgufFile& file = **opened;
    EXPECT_EQ(file.String("a.string").value(), "hello");
    EXPECT_EQ(file.parts().size(), 3u);
    ASSERT_EQ(file.tensors().size(), 6u);
    for (int i = 0; i < 2 * kParts; ++i) {
      const GgufTensor tensor = file.Tensor(fmt::format("t.{}.{}", i / 2, i % 2)).value();
      EXPECT_EQ(static_cast<const char*>(tensor.data)[31], 'a' + i);
    }
  }
}

TEST_F(GgufSplit, NamesAMissingPart) {
  std::filesystem::remove(Path(1));
  for (int named : {0, 2}) {
    ExpectError(Path(named), absl::StatusCode::kNotFound, Path(1));
    ExpectError(Path(named), absl::StatusCode::kNotFound, "part 2 of 3");
  }
}

TEST_F(GgufSplit, NamesABrokenPart) {
  std::filesystem::resize_file(Path(2), std::filesystem::file_size(Path(2)) - 1);
  ExpectError(Path(0), absl::StatusCode::kInvalidArgument, Path(2));
}

TEST_F(GgufSplit, RefusesPartsThatDoNotBelongTogether) {
  const auto invalid = absl::StatusCode::kInvalidArgument;
  std::filesystem::copy_file(Path(0), Path(1), std::filesystem::copy_options::overwrite_existing);
  ExpectError(Path(0), invalid, "its name must end in -00001-of-00003.gguf");
  const auto replace = [&](uint16_t number, uint16_t count, int32_t tensors, int named) {
    GgufWriter writer;
    AddPlace(writer, number, count, tensors);
    writer.AddTensor("x", {8}, WeightType::kF32, std::string(32, 'x'));
    ASSERT_TRUE(writer.WriteFile(Path(named)).ok());
  };
  replace(1, kParts, 6, 1);
  ExpectError(Path(0), invalid, "hold 5 tensors, not 6");
  replace(1, kParts, 7, 1);
  ExpectError(Path(0), invalid, "of a model of 7 tensors");
  GgufWriter duplicate;
  AddPlace(duplicate, 1, kParts, 6);
  for (const char* name : {"t.0.1", "y"}) {
    duplicate.AddTensor(name, {8}, WeightType::kF32, std::string(32, 'x'));
  }
  ASSERT_TRUE(duplicate.WriteFile(Path(1)).ok());
  ExpectError(Path(0), invalid, "the tensor t.0.1 comes twice");
}

TEST_F(GgufSplit, RefusesImpossiblePlaces) {
  const auto invalid = absl::StatusCode::kInvalidArgument;
  const auto write = [&](uint16_t number, uint16_t count, const std::string& path) {
    GgufWriter writer;
    AddPlace(writer, number, count, 1);
    ASSERT_TRUE(writer.WriteFile(path).ok());
  };
  const std::string path = folder_ + "/odd.gguf";
  write(0, 65535, path);
  ExpectError(path, invalid, "split.count is 65535");
  write(2, 2, path);
  ExpectError(path, invalid, "split.no is 2 of 2");
  write(0, 2, path);
  ExpectError(path, invalid, "must end in -00001-of-00002.gguf");
  write(0, 2, folder_ + "/..-00001-of-00002.gguf");
  ExpectError(folder_ + "/..-00001-of-00002.gguf", absl::StatusCode::kNotFound,
              folder_ + "/..-00002-of-00002.gguf");
  for (uint16_t count : {0, 1}) {
    write(0, count, path);
    EXPECT_TRUE(GgufFile::Open(path).ok()) << "one part needs no name";
  }
  GgufWriter lacking;
  lacking.AddRaw("split.count", 2, Uint16(2));
  ASSERT_TRUE(lacking.WriteFile(path).ok());
  ExpectError(path, absl::StatusCode::kNotFound, "split.no");
}

TEST_F(GgufSplit, SurvivesRandomMutations) {
  const uint64_t seed = std::random_device()();
  std::printf("seed %lu\n", seed);
  std::mt19937_64 random(seed);
  std::string parts[kParts];
  for (int i = 0; i < kParts; ++i) parts[i] = Part(i).Serialize();
  int accepted = 0;
  for (int i = 0; i < 3000; ++i) {
    const auto which = static_cast<int>(random() % kParts);
    std::string bytes = parts[which];
    for (uint64_t edits = 1 + random() % 2; edits > 0; --edits) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    std::ofstream(Path(which), std::ios::binary) << bytes;
    auto file = GgufFile::Open(Path(static_cast<int>(random() % kParts)));
    std::ofstream(Path(which), std::ios::binary) << parts[which];
    if (!file.ok()) continue;
    ++accepted;
    // A file whose key is spoilt is a whole one.
    EXPECT_EQ((*file)->tensors().size(), (*file)->parts().size() == 1 ? 2u : 6u);
    for (const GgufTensor& tensor : (*file)->tensors()) {
      EXPECT_EQ((*file)->Tensor(tensor.name)->data, tensor.data);
    }
  }
  EXPECT_GT(accepted, 0);
}

}  // namespace
}  // namespace trivium::model
