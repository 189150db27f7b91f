// A vision tower and its projector, loaded from an `mmproj` GGUF file as llama.cpp's converter
// writes it: clip.* metadata, v.* and mm.* tensors.
//
// Thread-safety: immutable after Load; shared by pointer.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/model/gguf.h"
#include "common/vision/tower_config.h"
#include "kernels/weights.h"

namespace trivium::vision {

// y = x * weight^T + bias; no bias: empty.
struct Linear {
  kernels::WeightView weight;
  std::vector<float> bias;
};

struct LayerNormWeights {
  std::vector<float> weight, bias;  // empty where the tower has no such norm
};

struct TowerLayer {
  LayerNormWeights norm1, norm2;
  Linear q, k, v, attn_out, up, down;
};

class Tower {
 public:
  // Checks every tensor's presence, type and shape against the configuration before anything uses
  // it, and refuses tensors that nobody would read: they would change the result.
  static absl::StatusOr<std::shared_ptr<const Tower>> Load(const std::string& path);

  TowerConfig config;
  Linear patch;  // [hidden, 3 * patch * patch], inputs by channel, row, column
  std::vector<float> class_embedding;  // [hidden], or empty
  std::vector<float> positions;        // [rows of a slice, hidden], or empty
  LayerNormWeights pre_norm, post_norm;
  std::vector<TowerLayer> layers;
  std::vector<Linear> projector;  // one after another, with a GELU between
  // Hex of 32 bytes over the file's content and what we make of its options: equal fingerprints
  // under one numerics class give equal tokens.
  std::string fingerprint;

 private:
  absl::Status LoadWeights();

  std::unique_ptr<model::GgufFile> file_;
  std::vector<float> patch_sum_;  // Qwen2-VL's two matrices for two frames, added
};

}  // namespace trivium::vision
