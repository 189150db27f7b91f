#include "common/model/architecture.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

namespace trivium::model {
namespace {

enum class ExpertUse : uint8_t { kNever, kWhereCounted, kAlways };

// An architecture that shares the pre-norm, rotary, gated layout; what differs is a column here.
struct Architecture {
  std::string_view name;  // general.architecture, and the prefix of its keys
  kernels::RopePairs rope_pairs = kernels::RopePairs::kHalves;
  ArchitectureTensors tensors = {};
  ExpertUse experts = ExpertUse::kNever;
  bool shared_expert = false;
  bool normalised_experts = true;  // where the file does not say
  // Every local_period-th layer sees all keys, the others a window; 0: all of them see all.
  int32_t local_period = 0;
  bool softcaps = false;
  bool scaled_embedding = false;  // by sqrt(hidden)
  kernels::Activation activation = kernels::Activation::kSilu;
  // A model of this many layers scales scores by 1 / sqrt(hidden / heads) whatever its head size,
  // as nothing in its file says.
  int32_t even_scale_layers = 0;
};

constexpr Architecture kArchitectures[] = {
    {.name = "llama",
     .rope_pairs = kernels::RopePairs::kAdjacent,
     .experts = ExpertUse::kWhereCounted},
    {.name = "qwen2", .tensors = {.qkv_bias = true}},
    {.name = "qwen2moe",
     .tensors = {.qkv_bias = true},
     .experts = ExpertUse::kAlways,
     .shared_expert = true,
     .normalised_experts = false},
    {.name = "qwen3", .tensors = {.qk_norm = true}},
    {.name = "qwen3moe", .tensors = {.qk_norm = true}, .experts = ExpertUse::kAlways},
    {.name = "gemma3",
     .tensors = {.qk_norm = true, .post_norms = true},
     .local_period = 6,
     .softcaps = true,
     .scaled_embedding = true,
     .activation = kernels::Activation::kGeluTanh,
     .even_scale_layers = 62},
};

// Keys that change the arithmetic in a way that no architecture here runs, and the value with which
// they change nothing (NaN: there is none).
struct Neutral {
  std::string_view name;
  double value;
};
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
constexpr Neutral kNeutral[] = {
    {"attention.scale", kNone},
    {"attention.output_scale", kNone},
    {"attention.value_scale", kNone},
    {"attention.clamp_kqv", 0},
    {"attention.max_alibi_bias", 0},
    {"attention.causal", kNone},
    {"attention.key_length_swa", kNone},
    {"attention.shared_kv_layers", 0},
    {"logit_scale", kNone},
    {"residual_scale", 1},
    {"embedding_scale", 1},
    {"rope.dimension_sections", kNone},
    {"rope.dimension_count_swa", kNone},
    {"expert_weights_scale", 1},
    {"expert_gating_func", 1},
    {"expert_group_count", 1},
    {"leading_dense_block_count", 0},
    {"interleave_moe_layer_step", 1},
};
constexpr Neutral kNeutralWithoutWindow[] = {{"attention.sliding_window", 0},
                                             {"attention.sliding_window_pattern", kNone},
                                             {"rope.freq_base_swa", kNone}};
constexpr Neutral kNeutralWithoutSoftcaps[] = {{"attn_logit_softcapping", 0},
                                               {"final_logit_softcapping", 0}};
constexpr Neutral kNeutralWithoutExperts[] = {{"expert_count", 0}, {"expert_used_count", 0}};

constexpr double kDefaultRopeBase = 10000;
constexpr int32_t kMostLayers = 512;
constexpr int32_t kMostHidden = 65536;
constexpr int32_t kMostHeads = 1024;
constexpr int32_t kMostHeadDim = 1024;
constexpr int32_t kMostFfn = 1 << 20;
constexpr int32_t kMostExperts = 1024;
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

  absl::StatusOr<float> PositiveOrZero(std::string_view name) const {
    return file_.Has(Key(name)) ? Positive(name) : 0;
  }

  absl::Status ReadSizes(ModelConfig& config) const;
  absl::Status ReadHeads(ModelConfig& config) const;
  absl::Status ReadRopes(ModelConfig& config) const;
  absl::Status ReadWindow(ModelConfig& config) const;
  absl::Status ReadScales(ModelConfig& config) const;
  absl::Status ReadExperts(ModelConfig& config) const;
  absl::Status ReadExpertSizes(ModelConfig& config) const;
  absl::Status RefuseUnlessNeutral(std::span<const Neutral> keys) const;
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

absl::Status ConfigReader::ReadRopes(ModelConfig& config) const {
  const RopeContext rope{.architecture = architecture_.name,
                         .head_dim = config.head_dim,
                         .context = config.context,
                         .default_base = kDefaultRopeBase};
  config.rope_pairs = architecture_.rope_pairs;
  ASSIGN_OR_RETURN(config.rope, ReadRope(file_, rope));
  if (architecture_.local_period == 0) return absl::OkStatus();
  double local_base = kDefaultRopeBase;
  if (file_.Has(Key("rope.freq_base_swa"))) {
    ASSIGN_OR_RETURN(local_base, Positive("rope.freq_base_swa"));
  }
  config.local_rope = UnscaledRope(local_base, 2 * config.rope.frequencies.size());
  return absl::OkStatus();
}

absl::Status ConfigReader::ReadWindow(ModelConfig& config) const {
  if (architecture_.local_period == 0 || !file_.Has(Key("attention.sliding_window"))) {
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(config.window, Count("attention.sliding_window", kMostContext));
  ASSIGN_OR_RETURN(const int32_t period, CountOr("attention.sliding_window_pattern", kMostLayers,
                                                 architecture_.local_period));
  for (int32_t layer = 1; layer <= config.layers; ++layer) {
    config.local_layers.push_back(layer % period != 0);
  }
  return absl::OkStatus();
}

absl::Status ConfigReader::ReadScales(ModelConfig& config) const {
  config.activation = architecture_.activation;
  if (architecture_.scaled_embedding) {
    config.embedding_scale = std::sqrt(static_cast<float>(config.hidden));
  }
  const bool even = config.layers == architecture_.even_scale_layers;
  const int32_t scale_dim = even ? config.hidden / config.heads : config.head_dim;
  config.attention_scale = 1.0f / std::sqrt(static_cast<float>(std::max(1, scale_dim)));
  if (!architecture_.softcaps) return absl::OkStatus();
  ASSIGN_OR_RETURN(config.attention_softcap, PositiveOrZero("attn_logit_softcapping"));
  ASSIGN_OR_RETURN(config.logit_softcap, PositiveOrZero("final_logit_softcapping"));
  return absl::OkStatus();
}

absl::Status ConfigReader::ReadExperts(ModelConfig& config) const {
  if (architecture_.experts == ExpertUse::kNever) return absl::OkStatus();
  if (architecture_.experts == ExpertUse::kWhereCounted) {
    if (!file_.Has(Key("expert_count"))) return absl::OkStatus();
    ASSIGN_OR_RETURN(const int64_t count, file_.Int(Key("expert_count")));
    if (count == 0) return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(config.experts.count, Count("expert_count", kMostExperts));
  ASSIGN_OR_RETURN(config.experts.used, Count("expert_used_count", config.experts.count));
  config.experts.normalised = architecture_.normalised_experts;
  if (file_.Has(Key("expert_weights_norm"))) {
    ASSIGN_OR_RETURN(config.experts.normalised, file_.Bool(Key("expert_weights_norm")));
  }
  return ReadExpertSizes(config);
}

absl::Status ConfigReader::ReadExpertSizes(ModelConfig& config) const {
  // The size of Mixtral's experts is the file's only one; that of others is a share of it where it
  // is not given.
  const bool is_whole = architecture_.experts == ExpertUse::kWhereCounted;
  const int32_t share = is_whole ? config.ffn : std::max(1, config.ffn / config.experts.used);
  ASSIGN_OR_RETURN(config.experts.ffn, CountOr("expert_feed_forward_length", kMostFfn, share));
  if (!architecture_.shared_expert) return absl::OkStatus();
  ASSIGN_OR_RETURN(config.experts.shared_ffn,
                   CountOr("expert_shared_feed_forward_length", kMostFfn, config.ffn));
  return absl::OkStatus();
}

absl::Status ConfigReader::RefuseUnlessNeutral(std::span<const Neutral> keys) const {
  for (const auto& [name, neutral] : keys) {
    const std::string key = Key(name);
    if (!file_.Has(key)) continue;
    const absl::StatusOr<double> number = file_.Float(key);
    const absl::StatusOr<int64_t> integer = file_.Int(key);
    const double value = number.ok()    ? *number
                         : integer.ok() ? static_cast<double>(*integer)
                                        : kNone;
    if (value != neutral) return Unimplemented("{} is not supported", key);
  }
  return absl::OkStatus();
}

absl::Status ConfigReader::RefuseOptions() const {
  RETURN_IF_ERROR(RefuseUnlessNeutral(kNeutral));
  if (architecture_.local_period == 0) RETURN_IF_ERROR(RefuseUnlessNeutral(kNeutralWithoutWindow));
  if (!architecture_.softcaps) RETURN_IF_ERROR(RefuseUnlessNeutral(kNeutralWithoutSoftcaps));
  if (architecture_.experts == ExpertUse::kNever) {
    RETURN_IF_ERROR(RefuseUnlessNeutral(kNeutralWithoutExperts));
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
  RETURN_IF_ERROR(ReadRopes(config));
  RETURN_IF_ERROR(ReadWindow(config));
  RETURN_IF_ERROR(ReadScales(config));
  RETURN_IF_ERROR(ReadExperts(config));
  return config;
}

const Architecture* Find(std::string_view name) {
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.name == name) return &architecture;
  }
  return nullptr;
}

}  // namespace

absl::StatusOr<ModelConfig> ReadConfig(const GgufFile& file) {
  ASSIGN_OR_RETURN(std::string_view name, file.String("general.architecture"));
  const Architecture* architecture = Find(name);
  if (architecture == nullptr) {
    return Unimplemented("general.architecture \"{}\" is not supported", name);
  }
  return ConfigReader(file, *architecture).Read();
}

ArchitectureTensors TensorsOf(std::string_view name) {
  const Architecture* architecture = Find(name);
  return architecture == nullptr ? ArchitectureTensors{} : architecture->tensors;
}

}  // namespace trivium::model
