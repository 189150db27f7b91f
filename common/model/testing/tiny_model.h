// Writes a small model with random weights, a `smollm` tokenizer and a ChatML template: what tests
// of the engine and the services load in milliseconds. Stateless; safe from any thread.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "common/base/status.h"
#include "kernels/weights.h"

namespace trivium::model {

struct TinyModelOptions {
  std::string architecture = "llama";  // any of architecture.h
  std::string name = "tiny";           // general.name
  int layers = 4;
  int hidden = 64;
  int heads = 4;
  int kv_heads = 2;
  int head_dim = 16;
  int ffn = 128;         // of an expert where there are some
  int experts = 0;       // of each layer
  int experts_used = 2;  // a row
  int shared_ffn = 0;    // of the expert that every row passes
  int window = 0;        // of the layers that see no more
  float softcap = 0;     // of scores, and of logits twice as much
  int vocab = 320;       // from 260 to 935: 3 control tokens, 256 bytes, the rest merges
  int context = 2048;
  kernels::WeightType linear_type = kernels::WeightType::kF32;
  kernels::WeightType embedding_type = kernels::WeightType::kF32;
  std::vector<std::pair<std::string, int>> extra_numbers = {};  // keys that no option here has
  bool tied_embedding = false;    // true: no output.weight; greedy text then tends to repeat itself
  bool as_float = false;          // true: every matrix as F32, with the values of its type
  std::string rope_scaling = {};  // "linear", "yarn", "llama3" (a tensor of factors) or "longrope"
  int parts = 1;      // files; of several, PATH is what stands before -00001-of-0000N.gguf
  uint64_t seed = 1;  // the same options give the same bytes
};

// An instance of each family: "llama", "qwen2", "qwen3", "gemma3", "mixtral", "qwen2moe",
// "qwen3moe".
TinyModelOptions TinyModelOf(const std::string& family);

// INVALID_ARGUMENT for sizes that no model can have (a vocabulary out of range, columns that are
// not whole blocks of the weight type) or a path that cannot be written.
absl::Status WriteTinyModel(const std::string& path, const TinyModelOptions& options = {});

}  // namespace trivium::model
