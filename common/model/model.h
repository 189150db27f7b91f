// A loaded model: hyper-parameters, weight views into the mapped file, tokenizer, chat template.
// Architectures are data (a table of options in architecture.cc), not forks of the engine.
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
#include "kernels/ops.h"
#include "kernels/weights.h"

namespace trivium::model {

// Layers whose feed-forward network is many small ones, of which a router picks a few a row.
struct ExpertConfig {
  int32_t count = 0;       // 0: no layer has experts
  int32_t used = 0;        // a row
  int32_t ffn = 0;         // inner size of one
  int32_t shared_ffn = 0;  // inner size of the one that every row passes; 0: none
  bool normalised = true;  // the weights of those used add up to one
};

struct ModelConfig {
  std::string architecture;  // "llama"
  std::string name;          // general.name
  int32_t layers = 0;
  int32_t hidden = 0;
  int32_t heads = 0;     // query heads
  int32_t kv_heads = 0;  // divides heads
  int32_t head_dim = 0;
  int32_t ffn = 0;  // inner size, of layers without experts
  int32_t vocab = 0;
  int32_t context = 0;  // most positions of one sequence
  Rope rope;
  kernels::RopePairs rope_pairs = kernels::RopePairs::kAdjacent;
  float rms_eps = 0;
  float embedding_scale = 1;
  float attention_scale = 0;
  float attention_softcap = 0;  // 0: none
  float logit_softcap = 0;      // 0: none
  kernels::Activation activation = kernels::Activation::kSilu;
  ExpertConfig experts;
  // Local layers see the last `window` keys only, and have a rotation of their own.
  std::vector<bool> local_layers;  // [layers], or empty
  int32_t window = 0;
  Rope local_rope;

  bool IsLocal(int layer) const {
    return !local_layers.empty() && local_layers[static_cast<size_t>(layer)];
  }
  const Rope& RopeOf(int layer) const { return IsLocal(layer) ? local_rope : rope; }
  int32_t WindowOf(int layer) const { return IsLocal(layer) ? window : 0; }

  // Of float16 pages.
  int64_t KvBytesPerToken() const { return int64_t{layers} * 2 * kv_heads * head_dim * 2; }
};

// down(activation(gate x) * up x)
struct FfnWeights {
  kernels::WeightView gate, up;  // [ffn, hidden]
  kernels::WeightView down;      // [hidden, ffn]
};

// What an architecture does not have is null or empty.
struct LayerWeights {
  const float* attn_norm = nullptr;       // [hidden]
  const float* ffn_norm = nullptr;        // [hidden]
  const float* attn_post_norm = nullptr;  // [hidden], of what attention adds
  const float* ffn_post_norm = nullptr;   // [hidden], of what the feed-forward network adds
  const float* q_norm = nullptr;          // [head_dim], of each head before it is rotated
  const float* k_norm = nullptr;
  const float* q_bias = nullptr;  // [heads * head_dim]
  const float* k_bias = nullptr;  // [kv_heads * head_dim]
  const float* v_bias = nullptr;
  kernels::WeightView q, k, v, attn_out;
  FfnWeights ffn;                     // without experts
  kernels::WeightView router;         // [experts, hidden]
  std::vector<FfnWeights> experts;    // [experts]
  FfnWeights shared;                  // what every row passes
  kernels::WeightView shared_router;  // [1, hidden]
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
