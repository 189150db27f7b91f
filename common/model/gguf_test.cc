#include "common/model/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "common/model/testing/gguf_writer.h"
#include "common/model/testing/tiny_model.h"

namespace trivium::model {
namespace {

using kernels::WeightType;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string TempPath(const std::string& name) {
  return testing::TempDir() + "gguf_test_" + std::to_string(getpid()) + "_" + name;
}

absl::StatusOr<std::unique_ptr<GgufFile>> OpenBytes(const std::string& bytes) {
  const std::string path = TempPath("file");
  std::ofstream(path, std::ios::binary)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  auto file = GgufFile::Open(path);
  std::filesystem::remove(path);  // the mapping outlives the name
  return file;
}

void ExpectError(const std::string& bytes, absl::StatusCode code, const std::string& text) {
  auto file = OpenBytes(bytes);
  ASSERT_FALSE(file.ok()) << "expected: " << text;
  EXPECT_EQ(file.status().code(), code) << Message(file.status());
  EXPECT_THAT(Message(file.status()), HasSubstr(text));
}

template <typename T>
std::string Bytes(T value) {
  std::string out(sizeof(T), '\0');
  std::memcpy(out.data(), &value, sizeof(T));
  return out;
}

std::string Text(std::string_view text) { return Bytes(uint64_t{text.size()}).append(text); }

// magic, version 3, counts; then whatever is given.
std::string File(uint64_t tensors, uint64_t keys, const std::string& rest) {
  return "GGUF" + Bytes(uint32_t{3}) + Bytes(tensors) + Bytes(keys) + rest;
}

std::string TensorInfo(std::string_view name, const std::vector<int64_t>& shape, uint32_t type,
                       uint64_t offset) {
  std::string out = Text(name) + Bytes(static_cast<uint32_t>(shape.size()));
  for (int64_t dimension : shape) out += Bytes(dimension);
  return out + Bytes(type) + Bytes(offset);
}

// One of each kind of value, and two tensors.
GgufWriter SampleWriter() {
  GgufWriter writer;
  writer.AddUint32("a.uint32", 4000000000u);
  writer.AddInt64("a.int64", -5);
  writer.AddRaw("a.uint8", 0, Bytes(uint8_t{200}));
  writer.AddRaw("a.int16", 3, Bytes(int16_t{-300}));
  writer.AddRaw("a.uint64", 10, Bytes(uint64_t{1} << 63));
  writer.AddFloat("a.float", 0.5f);
  writer.AddRaw("a.double", 12, Bytes(1e300));
  writer.AddBool("a.bool", true);
  writer.AddString("a.string", "hello");
  writer.AddStrings("a.strings", {"x", "", "yz"});
  writer.AddInt32s("a.ints", {1, -2, 3});
  writer.AddRaw("a.nested", 9,
                Bytes(uint32_t{9}) + Bytes(uint64_t{1}) + Bytes(uint32_t{4}) + Bytes(uint64_t{2}) +
                    Bytes(uint32_t{7}) + Bytes(uint32_t{8}));
  std::string floats;
  for (int i = 0; i < 6; ++i) floats += Bytes(static_cast<float>(i));
  writer.AddTensor("t.floats", {3, 2}, WeightType::kF32, floats);
  writer.AddTensor("t.quants", {32}, WeightType::kQ8_0, std::string(34, '\1'));
  return writer;
}

TEST(GgufFile, ReadsEveryKindOfValue) {
  auto opened = OpenBytes(SampleWriter().Serialize());
  ASSERT_TRUE(opened.ok()) << Message(opened.status());
  const GgufFile& file = **opened;
  EXPECT_EQ(file.Int("a.uint32").value(), 4000000000);
  EXPECT_EQ(file.Int("a.int64").value(), -5);
  EXPECT_EQ(file.Int("a.uint8").value(), 200);
  EXPECT_EQ(file.Int("a.int16").value(), -300);
  EXPECT_FALSE(file.Int("a.uint64").ok()) << "2^63 does not fit";
  EXPECT_EQ(file.Float("a.float").value(), 0.5);
  EXPECT_EQ(file.Float("a.double").value(), 1e300);
  EXPECT_TRUE(file.Bool("a.bool").value());
  EXPECT_EQ(file.String("a.string").value(), "hello");
  EXPECT_THAT(file.Strings("a.strings").value(), ElementsAre("x", "", "yz"));
  EXPECT_THAT(file.Ints("a.ints").value(), ElementsAre(1, -2, 3));
  EXPECT_TRUE(file.Has("a.nested"));
  EXPECT_FALSE(file.Has("b"));
}

TEST(GgufFile, NamesMissingAndMistypedKeys) {
  auto file = OpenBytes(SampleWriter().Serialize());
  ASSERT_TRUE(file.ok());
  EXPECT_EQ((*file)->Int("b.missing").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message((*file)->Int("b.missing").status()), HasSubstr("b.missing"));
  EXPECT_EQ((*file)->Int("a.string").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message((*file)->Int("a.string").status()), HasSubstr("a.string holds a string"));
  EXPECT_FALSE((*file)->Strings("a.ints").ok());
  EXPECT_FALSE((*file)->Ints("a.strings").ok());
  EXPECT_FALSE((*file)->Ints("a.nested").ok());
  EXPECT_FALSE((*file)->Bool("a.float").ok());
  EXPECT_EQ((*file)->Tensor("t.none").status().code(), absl::StatusCode::kNotFound);
}

TEST(GgufFile, FindsTensors) {
  auto file = OpenBytes(SampleWriter().Serialize());
  ASSERT_TRUE(file.ok());
  GgufTensor floats = (*file)->Tensor("t.floats").value();
  EXPECT_THAT(floats.shape, ElementsAre(3, 2));
  EXPECT_EQ(floats.bytes, 24);
  EXPECT_EQ(static_cast<const float*>(floats.data)[5], 5.0f);
  GgufTensor quants = (*file)->Tensor("t.quants").value();
  EXPECT_EQ(quants.type, WeightType::kQ8_0);
  EXPECT_EQ(quants.bytes, 34);
  EXPECT_EQ(static_cast<const char*>(quants.data)[33], '\1');
  EXPECT_EQ((*file)->tensors().size(), 2u);
}

// Kilobytes of memory that hold pages of the mapping in which `address` lies; -1 if there is none.
int64_t ResidentKilobytes(const void* address) {
  std::ifstream maps("/proc/self/smaps");
  const auto wanted = reinterpret_cast<uintptr_t>(address);
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    uint64_t begin = 0, end = 0;
    int64_t resident = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
      inside = begin <= wanted && wanted < end;
    } else if (inside && std::sscanf(line.c_str(), "Rss: %ld kB", &resident) == 1) {
      return resident;
    }
  }
  return -1;
}

TEST(GgufFile, DropsPagesAndReadsThemAgain) {
  auto file = OpenBytes(SampleWriter().Serialize());
  ASSERT_TRUE(file.ok());
  const GgufTensor floats = (*file)->Tensor("t.floats").value();
  const auto* values = static_cast<const volatile float*>(floats.data);
  EXPECT_EQ(values[5], 5.0f);
  EXPECT_GT(ResidentKilobytes(floats.data), 0);
  (*file)->DropPages();
  EXPECT_EQ(ResidentKilobytes(floats.data), 0);
  EXPECT_EQ(values[5], 5.0f);
}

TEST(GgufFile, HonoursAlignment) {
  GgufWriter writer = SampleWriter();
  writer.AddUint32("general.alignment", 256);
  auto file = OpenBytes(writer.Serialize(256));
  ASSERT_TRUE(file.ok()) << Message(file.status());
  EXPECT_EQ(static_cast<const float*>((*file)->Tensor("t.floats").value().data)[5], 5.0f);
}

TEST(GgufFile, RefusesBadAlignment) {
  for (uint32_t alignment : {0u, 1u, 4u, 24u, 1u << 17, 0xFFFFFFFFu}) {
    GgufWriter writer = SampleWriter();
    writer.AddUint32("general.alignment", alignment);
    ExpectError(writer.Serialize(), absl::StatusCode::kInvalidArgument, "general.alignment");
  }
}

TEST(GgufFile, RefusesWhatIsNoFile) {
  EXPECT_EQ(GgufFile::Open("/nonexistent/x").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(GgufFile::Open("/tmp").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(GgufFile::Open("/dev/null").status().code(), absl::StatusCode::kInvalidArgument);
  ExpectError("", absl::StatusCode::kInvalidArgument, "empty");
  ExpectError("GGML\3\0\0\0", absl::StatusCode::kInvalidArgument, "magic");
}

TEST(GgufFile, ReadsVersion2AsVersion3) {
  std::string bytes = SampleWriter().Serialize();
  bytes[4] = 2;
  auto file = OpenBytes(bytes);
  ASSERT_TRUE(file.ok()) << Message(file.status());
  EXPECT_EQ((*file)->String("a.string").value(), "hello");
  EXPECT_EQ(static_cast<const float*>((*file)->Tensor("t.floats").value().data)[5], 5.0f);
}

TEST(GgufFile, NamesVersionsItDoesNotRead) {
  const auto expect = [](uint32_t version, const std::string& text) {
    ExpectError("GGUF" + Bytes(version) + Bytes(uint64_t{0}) + Bytes(uint64_t{0}),
                absl::StatusCode::kUnimplemented, text);
  };
  for (uint32_t version : {0u, 1u, 4u, 0xFFFFFFFFu}) {
    expect(version, fmt::format("GGUF version {} is not supported", version));
  }
  expect(0x01000000u, "big-endian file (GGUF version 1)");
  expect(0x03000000u, "big-endian file (GGUF version 3)");
}

TEST(GgufFile, NamesTensorTypesItDoesNotRead) {
  for (uint32_t type : {4u, 5u, 9u, 15u, 16u, 19u, 21u, 31u, 256u, 1000u, 0xFFFFFFFFu}) {
    ExpectError(File(1, 0, TensorInfo("t", {32}, type, 0) + std::string(4096, '\0')),
                absl::StatusCode::kUnimplemented, std::to_string(type));
  }
}

// The numbers and sizes of the format, type by type: {number, elements, bytes} of a block.
TEST(GgufFile, KnowsTheBlocksOfEveryTensorType) {
  constexpr int64_t kBlocks[][3] = {{0, 1, 4},      {1, 1, 2},      {2, 32, 18},    {3, 32, 20},
                                    {6, 32, 22},    {7, 32, 24},    {8, 32, 34},    {10, 256, 84},
                                    {11, 256, 110}, {12, 256, 144}, {13, 256, 176}, {14, 256, 210},
                                    {20, 32, 18},   {30, 1, 2}};
  EXPECT_EQ(std::size(kBlocks), kernels::AllWeightTypes().size());
  for (const auto& [number, elements, bytes] : kBlocks) {
    const auto type = static_cast<uint32_t>(number);
    // Two rows of three blocks at the end of a file that has not a byte more.
    std::string whole = File(1, 0, TensorInfo("t", {3 * elements, 2}, type, 0));
    whole.resize((whole.size() + 31) / 32 * 32 + static_cast<size_t>(6 * bytes));
    auto file = OpenBytes(whole);
    ASSERT_TRUE(file.ok()) << type << ": " << Message(file.status());
    EXPECT_EQ((*file)->Tensor("t")->bytes, 6 * bytes) << type;
    const auto invalid = absl::StatusCode::kInvalidArgument;
    ExpectError(whole.substr(0, whole.size() - 1), invalid, "past the end");
    if (elements == 1) continue;
    for (const int64_t cols : {int64_t{1}, elements - 1, elements + 1, elements / 2}) {
      ExpectError(File(1, 0, TensorInfo("t", {cols}, type, 0) + std::string(4096, '\0')), invalid,
                  "whole blocks");
    }
    const int64_t huge = INT64_MAX / elements * elements;
    ExpectError(File(1, 0, TensorInfo("t", {huge, 1}, type, 0)), invalid,
                elements / bytes > 0 ? "past the end" : "t");
  }
}

TEST(GgufFile, RefusesTruncationAtEveryByte) {
  const std::string whole = SampleWriter().Serialize();
  ASSERT_TRUE(OpenBytes(whole).ok());
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_FALSE(OpenBytes(whole.substr(0, size)).ok()) << "cut at " << size;
  }
}

TEST(GgufFile, RefusesHostileCounts) {
  const std::string padding(256, '\0');
  for (uint64_t count : {uint64_t{1} << 63, ~uint64_t{0}, (uint64_t{1} << 63) - 1,
                         uint64_t{1} << 61, uint64_t{1} << 32, uint64_t{1} << 17}) {
    const auto invalid = absl::StatusCode::kInvalidArgument;
    ExpectError(File(count, 0, padding), invalid, "tensors");
    ExpectError(File(0, count, padding), invalid, "keys");
    ExpectError(File(0, 1, Bytes(count) + padding), invalid, "key");
    ExpectError(File(0, 1, Text("k") + Bytes(uint32_t{8}) + Bytes(count) + padding), invalid, "k");
    ExpectError(File(1, 0, Bytes(count) + padding), invalid, "tensor name");
    for (uint32_t element : {0u, 3u, 4u, 8u, 9u, 12u}) {
      ExpectError(File(0, 1, Text("k") + Bytes(uint32_t{9}) + Bytes(element) + Bytes(count)),
                  invalid, "k");
    }
  }
}

TEST(GgufFile, RefusesImpossibleTensors) {
  const auto invalid = absl::StatusCode::kInvalidArgument;
  const std::string data(4096, '\0');
  auto tensor = [&](const std::vector<int64_t>& shape, uint32_t type, uint64_t offset) {
    return File(1, 0, TensorInfo("t", shape, type, offset) + data);
  };
  ASSERT_TRUE(OpenBytes(tensor({8, 4}, 0, 32)).ok());
  ExpectError(tensor({}, 0, 0), invalid, "0 dimensions");
  ExpectError(tensor({1, 1, 1, 1, 1}, 0, 0), invalid, "5 dimensions");
  ExpectError(tensor({0}, 0, 0), invalid, "dimension 0");
  ExpectError(tensor({4, -1}, 0, 0), invalid, "dimension -1");
  ExpectError(tensor({INT64_MIN, INT64_MIN}, 0, 0), invalid, "dimension");
  ExpectError(tensor({INT64_MAX}, 0, 0), invalid, "too large");
  ExpectError(tensor({int64_t{1} << 31, int64_t{1} << 31, 2}, 0, 0), invalid, "dimension");
  ExpectError(tensor({int64_t{1} << 32, int64_t{1} << 30}, 0, 0), invalid, "too large");
  ExpectError(tensor({int64_t{1} << 40}, 0, 0), invalid, "past the end");
  ExpectError(tensor({33}, 8, 0), invalid, "whole blocks");
  ExpectError(tensor({32}, 0, 31), invalid, "aligned");
  ExpectError(tensor({32}, 0, uint64_t{0} - 32), invalid, "past the end");
  ExpectError(tensor({32}, 0, uint64_t{1} << 63), invalid, "past the end");
  ExpectError(tensor({1024}, 0, 32), invalid, "past the end");
}

TEST(GgufFile, RefusesDuplicatesAndBadValues) {
  const auto invalid = absl::StatusCode::kInvalidArgument;
  const std::string key = Text("k") + Bytes(uint32_t{7});
  ExpectError(File(0, 2, key + '\1' + key + '\0'), invalid, "twice");
  ExpectError(File(0, 1, key + '\2'), invalid, "bool");
  ExpectError(File(0, 1, Text("") + Bytes(uint32_t{7}) + '\1'), invalid, "0 bytes");
  ExpectError(File(0, 1, Text("k") + Bytes(uint32_t{13}) + "xxxxxxxx"), invalid, "type 13");
  const std::string info = TensorInfo("t", {8}, 0, 0);
  ExpectError(File(2, 0, info + info + std::string(256, '\0')), invalid, "twice");
}

TEST(GgufFile, RefusesTensorsThatShareBytes) {
  const auto pair = [](uint64_t first, uint64_t second) {
    return File(2, 0,
                TensorInfo("a", {16}, 0, first) + TensorInfo("b", {16}, 0, second) +
                    std::string(512, '\0'));
  };
  EXPECT_TRUE(OpenBytes(pair(0, 64)).ok());
  EXPECT_TRUE(OpenBytes(pair(64, 0)).ok());
  for (const auto& [first, second] : {std::pair<uint64_t, uint64_t>{0, 0}, {0, 32}, {32, 0}}) {
    ExpectError(pair(first, second), absl::StatusCode::kInvalidArgument, "overlap");
  }
}

TEST(GgufFile, BoundsTheDepthOfArrays) {
  std::string nested = Text("k") + Bytes(uint32_t{9});
  for (int i = 0; i < 100000; ++i) nested += Bytes(uint32_t{9}) + Bytes(uint64_t{1});
  ExpectError(File(0, 1, nested), absl::StatusCode::kInvalidArgument, "nested");
}

// Reads all that a file promises: an accepted file must not lie about its bytes.
void TouchEverything(const GgufFile& file) {
  uint64_t sum = 0;
  for (const GgufTensor& tensor : file.tensors()) {
    const auto* bytes = static_cast<const uint8_t*>(tensor.data);
    const bool inside = std::ranges::any_of(file.parts(), [&](std::span<const uint8_t> part) {
      return bytes >= part.data() && bytes + tensor.bytes <= part.data() + part.size();
    });
    ASSERT_TRUE(inside) << tensor.name;
    for (int64_t i = 0; i < tensor.bytes; ++i) sum += bytes[i];
  }
  for (const char* key : {"a.string", "a.strings", "a.ints", "a.nested", "a.uint32"}) {
    if (auto text = file.String(key); text.ok()) sum += std::hash<std::string_view>()(*text);
    if (auto texts = file.Strings(key); texts.ok()) {
      for (std::string_view text : *texts) sum += std::hash<std::string_view>()(text);
    }
    if (auto numbers = file.Ints(key); numbers.ok()) sum += numbers->size();
  }
  testing::Test::RecordProperty("sum", std::to_string(sum));
}

TEST(GgufFile, SurvivesRandomMutations) {
  const uint64_t seed = std::random_device()();
  std::printf("seed %lu\n", seed);
  std::mt19937_64 random(seed);
  const std::string whole = SampleWriter().Serialize();
  rusage before{};
  getrusage(RUSAGE_SELF, &before);
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = whole;
    for (uint64_t edits = 1 + random() % 3; edits > 0; --edits) {
      const size_t at = random() % bytes.size();
      const uint64_t extreme[] = {0, ~uint64_t{0}, uint64_t{1} << 63, 0xFFFFFFFF, random()};
      switch (random() % 4) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
          break;
        case 2: {
          const uint64_t value = extreme[random() % 5];
          std::memcpy(&bytes[at], &value, std::min(sizeof(value), bytes.size() - at));
          break;
        }
        default:
          bytes.erase(at, 1 + random() % 8);
          break;
      }
      if (bytes.empty()) break;
    }
    auto file = OpenBytes(bytes);
    if (!file.ok()) continue;
    ++accepted;
    TouchEverything(**file);
    if (HasFatalFailure()) FAIL() << "iteration " << i;
  }
  rusage after{};
  getrusage(RUSAGE_SELF, &after);
  EXPECT_GT(accepted, 0) << "the mutations must reach behind the parser";
#if !defined(__SANITIZE_ADDRESS__)
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 64 * 1024) << "KiB";
#endif
}

}  // namespace
}  // namespace trivium::model
