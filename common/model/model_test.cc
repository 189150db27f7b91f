#include "common/model/model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include "common/model/testing/gguf_writer.h"
#include "common/model/testing/tiny_model.h"

namespace trivium::model {
namespace {

using kernels::WeightType;
using ::testing::HasSubstr;

std::string TempPath(const std::string& name) {
  return testing::TempDir() + "model_test_" + std::to_string(getpid()) + "_" + name;
}

std::string ReadBytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream out;
  out << file.rdbuf();
  return out.str();
}

std::string TinyBytes(const TinyModelOptions& options) {
  const std::string path = TempPath("tiny");
  EXPECT_TRUE(WriteTinyModel(path, options).ok());
  std::string bytes = ReadBytes(path);
  std::filesystem::remove(path);
  return bytes;
}

absl::StatusOr<std::shared_ptr<const Model>> LoadBytes(const std::string& bytes) {
  const std::string path = TempPath("load");
  std::ofstream(path, std::ios::binary) << bytes;
  auto model = Model::Load(path);
  std::filesystem::remove(path);
  return model;
}

// Replaces text of equal length, or one number behind a key, in place.
std::string Replaced(std::string bytes, const std::string& from, const std::string& to) {
  EXPECT_EQ(from.size(), to.size());
  const size_t at = bytes.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return bytes.replace(at, to.size(), to);
}

template <typename T>
std::string WithNumber(std::string bytes, const std::string& key, T value) {
  const size_t at = bytes.find(key);
  EXPECT_NE(at, std::string::npos) << key;
  std::memcpy(&bytes[at + key.size() + 4], &value, sizeof(value));
  return bytes;
}

void ExpectError(const std::string& bytes, absl::StatusCode code, const std::string& text) {
  auto model = LoadBytes(bytes);
  ASSERT_FALSE(model.ok()) << text;
  EXPECT_EQ(model.status().code(), code) << Message(model.status());
  EXPECT_THAT(Message(model.status()), HasSubstr(text));
}

TEST(Model, LoadsTinyModelsOfEveryWeightType) {
  for (WeightType type : {WeightType::kF32, WeightType::kF16, WeightType::kBF16, WeightType::kQ8_0,
                          WeightType::kQ4_0, WeightType::kQ4_1}) {
    auto loaded = LoadBytes(TinyBytes({.linear_type = type, .embedding_type = type}));
    ASSERT_TRUE(loaded.ok()) << Message(loaded.status());
    const Model& model = **loaded;
    EXPECT_EQ(model.config.layers, 4);
    EXPECT_EQ(model.config.heads, 4);
    EXPECT_EQ(model.config.kv_heads, 2);
    EXPECT_EQ(model.config.head_dim, 16);
    EXPECT_EQ(model.config.vocab, 320);
    EXPECT_EQ(model.config.KvBytesPerToken(), 4 * 2 * 2 * 16 * 2);
    ASSERT_EQ(model.layers.size(), 4u);
    EXPECT_EQ(model.layers[3].ffn.down.type, type);
    EXPECT_EQ(model.layers[3].ffn.down.rows, 64);
    EXPECT_EQ(model.layers[3].ffn.down.cols, 128);
    EXPECT_EQ(model.layers[0].k.rows, 32);
    EXPECT_NE(model.output.data, model.embedding.data);
    std::vector<float> row(128);
    double squares = 0;
    for (int64_t i = 0; i < 64; ++i) {
      const auto* bytes = static_cast<const uint8_t*>(model.layers[1].ffn.down.data);
      kernels::DequantizeRow(type, bytes + i * kernels::RowBytes(type, 128), 128, row.data());
      for (float x : row) squares += double{x} * x;
    }
    EXPECT_NEAR(std::sqrt(squares / 64), 1.0, 0.2) << "the sigma that the writer wants";
  }
}

TEST(Model, TiesTheOutputToTheEmbedding) {
  auto model = LoadBytes(TinyBytes({.tied_embedding = true}));
  ASSERT_TRUE(model.ok()) << Message(model.status());
  EXPECT_EQ((*model)->output.data, (*model)->embedding.data);
}

TEST(Model, RendersAndTokenisesChats) {
  auto model = LoadBytes(TinyBytes({}));
  ASSERT_TRUE(model.ok());
  const ChatMessage message{"user", "the thing"};
  const std::string prompt = (*model)->chat_template.Render({&message, 1}).value();
  EXPECT_THAT(prompt, HasSubstr("You are tiny."));
  const auto ids = (*model)->tokenizer->Encode(prompt, {.parse_special = true});
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 1), 3);
}

TEST(Model, FingerprintsContent) {
  const std::string bytes = TinyBytes({});
  EXPECT_EQ(bytes, TinyBytes({})) << "the same seed, the same file";
  const std::string print = LoadBytes(bytes).value()->fingerprint;
  EXPECT_EQ(print.size(), 64u);
  EXPECT_EQ(LoadBytes(bytes).value()->fingerprint, print) << "the path must not count";
  std::string changed = bytes;
  changed[changed.size() - 2] ^= 1;
  EXPECT_NE(LoadBytes(changed).value()->fingerprint, print);
  EXPECT_NE(LoadBytes(TinyBytes({.seed = 2})).value()->fingerprint, print);
}

TEST(Model, TakesTheTensorsOfItsRopeScalingAlone) {
  for (const char* scaling : {"linear", "yarn", "llama3", "longrope"}) {
    auto model = LoadBytes(TinyBytes({.rope_scaling = scaling}));
    ASSERT_TRUE(model.ok()) << scaling << Message(model.status());
    EXPECT_EQ((*model)->config.rope.frequencies.size(), 8u);
    EXPECT_EQ((*model)->config.rope.scale > 1,
              std::string_view("yarn longrope").find(scaling) != std::string_view::npos);
  }
  ExpectError(Replaced(TinyBytes({.rope_scaling = "longrope"}), "longrope", "linearxx"),
              absl::StatusCode::kUnimplemented, "rope_factors_long.weight");
}

TEST(Model, LoadsASplitModelAsItsWhole) {
  const auto whole = LoadBytes(TinyBytes({})).value();
  const std::string prefix = TempPath("split");
  ASSERT_TRUE(WriteTinyModel(prefix, {.parts = 3}).ok());
  const auto part = [&](int number) {
    return fmt::format("{}-{:05}-of-00003.gguf", prefix, number);
  };
  const auto first = Model::Load(part(1)).value();
  const auto last = Model::Load(part(3)).value();
  EXPECT_EQ(first->fingerprint, last->fingerprint);
  for (size_t i = 0; i < whole->layers.size(); ++i) {
    const kernels::WeightView& wanted = whole->layers[i].ffn.down;
    const auto bytes = static_cast<size_t>(
        wanted.rows * kernels::RowBytes(wanted.type, static_cast<int>(wanted.cols)));
    EXPECT_EQ(std::memcmp(last->layers[i].ffn.down.data, wanted.data, bytes), 0);
  }
  for (int number : {1, 2, 3}) {
    const std::string before = ReadBytes(part(number));
    std::string changed = before;
    changed[changed.size() - 2] ^= 1;
    std::filesystem::remove(part(number));  // the loaded models still map the old file
    std::ofstream(part(number), std::ios::binary) << changed;
    EXPECT_NE(Model::Load(part(2)).value()->fingerprint, first->fingerprint) << number;
    std::filesystem::remove(part(number));
    std::ofstream(part(number), std::ios::binary) << before;
  }
  for (int number : {1, 2, 3}) std::filesystem::remove(part(number));
}

TEST(Model, NamesWhatItDoesNotRun) {
  const std::string bytes = TinyBytes({});
  const auto unimplemented = absl::StatusCode::kUnimplemented;
  // The value of general.architecture is the first string "llama" behind its key and size.
  std::string other = bytes;
  other[other.find("llama", other.find("general.architecture"))] = 'x';
  ExpectError(other, unimplemented, "xlama");
  ExpectError(Replaced(bytes, "blk.3.ffn_up.weight", "blk.4.ffn_up.weight"),
              absl::StatusCode::kInvalidArgument, "blk.3.ffn_up.weight is missing");
  ExpectError(WithNumber(bytes, "llama.block_count", 3u), unimplemented, "blk.3.");
}

TEST(Model, RefusesImpossibleNumbers) {
  const std::string bytes = TinyBytes({});
  const auto invalid = absl::StatusCode::kInvalidArgument;
  for (const char* key :
       {"llama.block_count", "llama.embedding_length", "llama.feed_forward_length",
        "llama.context_length", "llama.attention.head_count", "llama.attention.head_count_kv",
        "llama.attention.key_length", "llama.rope.dimension_count", "llama.vocab_size"}) {
    for (uint32_t value : {0u, 0xFFFFFFFFu, 0x7FFFFFFFu, 1u << 25}) {
      ExpectError(WithNumber(bytes, key, value), invalid, key);
    }
  }
  ExpectError(WithNumber(bytes, "llama.attention.head_count_kv", 3u), invalid, "divide");
  ExpectError(WithNumber(bytes, "llama.rope.dimension_count", 15u), invalid, "even");
  ExpectError(WithNumber(bytes, "llama.rope.dimension_count", 18u), invalid, "even");
  ExpectError(WithNumber(bytes, "llama.embedding_length", 96u), invalid, "shape");
  ExpectError(WithNumber(bytes, "llama.vocab_size", 319u), invalid, "320 tokens");
  ExpectError(WithNumber(bytes, "llama.attention.key_length", 32u),
              absl::StatusCode::kUnimplemented, "keys of 32");
  for (float value : {0.0f, -1.0f, INFINITY, NAN}) {
    ExpectError(WithNumber(bytes, "llama.rope.freq_base", value), invalid, "freq_base");
    ExpectError(WithNumber(bytes, "llama.attention.layer_norm_rms_epsilon", value), invalid,
                "epsilon");
  }
}

TEST(Model, LoadsEveryFamily) {
  for (const char* family :
       {"llama", "qwen2", "qwen3", "gemma3", "mixtral", "qwen2moe", "qwen3moe"}) {
    SCOPED_TRACE(family);
    auto loaded = LoadBytes(TinyBytes(TinyModelOf(family)));
    ASSERT_TRUE(loaded.ok()) << Message(loaded.status());
    const ModelConfig& config = (*loaded)->config;
    const LayerWeights& layer = (*loaded)->layers[1];
    const std::string_view name = family;
    EXPECT_EQ(config.architecture, name == "mixtral" ? "llama" : name);
    EXPECT_EQ(config.rope_pairs == kernels::RopePairs::kAdjacent,
              name == "llama" || name == "mixtral");
    EXPECT_EQ(layer.q_bias != nullptr, name.starts_with("qwen2"));
    EXPECT_EQ(layer.k_norm != nullptr, name.starts_with("qwen3") || name == "gemma3");
    EXPECT_EQ(layer.experts.size(), name == "mixtral" || name.ends_with("moe") ? 8u : 0u);
    EXPECT_EQ(config.experts.normalised, name != "qwen2moe");
    EXPECT_EQ(layer.shared.down.cols, name == "qwen2moe" ? 96 : 0);
    if (name != "gemma3") continue;
    EXPECT_EQ(config.local_layers, (std::vector<bool>{true, true, true, true, true, false, true}));
    EXPECT_EQ(config.WindowOf(4), 20);
    EXPECT_EQ(config.WindowOf(5), 0);
    EXPECT_EQ(config.embedding_scale, 8.0f);
  }
}

TEST(Model, ViewsEachExpertInItsPlace) {
  TinyModelOptions options = TinyModelOf("mixtral");
  options.linear_type = WeightType::kQ8_0;
  const auto model = LoadBytes(TinyBytes(options)).value();
  for (const LayerWeights& layer : model->layers) {
    for (size_t i = 1; i < layer.experts.size(); ++i) {
      const kernels::WeightView &before = layer.experts[i - 1].down, &view = layer.experts[i].down;
      EXPECT_EQ(view.rows, 64);
      EXPECT_EQ(view.cols, 128);
      EXPECT_EQ(static_cast<const uint8_t*>(view.data) - static_cast<const uint8_t*>(before.data),
                64 * 128 / 32 * 34);
    }
  }
}

TEST(Model, RefusesImpossibleExpertsAndWindows) {
  const auto invalid = absl::StatusCode::kInvalidArgument;
  const std::string moe = TinyBytes(TinyModelOf("qwen2moe"));
  for (const char* key :
       {"qwen2moe.expert_count", "qwen2moe.expert_used_count",
        "qwen2moe.expert_feed_forward_length", "qwen2moe.expert_shared_feed_forward_length"}) {
    for (uint32_t value : {0u, 0xFFFFFFFFu, 0x7FFFFFFFu, 1u << 25}) {
      ExpectError(WithNumber(moe, key, value), invalid, key);
    }
  }
  ExpectError(WithNumber(moe, "qwen2moe.expert_used_count", 9u), invalid, "not from 1 to 8");
  ExpectError(WithNumber(moe, "qwen2moe.expert_count", 7u), invalid, "ffn_gate_inp.weight");
  ExpectError(WithNumber(moe, "qwen2moe.expert_feed_forward_length", 32u), invalid,
              "ffn_gate_exps.weight");
  const std::string gemma = TinyBytes(TinyModelOf("gemma3"));
  for (uint32_t value : {0u, 0xFFFFFFFFu, (1u << 24) + 1}) {
    ExpectError(WithNumber(gemma, "gemma3.attention.sliding_window", value), invalid,
                "sliding_window");
  }
  for (float value : {0.0f, -1.0f, INFINITY, NAN}) {
    ExpectError(WithNumber(gemma, "gemma3.final_logit_softcapping", value), invalid, "softcapping");
  }
}

// A file of one architecture under the name of another lacks tensors, or has some without a place.
TEST(Model, RefusesTheTensorsOfOtherFamilies) {
  const auto renamed = [](const char* from, std::string to) {
    std::string bytes = TinyBytes(TinyModelOf(from));
    for (size_t at = bytes.find(from); at != std::string::npos; at = bytes.find(from, at + 1)) {
      bytes.replace(at, to.size(), to);
    }
    return bytes;
  };
  ExpectError(renamed("qwen2", "qwen3"), absl::StatusCode::kInvalidArgument, "attn_q_norm.weight");
  ExpectError(renamed("qwen3", "qwen2"), absl::StatusCode::kInvalidArgument, "attn_q.bias");
  ExpectError(renamed("qwen2", "llama"), absl::StatusCode::kUnimplemented, "attn_q.bias");
  ExpectError(renamed("gemma3", "qwen3x"), absl::StatusCode::kUnimplemented, "qwen3x");
}

TEST(Model, NamesTheKeysThatWouldChangeTheArithmetic) {
  for (const char* name :
       {"llama.logit_scale", "llama.attention.sliding_window", "llama.attn_logit_softcapping",
        "llama.leading_dense_block_count", "llama.expert_group_count", "llama.attention.scale",
        "llama.rope.freq_base_swa"}) {
    ExpectError(TinyBytes({.extra_numbers = {{name, 7}}}), absl::StatusCode::kUnimplemented, name);
  }
  for (const auto& neutral : {std::pair{"llama.attention.sliding_window", 0},
                              {"llama.expert_count", 0},
                              {"llama.expert_gating_func", 1}}) {
    auto model = LoadBytes(TinyBytes({.extra_numbers = {neutral}}));
    EXPECT_TRUE(model.ok()) << Message(model.status());
  }
}

TEST(Model, SurvivesRandomMutationsOfItsMetadata) {
  const uint64_t seed = std::random_device()();
  std::printf("seed %lu\n", seed);
  std::mt19937_64 random(seed);
  const std::string whole =
      TinyBytes({.layers = 1, .hidden = 32, .heads = 2, .ffn = 32, .vocab = 260});
  const size_t metadata = whole.find("token_embd.weight") + 2000;
  int accepted = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string bytes = whole;
    for (uint64_t edits = 1 + random() % 3; edits > 0; --edits) {
      bytes[random() % std::min(metadata, bytes.size())] = static_cast<char>(random());
    }
    auto model = LoadBytes(bytes);
    if (!model.ok()) continue;
    ++accepted;
    const auto ids = (*model)->tokenizer->Encode("the thing <|im_end|> 12", {});
    for (int32_t id : ids) EXPECT_LT(id, (*model)->config.vocab);
  }
  EXPECT_GT(accepted, 0);
}

TEST(Model, LoadsTheRealModel) {
  const char* path = std::getenv("TRIVIUM_TEST_MODEL");
  if (path == nullptr) GTEST_SKIP() << "TRIVIUM_TEST_MODEL is not set";
  auto model = Model::Load(path);
  ASSERT_TRUE(model.ok()) << Message(model.status());
  const ModelConfig& config = (*model)->config;
  EXPECT_EQ(config.layers, 30);
  EXPECT_EQ(config.vocab, 49152);
  EXPECT_EQ(config.KvBytesPerToken(), 23040);
  EXPECT_EQ((*model)->tokenizer->eos_id(), 2);
  const ChatMessage message{"user", "Hi"};
  EXPECT_THAT((*model)->chat_template.Render({&message, 1}).value(), HasSubstr("SmolLM"));
}

}  // namespace
}  // namespace trivium::model
