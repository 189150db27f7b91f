// The layers of a transformer, applied to packed rows. It knows neither batches nor blocks: who
// calls says which rows there are, where they stand and where their keys and values lie.
//
// Thread-safety: one thread, that of the Ops. Invariants: a row's values depend on its own sequence
// alone; rows that went through layer n are what layer n + 1 takes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/engine/experts.h"
#include "common/engine/feed_forward.h"
#include "common/kv/kv_storage.h"
#include "common/model/model.h"
#include "kernels/ops.h"

namespace trivium::engine {

// The rows that a layer is to process. `x`, `positions` and `spans` are the caller's; the rest is
// room that Forward works in. Buffers grow to the most rows seen and stay.
struct Rows {
  int count = 0;
  std::vector<int32_t> positions;            // [count]
  std::vector<kernels::SequenceSpan> spans;  // cover every row once
  std::vector<float> x;                      // [count, hidden], the residual stream
  std::vector<float> normed;                 // [count, hidden]
  std::vector<float> q;                      // [count, heads, head_dim]; maybe made with k and v
  std::vector<float> k, v;                   // [count, kv_heads, head_dim]
  std::vector<float> attn;                   // [count, heads, head_dim]
  std::vector<float> projected;              // [count, hidden]
  FeedForward::Scratch ffn;
  Experts::Scratch experts;
  bool has_q = false;
  int64_t kv_bytes_read = 0;      // by attention, added up
  int64_t expert_bytes_read = 0;  // weights of routed experts, added up

  // Makes room for `count` rows.
  void Reserve(const model::ModelConfig& config);
};

class Forward {
 public:
  // Packs the weights. Model and Ops must outlive it.
  Forward(const model::Model& model, kernels::Ops& ops);
  ~Forward();
  Forward(const Forward&) = delete;
  Forward& operator=(const Forward&) = delete;

  void Embed(std::span<const int32_t> ids, Rows& rows);
  // First half of a layer: keys and values of all rows are in the storage afterwards, and `normed`
  // is what the second half starts from. Where all rows go on, their queries may be made here.
  void ComputeKv(int layer, kv::KvStorage& storage, bool all_go_on, Rows& rows);
  // Second half. Rows may have been dropped in between, unless all were to go on.
  void AttendAndFeedForward(int layer, kv::KvStorage& storage, Rows& rows);
  // logits[count, vocab]; rows that went through all layers.
  void ComputeLogits(Rows& rows, float* logits);

 private:
  struct Layer;

  // Adds a bias, normalises each head and rotates, as far as the architecture does.
  void FinishHeads(int layer, const Rows& rows, const float* bias, const float* norm, int heads,
                   float* x);
  // x += projected, normalised where the architecture does so.
  void AddProjected(Rows& rows, const float* post_norm);
  void RunFeedForward(int layer, Rows& rows);

  const model::Model& model_;
  kernels::Ops& ops_;
  std::vector<Layer> layers_;
  std::unique_ptr<kernels::Matrix> output_;
};

}  // namespace trivium::engine
