// For tests: the forward pass of one sequence written the plainest way, in float64, without pages,
// batches or the ops table. Keys and values are rounded to float16, as the KV cache keeps them.
// Stateless; safe from any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/model/model.h"

namespace trivium::engine {

struct NaiveResult {
  std::vector<std::vector<double>> logits;          // [token][vocab]
  std::vector<std::vector<std::vector<double>>> k;  // [layer][token][kv_heads * head_dim], rotated
  std::vector<std::vector<std::vector<double>>> v;  // [layer][token][kv_heads * head_dim]
};

NaiveResult NaiveForward(const model::Model& model, std::span<const int32_t> tokens);

}  // namespace trivium::engine
