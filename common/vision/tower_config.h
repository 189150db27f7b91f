// What an mmproj file says about its vision tower, checked. The kinds of towers that we run are
// rows of a table of options (tower_config.cc), not forks of the code. Plain data and a stateless
// function; safe from any thread.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/model/gguf.h"
#include "kernels/encoder_ops.h"

namespace trivium::vision {

// How a picture becomes slices: pictures of the size that the tower takes.
enum class Slicing : uint8_t {
  kTiles,   // Idefics3, SmolVLM: a grid of square tiles and a view of the whole picture
  kCentre,  // CLIP, LLaVA: the shorter edge resized, the square in the middle kept
  kWhole,   // Qwen2-VL: one slice of about the picture's own size and shape
};

struct TowerConfig {
  std::string kind;  // clip.projector_type, as "idefics3"
  Slicing slicing{};
  kernels::Activation activation{};  // of the layers' feed-forward part
  bool rotary = false;       // positions rotate queries and keys (by row and column); else learned
  bool class_token = false;  // a row in front of the patches, that gives no token
  int32_t image_size = 0;    // side of a slice; a multiple of patch_size
  int32_t patch_size = 0;
  int32_t layers = 0;  // those of the file, all run: of LLaVA's, the converter leaves out the last
  int32_t hidden = 0;
  int32_t heads = 0;
  int32_t ffn = 0;
  // Patches a token, in each direction: side by side in one row, from which the projector makes it.
  int32_t merge = 1;
  int32_t out_hidden = 0;  // of a token: that of the language model
  float norm_eps = 0;
  std::array<float, 3> mean{}, deviation{};  // of red, green, blue in 0 … 1
  int32_t longest_edge = 0;                  // kTiles: what the longer edge is first resized to
  int64_t pixels_min = 0, pixels_max = 0;    // kWhole: of the slice

  std::vector<std::string> projector;  // names of its matrices in order, a GELU between two

  int32_t head_dim() const { return hidden / heads; }
  int64_t patch_inputs() const { return int64_t{3} * patch_size * patch_size; }
  int64_t projector_inputs() const { return int64_t{hidden} * merge * merge; }
  int32_t token_side() const { return patch_size * merge; }  // in pixels
  // Rows that a slice takes in the layers.
  int64_t RowsOf(int32_t width, int32_t height) const {
    return int64_t{width / patch_size} * (height / patch_size) + (class_token ? 1 : 0);
  }
};

// Rows of one slice, at the most: what working memory is bounded by.
inline constexpr int64_t kMaxSliceRows = 8192;

// UNIMPLEMENTED for a projector or an option that we do not run, INVALID_ARGUMENT for numbers that
// cannot be; both name the key. `out_hidden` stays 0: the projector's tensors say it.
absl::StatusOr<TowerConfig> ReadTowerConfig(const model::GgufFile& file);

}  // namespace trivium::vision
