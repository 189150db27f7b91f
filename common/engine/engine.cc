#include "common/engine/engine.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "common/engine/forward.h"
#include "common/engine/shared_prefix.h"

namespace trivium::engine {
namespace {

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

struct Engine::Workspace {
  // The step at hand. `rows` falls to the logit rows in the last layer.
  Rows rows;
  std::vector<int32_t> ids;
  std::vector<int> logit_rows;  // the packed rows whose logits are wanted, ascending
  std::vector<kernels::SequenceSpan> logit_spans;
  std::vector<int> first_row;
  std::vector<bool> written;  // by block of the storage; all false between steps
  std::vector<float> logits;  // [logit rows, vocab]
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
  forward_ = std::make_unique<Forward>(*model_, *ops_);
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
  w.rows.positions.clear();
  w.rows.spans.clear();
  w.logit_rows.clear();
  w.logit_spans.clear();
  w.first_row.clear();
  for (const SequenceRange& range : batch) {
    CheckRange(range);
    const int begin = static_cast<int>(w.ids.size());
    const int count = static_cast<int>(range.tokens.size());
    TRIVIUM_CHECK(begin + count <= kMaxRows, "a step of more than {} rows", kMaxRows);
    w.ids.insert(w.ids.end(), range.tokens.begin(), range.tokens.end());
    for (int i = 0; i < count; ++i) w.rows.positions.push_back(range.position + i);
    w.rows.spans.push_back({begin, count, range.block_table.data()});

    const int wanted = LogitRows(range);
    const int first = static_cast<int>(w.logit_rows.size());
    w.first_row.push_back(wanted == 0 ? -1 : first);
    if (wanted == 0) continue;
    w.logit_spans.push_back({first, wanted, range.block_table.data()});
    for (int i = count - wanted; i < count; ++i) w.logit_rows.push_back(begin + i);
  }
  w.rows.count = static_cast<int>(w.ids.size());
  TRIVIUM_CHECK(w.logit_rows.size() <= kMaxLogitRows, "logits of {} rows wanted, at most {}",
                w.logit_rows.size(), kMaxLogitRows);
  CheckWrites(batch);
  GroupBySharedPrefix(w.rows.positions, storage_->layout().block_tokens, w.rows.spans);
  w.rows.kv_bytes_read = 0;
  w.rows.Reserve(model_->config);
  const size_t logits = w.logit_rows.size() * static_cast<size_t>(model_->config.vocab);
  if (w.logits.size() < logits) w.logits.resize(logits);
}

// Once the last layer's keys and values are stored, only rows whose logits are wanted have a
// reader.
void Engine::KeepLogitRows() {
  Workspace& w = *workspace_;
  Rows& rows = w.rows;
  if (static_cast<int>(w.logit_rows.size()) == rows.count) return;
  CompactRows(rows.x, w.logit_rows, model_->config.hidden);
  CompactRows(rows.normed, w.logit_rows, model_->config.hidden);
  CompactRows(rows.positions, w.logit_rows, 1);
  rows.spans.swap(w.logit_spans);
  rows.count = static_cast<int>(w.logit_rows.size());
  GroupBySharedPrefix(rows.positions, storage_->layout().block_tokens, rows.spans);
}

StepResult Engine::Step(std::span<const SequenceRange> batch, const LayerDone& layer_done) {
  Workspace& w = *workspace_;
  GatherBatch(batch);
  if (w.rows.count == 0) return {};
  forward_->Embed(w.ids, w.rows);
  const int layers = model_->config.layers;
  for (int layer = 0; layer < layers; ++layer) {
    forward_->ComputeKv(layer, *storage_, w.rows);
    if (layer_done) layer_done(layer);
    if (layer == layers - 1) KeepLogitRows();
    if (w.rows.count > 0) forward_->AttendAndFeedForward(layer, *storage_, w.rows);
  }
  if (w.rows.count > 0) forward_->ComputeLogits(w.rows, w.logits.data());
  const size_t logits = w.logit_rows.size() * static_cast<size_t>(model_->config.vocab);
  return {.logits = {w.logits.data(), logits},
          .first_row = w.first_row,
          .kv_bytes_read = w.rows.kv_bytes_read};
}

}  // namespace trivium::engine
