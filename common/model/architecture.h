// What a file says about its transformer, checked: the architectures that we run, as a table of
// options. Stateless; safe from any thread.
//
//   llama      pre-norm, RoPE, SiLU gates; with expert_count Mixtral (Jiang et al.,
//   arXiv:2401.04088) qwen2      biases of q, k and v (Yang et al., arXiv:2407.10671); qwen2moe:
//   experts beside a
//              shared one, their weights as the softmax over all gives them
//   qwen3      RMSNorm of each head of q and k (Yang et al., arXiv:2505.09388); qwen3moe: experts
//   gemma3     layers with a window between those that see everything, norms on both sides of
//              attention and FFN, GELU, a scaled embedding (Gemma Team, arXiv:2503.19786)
#pragma once

#include "common/base/status.h"
#include "common/model/gguf.h"
#include "common/model/model.h"

namespace trivium::model {

// UNIMPLEMENTED for an architecture or an option that we do not run, INVALID_ARGUMENT for numbers
// that cannot be; both name the key.
absl::StatusOr<ModelConfig> ReadConfig(const GgufFile& file);

// Which tensors a layer has beside those that all have.
struct ArchitectureTensors {
  bool qkv_bias = false;
  bool qk_norm = false;
  bool post_norms = false;
};

// None for a name that ReadConfig does not accept.
ArchitectureTensors TensorsOf(std::string_view architecture);

}  // namespace trivium::model
