#include "common/model/architecture.h"

#include <cmath>

namespace trivium::model {
namespace {

// An architecture that shares the pre-norm, rotary, gated layout; what differs is a column here.
struct Architecture {
  std::string_view name;          // general.architecture, and the prefix of its keys
  float default_rope_base;        // where the file gives none
  std::string_view forbidden[4];  // keys that would change the arithmetic in a way we do not run
};

constexpr Architecture kArchitectures[] = {
    {"llama",
     10000.0f,
     {"expert_count", "attention.sliding_window", "attention.scale", "logit_scale"}},
};

constexpr int32_t kMostLayers = 512;
constexpr int32_t kMostHidden = 65536;
constexpr int32_t kMostHeads = 1024;
constexpr int32_t kMostHeadDim = 1024;
constexpr int32_t kMostFfn = 1 << 20;
constexpr int32_t kMostVocab = 1 << 21;
constexpr int32_t kMostContext = 1 << 24;

class ConfigReader {
 public:
  ConfigReader(const GgufFile& file, const Architecture& architecture)
      : file_(file), architecture_(architecture) {}

  absl::StatusOr<ModelConfig> Read();

 private:
  std::string Key(std::string_view name) const {
    return fmt::format("{}.{}", architecture_.name, name);
  }

  absl::StatusOr<int32_t> Count(std::string_view name, int32_t most) const {
    const std::string key = Key(name);
    ASSIGN_OR_RETURN(int64_t value, file_.Int(key));
    if (value < 1 || value > most) {
      return InvalidArgument("{} is {}, not from 1 to {}", key, value, most);
    }
    return static_cast<int32_t>(value);
  }
  absl::StatusOr<int32_t> CountOr(std::string_view name, int32_t most, int32_t otherwise) const {
    return file_.Has(Key(name)) ? Count(name, most) : otherwise;
  }
  absl::StatusOr<float> Positive(std::string_view name) const {
    ASSIGN_OR_RETURN(double value, file_.Float(Key(name)));
    const auto narrow = static_cast<float>(value);
    if (!(narrow > 0) || !std::isfinite(narrow)) {
      return InvalidArgument("{} is {}, not a positive number", Key(name), value);
    }
    return narrow;
  }

  absl::Status ReadSizes(ModelConfig& config) const;
  absl::Status ReadHeads(ModelConfig& config) const;
  absl::Status RefuseOptions() const;

  const GgufFile& file_;
  const Architecture& architecture_;
};

absl::Status ConfigReader::ReadSizes(ModelConfig& config) const {
  ASSIGN_OR_RETURN(config.layers, Count("block_count", kMostLayers));
  ASSIGN_OR_RETURN(config.hidden, Count("embedding_length", kMostHidden));
  ASSIGN_OR_RETURN(config.ffn, Count("feed_forward_length", kMostFfn));
  ASSIGN_OR_RETURN(config.context, Count("context_length", kMostContext));
  ASSIGN_OR_RETURN(std::vector<std::string_view> tokens, file_.Strings("tokenizer.ggml.tokens"));
  const auto token_count = static_cast<int64_t>(tokens.size());
  if (token_count < 1 || token_count > kMostVocab) {
    return InvalidArgument("tokenizer.ggml.tokens has {} elements", token_count);
  }
  ASSIGN_OR_RETURN(config.vocab,
                   CountOr("vocab_size", kMostVocab, static_cast<int32_t>(token_count)));
  return absl::OkStatus();
}

absl::Status ConfigReader::ReadHeads(ModelConfig& config) const {
  ASSIGN_OR_RETURN(config.heads, Count("attention.head_count", kMostHeads));
  ASSIGN_OR_RETURN(config.kv_heads, CountOr("attention.head_count_kv", kMostHeads, config.heads));
  if (config.heads % config.kv_heads != 0) {
    return InvalidArgument("{} is {}, which does not divide {} heads",
                           Key("attention.head_count_kv"), config.kv_heads, config.heads);
  }
  if (!file_.Has(Key("attention.key_length")) && config.hidden % config.heads != 0) {
    return InvalidArgument("{} is {}, which does not divide the hidden size {}",
                           Key("attention.head_count"), config.heads, config.hidden);
  }
  const int32_t even_share = config.hidden / config.heads;
  ASSIGN_OR_RETURN(config.head_dim, CountOr("attention.key_length", kMostHeadDim, even_share));
  ASSIGN_OR_RETURN(int32_t value_dim, CountOr("attention.value_length", kMostHeadDim, even_share));
  if (value_dim != config.head_dim || config.head_dim > kMostHeadDim || config.head_dim < 1) {
    return Unimplemented("keys of {} and values of {} elements (at most {}, and equal)",
                         config.head_dim, value_dim, kMostHeadDim);
  }
  ASSIGN_OR_RETURN(config.rms_eps, Positive("attention.layer_norm_rms_epsilon"));
  return absl::OkStatus();
}

absl::Status ConfigReader::RefuseOptions() const {
  for (std::string_view name : architecture_.forbidden) {
    if (!name.empty() && file_.Has(Key(name))) {
      return Unimplemented("{} is not supported", Key(name));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> ConfigReader::Read() {
  ModelConfig config;
  config.architecture = architecture_.name;
  if (file_.Has("general.name")) {
    ASSIGN_OR_RETURN(std::string_view name, file_.String("general.name"));
    config.name = name;
  }
  RETURN_IF_ERROR(RefuseOptions());
  RETURN_IF_ERROR(ReadSizes(config));
  RETURN_IF_ERROR(ReadHeads(config));
  const RopeContext rope{.architecture = architecture_.name,
                         .head_dim = config.head_dim,
                         .context = config.context,
                         .default_base = architecture_.default_rope_base};
  ASSIGN_OR_RETURN(config.rope, ReadRope(file_, rope));
  return config;
}

}  // namespace

absl::StatusOr<ModelConfig> ReadConfig(const GgufFile& file) {
  ASSIGN_OR_RETURN(std::string_view name, file.String("general.architecture"));
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.name == name) return ConfigReader(file, architecture).Read();
  }
  return Unimplemented("general.architecture \"{}\" is not supported", name);
}

}  // namespace trivium::model
