// A loaded model: hyper-parameters, weight views into the mapped file, tokenizer, chat template.
// Architectures are data (a table of options in model.cc), not forks of the engine.
// Thread-safety: immutable after Load; shared by pointer.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/model/chat_template.h"
#include "common/model/gguf.h"
#include "common/model/rope.h"
#include "common/model/tokenizer.h"
#include "kernels/weights.h"

namespace trivium::model {

struct ModelConfig {
  std::string architecture;  // "llama"
  std::string name;          // general.name
  int32_t layers = 0;
  int32_t hidden = 0;
  int32_t heads = 0;     // query heads
  int32_t kv_heads = 0;  // divides heads
  int32_t head_dim = 0;
  int32_t ffn = 0;
  int32_t vocab = 0;
  int32_t context = 0;  // most positions of one sequence
  Rope rope;
  float rms_eps = 0;

  // Of float16 pages.
  int64_t KvBytesPerToken() const { return int64_t{layers} * 2 * kv_heads * head_dim * 2; }
};

struct LayerWeights {
  const float* attn_norm = nullptr;  // [hidden]
  const float* ffn_norm = nullptr;   // [hidden]
  kernels::WeightView q, k, v, attn_out, gate, up, down;
};

class Model {
 public:
  // Checks every tensor's presence, type and shape against the configuration before anything uses
  // it.
  static absl::StatusOr<std::shared_ptr<const Model>> Load(const std::string& path);
  // For who has packed the weights: the file's own copy of them leaves the memory of the process.
  void DropPages() const { file_->DropPages(); }

  ModelConfig config;
  kernels::WeightView embedding;  // [vocab, hidden]
  kernels::WeightView output;     // [vocab, hidden]; the embedding where the file ties them
  const float* output_norm = nullptr;
  std::vector<LayerWeights> layers;
  std::unique_ptr<Tokenizer> tokenizer;
  ChatTemplate chat_template;
  std::string path;
  // Hex of 32 bytes of BLAKE2b-512 over (file content, tokenizer digest, RoPE and attention
  // settings, KV format): workers with different fingerprints never exchange KV.
  std::string fingerprint;

 private:
  absl::Status LoadWeights();

  std::unique_ptr<GgufFile> file_;
};

}  // namespace trivium::model
