// Pictures against the `transformers` implementations: slices bit for bit, tokens of towers with
// random weights, ids of prompts. How it was recorded: vision.py.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>

#include "common/model/gguf.h"
#include "common/model/testing/gguf_writer.h"
#include "common/model/tokenizer.h"
#include "common/vision/picture_encoder.h"
#include "common/vision/picture_key.h"
#include "common/vision/picture_prompt.h"
#include "common/vision/slices.h"

namespace trivium::vision {
namespace {

using kernels::WeightType;
using model::GgufWriter;

class Reader {
 public:
  explicit Reader(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    bytes_.assign((std::istreambuf_iterator<char>(file)), {});
  }
  template <typename T = int32_t>
  T Number() {
    T value;
    std::memcpy(&value, Bytes(sizeof(T)).data(), sizeof(T));
    return value;
  }
  template <typename T>
  std::vector<T> Numbers(size_t count) {
    std::vector<T> values(count);
    std::memcpy(values.data(), Bytes(count * sizeof(T)).data(), count * sizeof(T));
    return values;
  }
  std::string_view Bytes(size_t size) {
    TRIVIUM_CHECK(bytes_.size() - at_ >= size, "vision.bin ends early");
    at_ += size;
    return std::string_view(bytes_).substr(at_ - size, size);
  }
  std::string Text() { return std::string(Bytes(Number<uint32_t>())); }

 private:
  std::string bytes_;
  size_t at_ = 0;
};

struct PromptCase {
  std::vector<int32_t> grids;  // rows, cols of each picture
  std::vector<std::string> pieces;
  std::vector<int32_t> ids;
};
struct SlicingCase {
  TowerConfig config;
  int32_t width = 0, height = 0, rows = 0, cols = 0;
  std::vector<std::string> digests;
};
struct TowerCase {
  std::string kind;
  int32_t image, patch, hidden, heads, ffn, layers, merge, out, longest_edge, class_token, sample;
  int32_t width = 0, height = 0;
  std::vector<float> tokens;
};
struct Record {
  std::vector<PromptCase> prompts;
  std::vector<SlicingCase> slicings;
  std::map<std::string, TowerCase> towers;
};

SlicingCase ReadSlicing(Reader& reader) {
  SlicingCase c;
  c.config.kind = reader.Text();
  c.config.slicing = c.config.kind == "idefics3" ? Slicing::kTiles
                     : c.config.kind == "mlp"    ? Slicing::kCentre
                                                 : Slicing::kWhole;
  for (int32_t* field : {&c.config.image_size, &c.config.patch_size, &c.config.merge,
                         &c.config.longest_edge, &c.width, &c.height, &c.rows, &c.cols}) {
    *field = reader.Number();
  }
  c.config.pixels_min = 56 * 56;
  c.config.pixels_max = 28 * 28 * 1280;
  for (auto n = reader.Number(); n > 0; --n) c.digests.emplace_back(reader.Bytes(32));
  return c;
}

TowerCase ReadTower(Reader& reader) {
  TowerCase c;
  c.kind = reader.Text();
  for (int32_t* field : {&c.image, &c.patch, &c.hidden, &c.heads, &c.ffn, &c.layers, &c.merge,
                         &c.out, &c.longest_edge, &c.class_token, &c.sample, &c.width, &c.height}) {
    *field = reader.Number();
  }
  const auto count = reader.Number<uint32_t>();
  c.tokens = reader.Numbers<float>(count);
  return c;
}

const Record& Recorded() {
  static const Record* const record = [] {
    auto* r = new Record;
    Reader reader(TRIVIUM_ORACLE_DATA "/vision.bin");
    TRIVIUM_CHECK(reader.Bytes(4) == "TRVW" && reader.Number() == 1, "not vision.bin");
    for (auto n = reader.Number(); n > 0; --n) {
      PromptCase c;
      const auto pictures = reader.Number<uint32_t>();
      c.grids = reader.Numbers<int32_t>(size_t{2} * pictures);
      for (uint32_t i = 0; i <= pictures; ++i) c.pieces.push_back(reader.Text());
      const auto ids = reader.Number<uint32_t>();
      c.ids = reader.Numbers<int32_t>(ids);
      r->prompts.push_back(std::move(c));
    }
    for (auto n = reader.Number(); n > 0; --n) r->slicings.push_back(ReadSlicing(reader));
    for (auto n = reader.Number(); n > 0; --n) {
      const std::string name = reader.Text();
      r->towers[name] = ReadTower(reader);
    }
    return r;
  }();
  return *record;
}

// Element i of what is random about `name`, as vision.py draws it.
class Draw {
 public:
  explicit Draw(std::string_view name) : seed_(0xcbf29ce484222325) {
    for (char c : name) seed_ = (seed_ ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  }
  uint64_t operator()(uint64_t i) const {
    uint64_t z = seed_ + i * 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }

 private:
  uint64_t seed_;
};

image::Image MakePicture(int32_t width, int32_t height) {
  const Draw draw("picture");
  image::Image image{width, height, {}};
  for (int32_t y = 0; y < height; ++y) {
    for (int32_t x = 0; x < width; ++x) {
      for (int32_t c = 0; c < 3; ++c) {
        const int64_t cell = (int64_t{y / 5} * (width / 7 + 1) + x / 7) * 3 + c;
        const auto value = static_cast<int>(draw(static_cast<uint64_t>(cell)) >> 56);
        image.rgb.push_back(static_cast<uint8_t>(std::min(value + x % 7 * 3, 255)));
      }
    }
  }
  return image;
}

// Bytes of `values` in a type that needs no blocks, or in Q8_0.
std::string Encoded(const std::vector<float>& values, WeightType type) {
  std::string bytes;
  const auto put = [&](const auto& number) {
    bytes.append(reinterpret_cast<const char*>(&number), sizeof(number));
  };
  for (size_t i = 0; i < values.size(); ++i) {
    if (type == WeightType::kF32) put(values[i]);
    if (type == WeightType::kF16) put(kernels::FloatToHalf(values[i]));
    if (type == WeightType::kBF16) put(kernels::FloatToBFloat(values[i]));
    if (type == WeightType::kQ8_0 && i % 32 == 0) {
      float largest = 0;
      for (size_t j = i; j < i + 32; ++j) largest = std::max(largest, std::abs(values[j]));
      put(kernels::FloatToHalf(largest / 127));
      for (size_t j = i; j < i + 32; ++j) {
        put(static_cast<int8_t>(largest == 0 ? 0 : std::lround(values[j] * 127 / largest)));
      }
    }
  }
  return bytes;
}

class MmprojWriter {
 public:
  explicit MmprojWriter(WeightType type) : type_(type) {}

  // `shape` as in the file, inputs first.
  void Add(const std::string& name, const std::vector<int64_t>& shape) {
    int64_t count = 1, inputs = 1;
    for (int64_t size : shape) count *= size;
    for (size_t i = 0; i + 1 < shape.size(); ++i) inputs *= shape[i];
    const bool bias =
        name.ends_with(".bias") || name == "v.class_embd" || name == "v.position_embd.weight";
    const bool norm = !bias && shape.size() == 1;
    const double power = std::floor(std::log2(std::sqrt(static_cast<double>(inputs) / 3)));
    const auto scale = bias || norm ? 0.25f : static_cast<float>(std::exp2(-power));
    const Draw draw(name);
    std::vector<float> values(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<float>(static_cast<int>(draw(i) >> 53) - 1024) / 1024 * scale;
      if (norm) values[i] += 1;
    }
    const bool exact = bias || norm;
    const WeightType type = exact ? WeightType::kF32
                            : kernels::BlockElems(type_) > 1 && shape[0] % 32 != 0
                                ? WeightType::kF16
                                : type_;
    file_.AddTensor(name, shape, type, Encoded(values, type));
  }
  void AddLinear(const std::string& name, int64_t inputs, int64_t outputs, bool bias = true) {
    Add(name + ".weight", {inputs, outputs});
    if (bias) Add(name + ".bias", {outputs});
  }
  void AddNorm(const std::string& name, int64_t size) {
    Add(name + ".weight", {size});
    Add(name + ".bias", {size});
  }
  GgufWriter& file() { return file_; }

 private:
  const WeightType type_;
  GgufWriter file_;
};

void AddOptions(GgufWriter& file, const TowerCase& c) {
  const std::string vision = "clip.vision.";
  const auto put = [&](const std::string& key, int32_t value) {
    file.AddUint32(vision + key, static_cast<uint32_t>(value));
  };
  file.AddString("general.architecture", "clip");
  file.AddString("clip.projector_type", c.kind);
  file.AddBool("clip.has_vision_encoder", true);
  put("image_size", c.image);
  put("patch_size", c.patch);
  put("embedding_length", c.hidden);
  put("feed_forward_length", c.ffn);
  put("block_count", c.layers);
  put("attention.head_count", c.heads);
  const bool smolvlm = c.kind == "idefics3";
  file.AddFloat(vision + "attention.layer_norm_epsilon", c.kind == "mlp" ? 1e-5f : 1e-6f);
  if (smolvlm) {
    put("projector.scale_factor", c.merge);
    put("preproc_image_size", c.longest_edge);
    file.AddBool("clip.use_gelu", true);
  }
  using Colours = std::vector<float>;
  file.AddFloats(vision + "image_mean", smolvlm ? Colours{0.5f, 0.5f, 0.5f}
                                                : Colours{0.48145466f, 0.4578275f, 0.40821073f});
  file.AddFloats(vision + "image_std", smolvlm ? Colours{0.5f, 0.5f, 0.5f}
                                               : Colours{0.26862954f, 0.26130258f, 0.27577711f});
}

void AddTensors(MmprojWriter& writer, const TowerCase& c) {
  const bool smolvlm = c.kind == "idefics3", llava = c.kind == "mlp";
  writer.Add("v.patch_embd.weight", {c.patch, c.patch, 3, c.hidden});
  if (smolvlm) writer.Add("v.patch_embd.bias", {c.hidden});
  if (llava) writer.Add("v.class_embd", {c.hidden});
  if (llava) writer.AddNorm("v.pre_ln", c.hidden);
  if (!llava) writer.AddNorm("v.post_ln", c.hidden);
  const int64_t side = c.image / c.patch;
  if (smolvlm || llava) {
    writer.Add("v.position_embd.weight", {c.hidden, side * side + c.class_token});
  } else {
    writer.Add("v.patch_embd.weight.1", {c.patch, c.patch, 3, c.hidden});
  }
  for (int i = 0; i < c.layers; ++i) {
    const std::string layer = fmt::format("v.blk.{}.", i);
    writer.AddNorm(layer + "ln1", c.hidden);
    writer.AddNorm(layer + "ln2", c.hidden);
    for (const char* name : {"attn_q", "attn_k", "attn_v", "attn_out"}) {
      writer.AddLinear(layer + name, c.hidden, c.hidden);
    }
    writer.AddLinear(layer + "ffn_up", c.hidden, c.ffn);
    writer.AddLinear(layer + "ffn_down", c.ffn, c.hidden);
  }
  const int64_t inputs = int64_t{c.hidden} * c.merge * c.merge;
  if (smolvlm) return writer.AddLinear("mm.model.fc", inputs, c.out, false);
  const int64_t between = llava ? c.out : inputs;
  writer.AddLinear("mm.0", inputs, between);
  writer.AddLinear("mm.2", between, c.out);
}

std::shared_ptr<const Tower> MakeTower(const TowerCase& c, WeightType type) {
  MmprojWriter writer(type);
  AddOptions(writer.file(), c);
  AddTensors(writer, c);
  const std::string path = testing::TempDir() + "vision_oracle_" + std::to_string(getpid());
  const absl::Status written = writer.file().WriteFile(path);
  TRIVIUM_CHECK(written.ok(), "{}", Message(written));
  auto tower = Tower::Load(path);
  std::remove(path.c_str());  // it stays mapped
  TRIVIUM_CHECK(tower.ok(), "{}", Message(tower.status()));
  return *std::move(tower);
}

struct Difference {
  double largest = 0, cosine = 0;
};

Difference Compare(const TowerCase& c, const kernels::OpsOptions& options, WeightType type) {
  PictureEncoder encoder(MakeTower(c, type), kernels::MakeOps(options));
  const TowerConfig& config = encoder.tower().config;
  EXPECT_EQ(config.out_hidden, c.out);
  const auto plan = PlanPicture(config, c.width, c.height);
  const auto slices = CutPicture(config, *plan, MakePicture(c.width, c.height));
  std::vector<float> tokens(static_cast<size_t>(plan->tokens() * c.out));
  encoder.Encode(slices, tokens.data());
  EXPECT_EQ((tokens.size() + c.sample - 1) / c.sample, c.tokens.size());
  Difference d;
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < c.tokens.size(); ++i) {
    const double a = tokens[i * static_cast<size_t>(c.sample)], b = c.tokens[i];
    d.largest = std::max(d.largest, std::abs(a - b));
    ab += a * b;
    aa += a * a;
    bb += b * b;
  }
  d.cosine = ab / std::sqrt(aa * bb);
  std::printf("largest difference %.2e, cosine %.7f\n", d.largest, d.cosine);
  return d;
}

TEST(VisionOracleTest, SlicesAreThoseOfTheReferenceBitForBit) {
  EXPECT_GE(Recorded().slicings.size(), 20u);
  for (const SlicingCase& c : Recorded().slicings) {
    SCOPED_TRACE(fmt::format("{} {} x {}", c.config.kind, c.width, c.height));
    const auto plan = PlanPicture(c.config, c.width, c.height);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(plan->rows, c.rows);
    EXPECT_EQ(plan->cols, c.cols);
    const auto slices = CutPicture(c.config, *plan, MakePicture(c.width, c.height));
    ASSERT_EQ(slices.size(), c.digests.size());
    EXPECT_EQ(static_cast<size_t>(plan->slices()), slices.size());
    for (size_t i = 0; i < slices.size(); ++i) {
      EXPECT_EQ(slices[i].width, plan->slice_width);
      EXPECT_EQ(PixelDigest(slices[i]), c.digests[i]) << "slice " << i;
    }
  }
}

TEST(VisionOracleTest, SmallTowersOfEachKindOnEveryPath) {
  for (const auto& [name, c] : Recorded().towers) {
    if (name == "smolvlm_256m") continue;
    for (const kernels::Isa isa : kernels::SupportedIsas()) {
      for (const auto numerics : {kernels::Numerics::kFast, kernels::Numerics::kBatchInvariant}) {
        SCOPED_TRACE(name + " " + kernels::IsaName(isa));
        const Difference d = Compare(c, {isa, numerics, 2}, WeightType::kF32);
        // Under kFast, AMX multiplies in bfloat16.
        const bool exact =
            isa != kernels::Isa::kAmx || numerics == kernels::Numerics::kBatchInvariant;
        EXPECT_LE(d.largest, exact ? 1e-4 : 0.2);
        EXPECT_GE(d.cosine, exact ? 0.999999 : 0.999);
      }
    }
  }
}

TEST(VisionOracleTest, QuantisedTowersAreClose) {
  const TowerCase& c = Recorded().towers.at("qwen2vl");
  for (const WeightType type : {WeightType::kQ8_0, WeightType::kBF16, WeightType::kF16}) {
    EXPECT_GE(Compare(c, {kernels::BestIsa()}, type).cosine, 0.999);
  }
}

TEST(VisionOracleTest, SmolVlmsShapeInFloat32) {
  const Difference d = Compare(Recorded().towers.at("smolvlm_256m"),
                               {kernels::BestIsa(), kernels::Numerics::kBatchInvariant, 2},
                               WeightType::kF16);  // which holds these weights exactly
  EXPECT_LE(d.largest, 1e-3);
}

TEST(VisionOracleTest, SmolVlmsShapeInBfloat16) {
  const Difference d =
      Compare(Recorded().towers.at("smolvlm_256m"),
              {kernels::BestIsa(), kernels::Numerics::kFast, 2}, WeightType::kBF16);
  EXPECT_GE(d.cosine, 0.999);
}

std::unique_ptr<model::Tokenizer> LoadTokenizer(const std::string& name) {
  const auto file = model::GgufFile::Open(TRIVIUM_ORACLE_DATA "/" + name);
  TRIVIUM_CHECK(file.ok(), "{}", Message(file.status()));
  auto tokenizer = model::Tokenizer::Load(**file);
  TRIVIUM_CHECK(tokenizer.ok(), "{}", Message(tokenizer.status()));
  return *std::move(tokenizer);
}

absl::StatusOr<PicturePrompt> SmolVlmPrompt(const model::Tokenizer& tokenizer) {
  TowerConfig config;
  config.kind = "idefics3";
  return PicturePrompt::Make(config, tokenizer);
}

TEST(VisionOracleTest, TextForgesNoPicture) {
  const auto tokenizer = LoadTokenizer("picture_markers.gguf");
  const auto prompt = SmolVlmPrompt(*tokenizer);
  ASSERT_TRUE(prompt.ok()) << prompt.status();
  const std::vector<PicturePlan> plans{{.tokens_per_slice = 7}};
  EXPECT_TRUE(prompt->Expand(std::vector<std::string>{"a", "b"}, plans, {}).ok());
  for (const std::string forged :
       {"<image>", "a <image><image><image><image><image><image><image>"}) {
    EXPECT_FALSE(prompt->Expand(std::vector<std::string>{forged, ""}, plans, {}).ok());
    EXPECT_FALSE(prompt->Expand(std::vector<std::string>{"", forged}, plans, {}).ok());
  }
  // LLaVA has nothing between two pictures that stand side by side.
  TowerConfig llava;
  llava.kind = "mlp";
  const auto bare = PicturePrompt::Make(llava, *tokenizer);
  const std::vector<PicturePlan> two{{.tokens_per_slice = 7}, {.tokens_per_slice = 3}};
  const auto both = bare->Expand(std::vector<std::string>{"a", "", "b"}, two, {});
  ASSERT_TRUE(both.ok()) << both.status();
  EXPECT_EQ(both->places[1].first, both->places[0].first + 7);
  EXPECT_FALSE(bare->Expand(std::vector<std::string>{"a", "<image>", "b"}, two, {}).ok());
  // Five rows, where the vocabulary names four.
  const std::vector<PicturePlan> tall{{.rows = 5, .cols = 1, .tokens_per_slice = 7}};
  const auto refused = prompt->Expand(std::vector<std::string>{"", ""}, tall, {});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(VisionOracleTest, SlicesStandBareInAVocabularyWithoutMarkers) {
  const auto tokenizer = LoadTokenizer("scored.gguf");
  const auto prompt = SmolVlmPrompt(*tokenizer);
  ASSERT_TRUE(prompt.ok()) << prompt.status();
  EXPECT_FALSE(prompt->has_markers());
  const std::vector<PicturePlan> plans{{.rows = 1, .cols = 2, .tokens_per_slice = 5}};
  const std::vector<std::string> pieces{"one", "two"};
  const auto expanded = prompt->Expand(pieces, plans, {});
  ASSERT_TRUE(expanded.ok()) << expanded.status();
  std::vector<int32_t> expected = tokenizer->Encode("one", {});
  const auto first = static_cast<int32_t>(expected.size());
  expected.insert(expected.end(), 15, 0);
  for (int32_t id : tokenizer->Encode("two", {})) expected.push_back(id);
  EXPECT_EQ(expanded->ids, expected);
  ASSERT_EQ(expanded->places.size(), 3u);
  for (int32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(expanded->places[static_cast<size_t>(i)].first, first + 5 * i);
    EXPECT_EQ(expanded->places[static_cast<size_t>(i)].count, 5);
  }
}

TEST(VisionOracleTest, IdsOfPromptsWithMarkers) {
  const auto tokenizer = LoadTokenizer("picture_markers.gguf");
  const auto prompt = SmolVlmPrompt(*tokenizer);
  ASSERT_TRUE(prompt.ok()) << prompt.status();
  ASSERT_TRUE(prompt->has_markers());
  for (const PromptCase& c : Recorded().prompts) {
    std::vector<PicturePlan> plans;
    for (size_t i = 0; i < c.grids.size(); i += 2) {
      plans.push_back({.rows = c.grids[i], .cols = c.grids[i + 1], .tokens_per_slice = 7});
    }
    const auto expanded = prompt->Expand(c.pieces, plans, {});
    ASSERT_TRUE(expanded.ok()) << expanded.status();
    EXPECT_EQ(expanded->ids, c.ids);
    size_t place = 0;
    for (size_t i = 0; i < plans.size(); ++i) {
      for (int32_t slice = 0; slice < plans[i].slices(); ++slice, ++place) {
        const SlicePlace& p = expanded->places.at(place);
        EXPECT_EQ(p.picture, static_cast<int32_t>(i));
        EXPECT_EQ(p.slice, slice);
        for (int32_t j = 0; j < p.count; ++j) {
          EXPECT_EQ(tokenizer->Piece(c.ids.at(static_cast<size_t>(p.first + j)), true), "<image>");
        }
      }
    }
    EXPECT_EQ(place, expanded->places.size());
  }
}

}  // namespace
}  // namespace trivium::vision
