#include "common/engine/forward.h"

#include <cmath>

namespace trivium::engine {
namespace {

void GrowTo(std::vector<float>& buffer, int64_t elems) {
  if (buffer.size() < static_cast<size_t>(elems)) buffer.resize(static_cast<size_t>(elems));
}

}  // namespace

struct Forward::Layer {
  std::unique_ptr<kernels::Matrix> q, k, v, attn_out, gate, up, down;
};

void Rows::Reserve(const model::ModelConfig& config) {
  const int64_t q_width = int64_t{config.heads} * config.head_dim;
  const int64_t kv_width = int64_t{config.kv_heads} * config.head_dim;
  for (auto* buffer : {&x, &normed, &projected}) GrowTo(*buffer, int64_t{count} * config.hidden);
  for (auto* buffer : {&q, &attn}) GrowTo(*buffer, count * q_width);
  for (auto* buffer : {&k, &v}) GrowTo(*buffer, count * kv_width);
  for (auto* buffer : {&gate, &up}) GrowTo(*buffer, int64_t{count} * config.ffn);
}

Forward::Forward(const model::Model& model, kernels::Ops& ops) : model_(model), ops_(ops) {
  layers_.reserve(model_.layers.size());
  for (const model::LayerWeights& layer : model_.layers) {
    layers_.push_back({ops_.Pack(layer.q), ops_.Pack(layer.k), ops_.Pack(layer.v),
                       ops_.Pack(layer.attn_out), ops_.Pack(layer.gate), ops_.Pack(layer.up),
                       ops_.Pack(layer.down)});
  }
  output_ = ops_.Pack(model_.output);
  model_.DropPages();
}

Forward::~Forward() = default;

void Forward::Embed(std::span<const int32_t> ids, Rows& rows) {
  ops_.EmbedRows(model_.embedding, ids, rows.x.data());
}

void Forward::ComputeKv(int layer, kv::KvStorage& storage, Rows& rows) {
  const model::ModelConfig& config = model_.config;
  const Layer& packed = layers_[static_cast<size_t>(layer)];
  ops_.RmsNorm(rows.x.data(), model_.layers[static_cast<size_t>(layer)].attn_norm, config.rms_eps,
               rows.count, config.hidden, rows.normed.data());
  ops_.Matmul(*packed.k, rows.normed.data(), rows.count, rows.k.data());
  ops_.Matmul(*packed.v, rows.normed.data(), rows.count, rows.v.data());
  ops_.Rope({.x = rows.k.data(),
             .positions = rows.positions.data(),
             .rows = rows.count,
             .heads = config.kv_heads,
             .head_dim = config.head_dim,
             .frequencies = config.rope.frequencies,
             .scale = config.rope.scale});
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
  ops_.Matmul(*packed.q, rows.normed.data(), rows.count, rows.q.data());
  ops_.Rope({.x = rows.q.data(),
             .positions = rows.positions.data(),
             .rows = rows.count,
             .heads = config.heads,
             .head_dim = config.head_dim,
             .frequencies = config.rope.frequencies,
             .scale = config.rope.scale});
  ops_.Attention({.q = rows.q.data(),
                  .positions = rows.positions.data(),
                  .spans = rows.spans,
                  .kv_layer = storage.layer(layer),
                  .layout = storage.layout(),
                  .heads = config.heads,
                  .scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim)),
                  .out = rows.attn.data(),
                  .lse = nullptr,
                  .kv_bytes_read = &rows.kv_bytes_read});
  const int64_t residual = int64_t{rows.count} * config.hidden;
  ops_.Matmul(*packed.attn_out, rows.attn.data(), rows.count, rows.projected.data());
  ops_.Add(rows.x.data(), rows.projected.data(), residual);

  ops_.RmsNorm(rows.x.data(), model_.layers[static_cast<size_t>(layer)].ffn_norm, config.rms_eps,
               rows.count, config.hidden, rows.normed.data());
  ops_.Matmul(*packed.gate, rows.normed.data(), rows.count, rows.gate.data());
  ops_.Matmul(*packed.up, rows.normed.data(), rows.count, rows.up.data());
  ops_.ActivateMul(kernels::Activation::kSilu, rows.gate.data(), rows.up.data(),
                   int64_t{rows.count} * config.ffn);
  ops_.Matmul(*packed.down, rows.gate.data(), rows.count, rows.projected.data());
  ops_.Add(rows.x.data(), rows.projected.data(), residual);
}

void Forward::ComputeLogits(Rows& rows, float* logits) {
  const model::ModelConfig& config = model_.config;
  ops_.RmsNorm(rows.x.data(), model_.output_norm, config.rms_eps, rows.count, config.hidden,
               rows.normed.data());
  ops_.Matmul(*output_, rows.normed.data(), rows.count, logits);
}

}  // namespace trivium::engine
