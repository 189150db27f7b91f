#include "common/engine/engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "common/engine/shared_prefix.h"

namespace trivium::engine {
namespace {

template <typename T>
void GrowTo(std::vector<T>& buffer, int64_t elems) {
  if (buffer.size() < static_cast<size_t>(elems)) buffer.resize(static_cast<size_t>(elems));
}

// Moves the rows named by `rows` (ascending) to the front.
template <typename T>
void CompactRows(std::vector<T>& buffer, const std::vector<int>& rows, int64_t width) {
  for (size_t i = 0; i < rows.size(); ++i) {
    const T* from = buffer.data() + rows[i] * width;
    std::memmove(buffer.data() + static_cast<int64_t>(i) * width, from,
                 static_cast<size_t>(width) * sizeof(T));
  }
}

int LogitRows(const SequenceRange& range) {
  switch (range.logits) {
    case LogitsWanted::kNone:
      return 0;
    case LogitsWanted::kLast:
      return 1;
    case LogitsWanted::kAll:
      return static_cast<int>(range.tokens.size());
  }
  return 0;
}

}  // namespace

struct Engine::PackedLayer {
  std::unique_ptr<kernels::Matrix> q, k, v, attn_out, gate, up, down;
};

struct Engine::Workspace {
  std::vector<PackedLayer> layers;
  std::unique_ptr<kernels::Matrix> output;

  // The step at hand. `rows` falls to the logit rows in the last layer.
  int rows = 0;
  std::vector<int32_t> ids;
  std::vector<int32_t> positions;
  std::vector<kernels::SequenceSpan> spans;
  std::vector<int> logit_rows;  // the packed rows whose logits are wanted, ascending
  std::vector<kernels::SequenceSpan> logit_spans;
  std::vector<int> first_row;
  int64_t kv_bytes_read = 0;
  std::vector<bool> written;  // by block of the storage; all false between steps

  std::vector<float> x;          // [rows, hidden], the residual stream
  std::vector<float> normed;     // [rows, hidden]
  std::vector<float> q;          // [rows, heads, head_dim]
  std::vector<float> k, v;       // [rows, kv_heads, head_dim]
  std::vector<float> attn;       // [rows, heads, head_dim]
  std::vector<float> gate, up;   // [rows, ffn]
  std::vector<float> projected;  // [rows, hidden]
  std::vector<float> logits;     // [logit rows, vocab]

  void Reserve(const model::ModelConfig& config) {
    const int64_t q_width = int64_t{config.heads} * config.head_dim;
    const int64_t kv_width = int64_t{config.kv_heads} * config.head_dim;
    for (auto* buffer : {&x, &normed, &projected}) GrowTo(*buffer, int64_t{rows} * config.hidden);
    for (auto* buffer : {&q, &attn}) GrowTo(*buffer, rows * q_width);
    for (auto* buffer : {&k, &v}) GrowTo(*buffer, rows * kv_width);
    for (auto* buffer : {&gate, &up}) GrowTo(*buffer, int64_t{rows} * config.ffn);
    GrowTo(logits, static_cast<int64_t>(logit_rows.size()) * config.vocab);
  }
};

kernels::KvLayout KvLayoutOf(const model::ModelConfig& config, int block_tokens) {
  return {.block_tokens = block_tokens, .kv_heads = config.kv_heads, .head_dim = config.head_dim};
}

Engine::Engine(std::shared_ptr<const model::Model> model, std::unique_ptr<kernels::Ops> ops,
               std::shared_ptr<kv::KvStorage> storage)
    : model_(std::move(model)),
      ops_(std::move(ops)),
      storage_(std::move(storage)),
      workspace_(std::make_unique<Workspace>()) {
  const model::ModelConfig& config = model_->config;
  TRIVIUM_CHECK(ops_ != nullptr, "an engine without operations");
  TRIVIUM_CHECK(storage_->layers() == config.layers &&
                    storage_->layout().kv_heads == config.kv_heads &&
                    storage_->layout().head_dim == config.head_dim,
                "KV storage of another model");
  workspace_->layers.reserve(model_->layers.size());
  for (const model::LayerWeights& layer : model_->layers) {
    workspace_->layers.push_back({ops_->Pack(layer.q), ops_->Pack(layer.k), ops_->Pack(layer.v),
                                  ops_->Pack(layer.attn_out), ops_->Pack(layer.gate),
                                  ops_->Pack(layer.up), ops_->Pack(layer.down)});
  }
  workspace_->output = ops_->Pack(model_->output);
  workspace_->written.resize(static_cast<size_t>(storage_->blocks()));
}

Engine::~Engine() = default;

void Engine::CheckRange(const SequenceRange& range) const {
  const model::ModelConfig& config = model_->config;
  const int64_t end = range.position + static_cast<int64_t>(range.tokens.size());
  TRIVIUM_CHECK(!range.tokens.empty() && range.position >= 0 && end <= config.context,
                "positions {} … {} of a context of {}", range.position, end, config.context);
  const int64_t block_tokens = storage_->layout().block_tokens;
  const auto table_blocks = static_cast<int64_t>(range.block_table.size());
  TRIVIUM_CHECK(table_blocks * block_tokens >= end, "{} blocks for {} positions", table_blocks,
                end);
  for (int32_t id : range.tokens) {
    TRIVIUM_CHECK(id >= 0 && id < config.vocab, "token {} of {}", id, config.vocab);
  }
  for (int32_t block : range.block_table) {
    TRIVIUM_CHECK(block >= 0 && block < storage_->blocks(), "block {} of {}", block,
                  storage_->blocks());
  }
}

// Blocks may be shared by what lies in them already, never by what a step puts there.
void Engine::CheckWrites(std::span<const SequenceRange> batch) {
  std::vector<bool>& written = workspace_->written;
  const auto block_tokens = static_cast<size_t>(storage_->layout().block_tokens);
  const auto past = [&](const SequenceRange& range) {
    return range.block_table.first(static_cast<size_t>(range.position) / block_tokens);
  };
  const auto present = [&](const SequenceRange& range) {
    const size_t end = static_cast<size_t>(range.position) + range.tokens.size();
    const size_t begin = past(range).size();
    return range.block_table.subspan(begin, (end + block_tokens - 1) / block_tokens - begin);
  };
  for (const SequenceRange& range : batch) {
    for (const int32_t block : present(range)) {
      TRIVIUM_CHECK(!written[static_cast<size_t>(block)], "two ranges write to block {}", block);
      written[static_cast<size_t>(block)] = true;
    }
  }
  for (const SequenceRange& range : batch) {
    for (const int32_t block : past(range)) {
      TRIVIUM_CHECK(!written[static_cast<size_t>(block)], "block {} is shared and written", block);
    }
  }
  for (const SequenceRange& range : batch) {
    for (const int32_t block : present(range)) written[static_cast<size_t>(block)] = false;
  }
}

void Engine::GatherBatch(std::span<const SequenceRange> batch) {
  Workspace& w = *workspace_;
  w.ids.clear();
  w.positions.clear();
  w.spans.clear();
  w.logit_rows.clear();
  w.logit_spans.clear();
  w.first_row.clear();
  for (const SequenceRange& range : batch) {
    CheckRange(range);
    const int begin = static_cast<int>(w.ids.size());
    const int count = static_cast<int>(range.tokens.size());
    TRIVIUM_CHECK(begin + count <= kMaxRows, "a step of more than {} rows", kMaxRows);
    w.ids.insert(w.ids.end(), range.tokens.begin(), range.tokens.end());
    for (int i = 0; i < count; ++i) w.positions.push_back(range.position + i);
    w.spans.push_back({begin, count, range.block_table.data()});

    const int wanted = LogitRows(range);
    const int first = static_cast<int>(w.logit_rows.size());
    w.first_row.push_back(wanted == 0 ? -1 : first);
    if (wanted == 0) continue;
    w.logit_spans.push_back({first, wanted, range.block_table.data()});
    for (int i = count - wanted; i < count; ++i) w.logit_rows.push_back(begin + i);
  }
  w.rows = static_cast<int>(w.ids.size());
  TRIVIUM_CHECK(w.logit_rows.size() <= kMaxLogitRows, "logits of {} rows wanted, at most {}",
                w.logit_rows.size(), kMaxLogitRows);
  CheckWrites(batch);
  GroupBySharedPrefix(w.positions, storage_->layout().block_tokens, w.spans);
  w.kv_bytes_read = 0;
  w.Reserve(model_->config);
}

void Engine::ComputeKv(int layer) {
  Workspace& w = *workspace_;
  const model::ModelConfig& config = model_->config;
  const PackedLayer& packed = w.layers[static_cast<size_t>(layer)];
  ops_->RmsNorm(w.x.data(), model_->layers[static_cast<size_t>(layer)].attn_norm, config.rms_eps,
                w.rows, config.hidden, w.normed.data());
  ops_->Matmul(*packed.k, w.normed.data(), w.rows, w.k.data());
  ops_->Matmul(*packed.v, w.normed.data(), w.rows, w.v.data());
  ops_->Rope({.x = w.k.data(),
              .positions = w.positions.data(),
              .rows = w.rows,
              .heads = config.kv_heads,
              .head_dim = config.head_dim,
              .frequencies = config.rope.frequencies,
              .scale = config.rope.scale});
  ops_->StoreKv({.k = w.k.data(),
                 .v = w.v.data(),
                 .positions = w.positions.data(),
                 .spans = w.spans,
                 .kv_layer = storage_->layer(layer),
                 .layout = storage_->layout()});
}

// Once the last layer's keys and values are stored, only rows whose logits are wanted have a
// reader.
void Engine::KeepLogitRows() {
  Workspace& w = *workspace_;
  if (static_cast<int>(w.logit_rows.size()) == w.rows) return;
  CompactRows(w.x, w.logit_rows, model_->config.hidden);
  CompactRows(w.normed, w.logit_rows, model_->config.hidden);
  CompactRows(w.positions, w.logit_rows, 1);
  w.spans.swap(w.logit_spans);
  w.rows = static_cast<int>(w.logit_rows.size());
  GroupBySharedPrefix(w.positions, storage_->layout().block_tokens, w.spans);
}

void Engine::AttendAndFeedForward(int layer) {
  Workspace& w = *workspace_;
  const model::ModelConfig& config = model_->config;
  const PackedLayer& packed = w.layers[static_cast<size_t>(layer)];
  ops_->Matmul(*packed.q, w.normed.data(), w.rows, w.q.data());
  ops_->Rope({.x = w.q.data(),
              .positions = w.positions.data(),
              .rows = w.rows,
              .heads = config.heads,
              .head_dim = config.head_dim,
              .frequencies = config.rope.frequencies,
              .scale = config.rope.scale});
  ops_->Attention({.q = w.q.data(),
                   .positions = w.positions.data(),
                   .spans = w.spans,
                   .kv_layer = storage_->layer(layer),
                   .layout = storage_->layout(),
                   .heads = config.heads,
                   .scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim)),
                   .out = w.attn.data(),
                   .lse = nullptr,
                   .kv_bytes_read = &w.kv_bytes_read});
  const int64_t residual = int64_t{w.rows} * config.hidden;
  ops_->Matmul(*packed.attn_out, w.attn.data(), w.rows, w.projected.data());
  ops_->Add(w.x.data(), w.projected.data(), residual);

  ops_->RmsNorm(w.x.data(), model_->layers[static_cast<size_t>(layer)].ffn_norm, config.rms_eps,
                w.rows, config.hidden, w.normed.data());
  ops_->Matmul(*packed.gate, w.normed.data(), w.rows, w.gate.data());
  ops_->Matmul(*packed.up, w.normed.data(), w.rows, w.up.data());
  ops_->SiluMul(w.gate.data(), w.up.data(), int64_t{w.rows} * config.ffn);
  ops_->Matmul(*packed.down, w.gate.data(), w.rows, w.projected.data());
  ops_->Add(w.x.data(), w.projected.data(), residual);
}

void Engine::ComputeLogits() {
  Workspace& w = *workspace_;
  const model::ModelConfig& config = model_->config;
  ops_->RmsNorm(w.x.data(), model_->output_norm, config.rms_eps, w.rows, config.hidden,
                w.normed.data());
  ops_->Matmul(*w.output, w.normed.data(), w.rows, w.logits.data());
}

StepResult Engine::Step(std::span<const SequenceRange> batch, const LayerDone& layer_done) {
  Workspace& w = *workspace_;
  GatherBatch(batch);
  if (w.rows == 0) return {};
  ops_->EmbedRows(model_->embedding, w.ids, w.x.data());
  const int layers = model_->config.layers;
  for (int layer = 0; layer < layers; ++layer) {
    ComputeKv(layer);
    if (layer_done) layer_done(layer);
    if (layer == layers - 1) KeepLogitRows();
    if (w.rows > 0) AttendAndFeedForward(layer);
  }
  if (w.rows > 0) ComputeLogits();
  const size_t logits = w.logit_rows.size() * static_cast<size_t>(model_->config.vocab);
  return {.logits = {w.logits.data(), logits},
          .first_row = w.first_row,
          .kv_bytes_read = w.kv_bytes_read};
}

}  // namespace trivium::engine
