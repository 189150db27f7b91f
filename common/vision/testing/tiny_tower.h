// Writes a small tower of SmolVLM's kind with random weights, as an mmproj file: what tests of the
// encode stage load in milliseconds. Stateless; safe from any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/base/status.h"

namespace trivium::vision {

// The default: slices of 32 x 32 pixels, of which each gives 16 tokens.
struct TinyTowerOptions {
  std::string kind = "idefics3";
  int32_t image = 32;
  int32_t patch = 4;
  int32_t hidden = 24;
  int32_t heads = 3;
  int32_t ffn = 48;
  int32_t layers = 2;
  int32_t merge = 2;
  int32_t out_hidden = 16;
  int32_t longest_edge = 64;  // so that pictures are cut into up to four tiles
  uint32_t seed = 1;          // the same options give the same bytes
  std::string without = {};   // leaves out this tensor
  std::string extra = {};     // adds a tensor of this name
};

// The names of all tensors, in the order of the file.
std::vector<std::string> TinyTowerTensors(const TinyTowerOptions& options);

// INVALID_ARGUMENT: the path cannot be written.
absl::Status WriteTinyTower(const std::string& path, const TinyTowerOptions& options = {});

}  // namespace trivium::vision
