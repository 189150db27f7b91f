#include "common/engine/forward.h"

#include <optional>

#include "common/base/buffer.h"

namespace trivium::engine {

struct Forward::Layer {
  std::unique_ptr<kernels::Matrix> q, k, v, attn_out;
  std::optional<FeedForward> ffn;  // or experts
  std::optional<Experts> experts;
};

void Rows::Reserve(const model::ModelConfig& config) {
  const int64_t q_width = int64_t{config.heads} * config.head_dim;
  const int64_t kv_width = int64_t{config.kv_heads} * config.head_dim;
  for (auto* buffer : {&x, &normed, &projected}) GrowTo(*buffer, int64_t{count} * config.hidden);
  for (auto* buffer : {&q, &attn}) GrowTo(*buffer, count * q_width);
  for (auto* buffer : {&k, &v}) GrowTo(*buffer, count * kv_width);
}

Forward::Forward(const model::Model& model, kernels::Ops& ops) : model_(model), ops_(ops) {
  layers_.reserve(model_.layers.size());
  for (const model::LayerWeights& layer : model_.layers) {
    Layer& packed = layers_.emplace_back(Layer{.q = ops_.Pack(layer.q),
                                               .k = ops_.Pack(layer.k),
                                               .v = ops_.Pack(layer.v),
                                               .attn_out = ops_.Pack(layer.attn_out),
                                               .ffn = {},
                                               .experts = {}});
    if (layer.experts.empty()) {
      packed.ffn.emplace(layer.ffn, model_.config.activation, ops_);
    } else {
      packed.experts.emplace(layer, model_.config, ops_);
    }
  }
  output_ = ops_.Pack(model_.output);
  model_.DropPages();
}

Forward::~Forward() = default;

void Forward::Embed(std::span<const int32_t> ids, Rows& rows) {
  const model::ModelConfig& config = model_.config;
  ops_.EmbedRows(model_.embedding, ids, rows.x.data());
  if (config.embedding_scale != 1) {
    ops_.Scale(rows.x.data(), config.embedding_scale,
               static_cast<int64_t>(ids.size()) * config.hidden);
  }
}

void Forward::FinishHeads(int layer, const Rows& rows, const float* bias, const float* norm,
                          int heads, float* x) {
  const model::ModelConfig& config = model_.config;
  const model::Rope& rope = config.RopeOf(layer);
  if (bias != nullptr) ops_.encoder().AddBias(x, bias, rows.count, heads * config.head_dim);
  if (norm != nullptr) {
    ops_.RmsNorm(x, norm, config.rms_eps, rows.count * heads, config.head_dim, x);
  }
  ops_.Rope({.x = x,
             .pairs = config.rope_pairs,
             .positions = rows.positions.data(),
             .rows = rows.count,
             .heads = heads,
             .head_dim = config.head_dim,
             .frequencies = rope.frequencies,
             .scale = rope.scale});
}

void Forward::ComputeKv(int layer, kv::KvStorage& storage, bool all_go_on, Rows& rows) {
  const model::ModelConfig& config = model_.config;
  const Layer& packed = layers_[static_cast<size_t>(layer)];
  const model::LayerWeights& weights = model_.layers[static_cast<size_t>(layer)];
  ops_.RmsNorm(rows.x.data(), weights.attn_norm, config.rms_eps, rows.count, config.hidden,
               rows.normed.data());
  const kernels::Product products[] = {{packed.k.get(), rows.k.data()},
                                       {packed.v.get(), rows.v.data()},
                                       {packed.q.get(), rows.q.data()}};
  ops_.MatmulAll(std::span(products).first(all_go_on ? 3 : 2), rows.normed.data(), rows.count);
  rows.has_q = all_go_on;
  FinishHeads(layer, rows, weights.k_bias, weights.k_norm, config.kv_heads, rows.k.data());
  if (weights.v_bias != nullptr) {
    ops_.encoder().AddBias(rows.v.data(), weights.v_bias, rows.count,
                           config.kv_heads * config.head_dim);
  }
  ops_.StoreKv({.k = rows.k.data(),
                .v = rows.v.data(),
                .positions = rows.positions.data(),
                .spans = rows.spans,
                .kv_layer = storage.layer(layer),
                .layout = storage.layout()});
}

void Forward::AttendAndFeedForward(int layer, kv::KvStorage& storage, Rows& rows) {
  const model::ModelConfig& config = model_.config;
  const Layer& packed = layers_[static_cast<size_t>(layer)];
  const model::LayerWeights& weights = model_.layers[static_cast<size_t>(layer)];
  if (!rows.has_q) ops_.Matmul(*packed.q, rows.normed.data(), rows.count, rows.q.data());
  FinishHeads(layer, rows, weights.q_bias, weights.q_norm, config.heads, rows.q.data());
  ops_.Attention({.q = rows.q.data(),
                  .positions = rows.positions.data(),
                  .spans = rows.spans,
                  .kv_layer = storage.layer(layer),
                  .layout = storage.layout(),
                  .heads = config.heads,
                  .scale = config.attention_scale,
                  .window = config.WindowOf(layer),
                  .softcap = config.attention_softcap,
                  .out = rows.attn.data(),
                  .lse = nullptr,
                  .kv_bytes_read = &rows.kv_bytes_read});
  ops_.Matmul(*packed.attn_out, rows.attn.data(), rows.count, rows.projected.data());
  AddProjected(rows, weights.attn_post_norm);

  ops_.RmsNorm(rows.x.data(), weights.ffn_norm, config.rms_eps, rows.count, config.hidden,
               rows.normed.data());
  RunFeedForward(layer, rows);
  AddProjected(rows, weights.ffn_post_norm);
}

void Forward::AddProjected(Rows& rows, const float* post_norm) {
  const model::ModelConfig& config = model_.config;
  float* added = rows.projected.data();
  if (post_norm != nullptr) {
    ops_.RmsNorm(added, post_norm, config.rms_eps, rows.count, config.hidden, added);
  }
  ops_.Add(rows.x.data(), added, int64_t{rows.count} * config.hidden);
}

void Forward::RunFeedForward(int layer, Rows& rows) {
  const Layer& packed = layers_[static_cast<size_t>(layer)];
  if (packed.ffn) {
    packed.ffn->Run(ops_, rows.normed.data(), rows.count, rows.ffn, rows.projected.data());
  } else {
    rows.expert_bytes_read += packed.experts->Run(ops_, rows.normed.data(), rows.count,
                                                  rows.experts, rows.projected.data());
  }
}

void Forward::ComputeLogits(Rows& rows, float* logits) {
  const model::ModelConfig& config = model_.config;
  ops_.RmsNorm(rows.x.data(), model_.output_norm, config.rms_eps, rows.count, config.hidden,
               rows.normed.data());
  ops_.Matmul(*output_, rows.normed.data(), rows.count, logits);
  if (config.logit_softcap != 0) {
    ops_.SoftCap(logits, config.logit_softcap, int64_t{rows.count} * config.vocab);
  }
}

}  // namespace trivium::engine
