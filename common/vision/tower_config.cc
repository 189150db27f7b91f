#include "common/vision/tower_config.h"

#include <cmath>
#include <string_view>

namespace trivium::vision {
namespace {

// A kind of tower, by what its file calls the projector.
struct Kind {
  std::string_view name;
  Slicing slicing;
  bool rotary;
  bool scaled;  // says how many patches make a token; else default_merge holds
  int32_t default_merge;
  std::vector<std::string> projector;
};

const std::vector<Kind>& Kinds() {
  static const auto* kinds = new std::vector<Kind>{
      {"idefics3", Slicing::kTiles, false, true, 1, {"mm.model.fc"}},
      {"mlp", Slicing::kCentre, false, false, 1, {"mm.0", "mm.2"}},
      {"qwen2vl_merger", Slicing::kWhole, true, false, 2, {"mm.0", "mm.2"}},
  };
  return *kinds;
}

// Options that change what a tower does, and that none of the kinds above has.
constexpr std::string_view kForbidden[] = {
    "clip.vision.feature_layer",       "clip.vision.image_grid_pinpoints",
    "clip.vision.mm_patch_merge_type", "clip.vision.n_wa_pattern",
    "clip.vision.wa_layer_indexes",    "clip.vision.window_size",
    "clip.vision.is_deepstack_layers"};

// Qwen2-VL's own, where the file does not say.
constexpr int64_t kPixelsMin = 56 * 56, kPixelsMax = 28 * 28 * 1280;

class ConfigReader {
 public:
  ConfigReader(const model::GgufFile& file, const Kind& kind) : file_(file), kind_(kind) {}
  absl::StatusOr<TowerConfig> Read();

 private:
  // Within 1 … most.
  absl::StatusOr<int32_t> Size(std::string_view key, int64_t most) const {
    ASSIGN_OR_RETURN(const int64_t value, file_.Int(key));
    if (value < 1 || value > most) {
      return InvalidArgument("{} is {}; it must lie in 1 … {}", key, value, most);
    }
    return static_cast<int32_t>(value);
  }
  absl::StatusOr<int64_t> SizeOr(std::string_view key, int64_t most, int64_t otherwise) const {
    if (!file_.Has(key)) return otherwise;
    ASSIGN_OR_RETURN(const int32_t value, Size(key, most));
    return value;
  }
  absl::StatusOr<bool> Flag(std::string_view key) const {
    if (!file_.Has(key)) return false;
    return file_.Bool(key);
  }

  absl::StatusOr<std::array<float, 3>> Colours(std::string_view key) const;
  absl::Status ReadSizes(TowerConfig& config) const;
  absl::Status ReadActivation(TowerConfig& config) const;
  absl::Status ReadSlicing(TowerConfig& config) const;
  absl::Status RefuseOptions() const;

  const model::GgufFile& file_;
  const Kind& kind_;
};

absl::StatusOr<std::array<float, 3>> ConfigReader::Colours(std::string_view key) const {
  ASSIGN_OR_RETURN(const std::vector<float> values, file_.Floats(key));
  if (values.size() != 3) return InvalidArgument("{} holds {} numbers, not 3", key, values.size());
  for (float value : values) {
    if (!std::isfinite(value)) return InvalidArgument("{} holds no number", key);
  }
  return std::array<float, 3>{values[0], values[1], values[2]};
}

absl::Status ConfigReader::ReadSizes(TowerConfig& config) const {
  ASSIGN_OR_RETURN(config.image_size, Size("clip.vision.image_size", 4096));
  ASSIGN_OR_RETURN(config.patch_size, Size("clip.vision.patch_size", 256));
  ASSIGN_OR_RETURN(config.layers, Size("clip.vision.block_count", 256));
  ASSIGN_OR_RETURN(config.hidden, Size("clip.vision.embedding_length", 16384));
  ASSIGN_OR_RETURN(config.heads, Size("clip.vision.attention.head_count", 256));
  ASSIGN_OR_RETURN(config.ffn, Size("clip.vision.feed_forward_length", 65536));
  config.merge = kind_.default_merge;
  if (kind_.scaled) {
    ASSIGN_OR_RETURN(config.merge, Size("clip.vision.projector.scale_factor", 16));
  }
  if (config.hidden % config.heads != 0 || (config.rotary && config.head_dim() % 4 != 0)) {
    return InvalidArgument("clip.vision.attention.head_count: {} heads in {} elements",
                           config.heads, config.hidden);
  }
  ASSIGN_OR_RETURN(const double eps, file_.Float("clip.vision.attention.layer_norm_epsilon"));
  config.norm_eps = static_cast<float>(eps);
  if (!(config.norm_eps > 0) || !std::isfinite(config.norm_eps)) {
    return InvalidArgument("clip.vision.attention.layer_norm_epsilon is {}", eps);
  }
  return absl::OkStatus();
}

// The converter marks two of them; a file without a mark is OpenAI's CLIP or like it.
absl::Status ConfigReader::ReadActivation(TowerConfig& config) const {
  ASSIGN_OR_RETURN(const bool gelu, Flag("clip.use_gelu"));
  ASSIGN_OR_RETURN(const bool silu, Flag("clip.use_silu"));
  if (gelu && silu) return InvalidArgument("clip.use_gelu and clip.use_silu are both true");
  config.activation = kernels::Activation::kQuickGelu;
  if (gelu) config.activation = kernels::Activation::kGeluTanh;
  if (silu) config.activation = kernels::Activation::kSilu;
  return absl::OkStatus();
}

absl::Status ConfigReader::ReadSlicing(TowerConfig& config) const {
  if (config.slicing == Slicing::kWhole) {
    ASSIGN_OR_RETURN(config.pixels_min,
                     SizeOr("clip.vision.image_min_pixels", INT32_MAX, kPixelsMin));
    ASSIGN_OR_RETURN(config.pixels_max,
                     SizeOr("clip.vision.image_max_pixels", INT32_MAX, kPixelsMax));
    const int64_t patches = config.pixels_max / (config.patch_size * config.patch_size);
    if (config.pixels_min > config.pixels_max || patches > kMaxSliceRows) {
      return InvalidArgument("clip.vision.image_max_pixels is {}: {} patches of at most {}",
                             config.pixels_max, patches, kMaxSliceRows);
    }
    return absl::OkStatus();
  }
  if (config.image_size % config.token_side() != 0) {
    return InvalidArgument(
        "clip.vision.image_size is {}, which is not cut into tokens of {} pixels",
        config.image_size, config.token_side());
  }
  const int64_t rows = config.RowsOf(config.image_size, config.image_size);
  if (rows > kMaxSliceRows) {
    return InvalidArgument("clip.vision.image_size is {}: {} patches of at most {}",
                           config.image_size, rows, kMaxSliceRows);
  }
  ASSIGN_OR_RETURN(const int64_t edge,
                   SizeOr("clip.vision.preproc_image_size", 65536, config.image_size));
  config.longest_edge = static_cast<int32_t>(edge);
  return absl::OkStatus();
}

absl::Status ConfigReader::RefuseOptions() const {
  for (std::string_view key : kForbidden) {
    if (file_.Has(key)) return Unimplemented("{} is not supported", key);
  }
  return absl::OkStatus();
}

absl::StatusOr<TowerConfig> ConfigReader::Read() {
  TowerConfig config;
  config.kind = kind_.name;
  config.slicing = kind_.slicing;
  config.rotary = kind_.rotary;
  config.projector = kind_.projector;
  config.class_token = file_.Tensor("v.class_embd").ok();
  RETURN_IF_ERROR(RefuseOptions());
  RETURN_IF_ERROR(ReadSizes(config));
  RETURN_IF_ERROR(ReadActivation(config));
  RETURN_IF_ERROR(ReadSlicing(config));
  ASSIGN_OR_RETURN(config.mean, Colours("clip.vision.image_mean"));
  ASSIGN_OR_RETURN(config.deviation, Colours("clip.vision.image_std"));
  for (float deviation : config.deviation) {
    if (deviation == 0) return InvalidArgument("clip.vision.image_std holds a 0");
  }
  return config;
}

}  // namespace

absl::StatusOr<TowerConfig> ReadTowerConfig(const model::GgufFile& file) {
  ASSIGN_OR_RETURN(const std::string_view architecture, file.String("general.architecture"));
  if (architecture != "clip") {
    return Unimplemented("general.architecture \"{}\" is no vision tower", architecture);
  }
  const char* key =
      file.Has("clip.projector_type") ? "clip.projector_type" : "clip.vision.projector_type";
  ASSIGN_OR_RETURN(const std::string_view name, file.String(key));
  for (const Kind& kind : Kinds()) {
    if (kind.name == name) return ConfigReader(file, kind).Read();
  }
  return Unimplemented("{} \"{}\" is not supported", key, name);
}

}  // namespace trivium::vision
