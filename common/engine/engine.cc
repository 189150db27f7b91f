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
  // The step at hand: the rows of the batch, and behind them those of the pass. `rows` holds those
  // that the layer at hand computes, and falls to the logit rows in the last one.
  Rows rows;
  int batch_rows = 0, all_rows = 0;
  std::vector<kernels::SequenceSpan> batch_spans, all_spans;
  // What enters the first layer: ids to be embedded, and rows that take the place of some.
  std::vector<int32_t> ids;
  std::vector<GivenRows> given;  // `first` counts packed rows
  std::vector<int> logit_rows;   // the packed rows whose logits are wanted, ascending
  std::vector<kernels::SequenceSpan> logit_spans;
  std::vector<int> first_row;
  std::vector<bool> written;  // by block of the storage; all false between steps
  std::vector<float> logits;  // [logit rows, vocab]
};

kernels::KvLayout KvLayoutOf(const model::ModelConfig& config, int block_tokens,
                             kernels::KvType type) {
  return {.block_tokens = block_tokens,
          .kv_heads = config.kv_heads,
          .head_dim = config.head_dim,
          .type = type};
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

void Engine::CheckPass(const LayerPass& pass) const {
  if (pass.ranges.empty()) return;
  const int layers = model_->config.layers;
  TRIVIUM_CHECK(
      pass.layer_begin >= 0 && pass.layer_begin < pass.layer_end && pass.layer_end <= layers,
      "layers {} … {} of {}", pass.layer_begin, pass.layer_end, layers);
  const bool is_whole = pass.layer_begin == 0 && pass.layer_end == layers;
  TRIVIUM_CHECK(is_whole || pass.hidden != nullptr, "rows between two layers have no place");
}

// Blocks may be shared by what lies in them already, never by what a step puts there.
void Engine::CheckWrites(std::span<const SequenceRange> batch,
                         std::span<const SequenceRange> pass) {
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
  const auto for_each = [&](const auto& blocks_of, const auto& visit) {
    for (const auto& ranges : {batch, pass}) {
      for (const SequenceRange& range : ranges) {
        for (const int32_t block : blocks_of(range)) visit(block);
      }
    }
  };
  for_each(present, [&](int32_t block) {
    TRIVIUM_CHECK(!written[static_cast<size_t>(block)], "two ranges write to block {}", block);
    written[static_cast<size_t>(block)] = true;
  });
  for_each(past, [&](int32_t block) {
    TRIVIUM_CHECK(!written[static_cast<size_t>(block)], "block {} is shared and written", block);
  });
  for_each(present, [&](int32_t block) { written[static_cast<size_t>(block)] = false; });
}

void Engine::Append(const SequenceRange& range, bool gives_logits) {
  Workspace& w = *workspace_;
  CheckRange(range);
  const int begin = static_cast<int>(w.rows.positions.size());
  const int count = static_cast<int>(range.tokens.size());
  TRIVIUM_CHECK(begin + count <= kMaxRows, "a step of more than {} rows", kMaxRows);
  for (int i = 0; i < count; ++i) w.rows.positions.push_back(range.position + i);
  w.all_spans.push_back({begin, count, range.block_table.data()});

  const int wanted = gives_logits ? LogitRows(range) : 0;
  const int first = static_cast<int>(w.logit_rows.size());
  w.first_row.push_back(wanted == 0 ? -1 : first);
  if (wanted == 0) return;
  w.logit_spans.push_back({first, wanted, range.block_table.data()});
  for (int i = count - wanted; i < count; ++i) w.logit_rows.push_back(begin + i);
}

void Engine::AddInput(const SequenceRange& range) {
  Workspace& w = *workspace_;
  const auto begin = static_cast<int32_t>(w.ids.size());
  const int64_t tokens = std::ssize(range.tokens), hidden = model_->config.hidden;
  w.ids.insert(w.ids.end(), range.tokens.begin(), range.tokens.end());
  for (const GivenRows& given : range.given) {
    const int64_t rows = std::ssize(given.rows) / hidden;
    TRIVIUM_CHECK(rows >= 1 && rows * hidden == std::ssize(given.rows) && given.first >= 0 &&
                      given.first + rows <= tokens,
                  "{} values given from token {} on, of {} tokens", given.rows.size(), given.first,
                  tokens);
    w.given.push_back({begin + given.first, given.rows});
  }
}

void Engine::Embed() {
  Workspace& w = *workspace_;
  w.rows.count = static_cast<int>(w.ids.size());
  forward_->Embed(w.ids, w.rows);
  for (const GivenRows& given : w.given) {
    std::ranges::copy(given.rows, w.rows.x.begin() + int64_t{given.first} * model_->config.hidden);
  }
}

void Engine::Gather(std::span<const SequenceRange> batch, const LayerPass& pass) {
  Workspace& w = *workspace_;
  w.ids.clear();
  w.given.clear();
  w.rows.positions.clear();
  w.all_spans.clear();
  w.logit_rows.clear();
  w.logit_spans.clear();
  w.first_row.clear();
  CheckPass(pass);
  for (const SequenceRange& range : batch) Append(range, true);
  w.batch_rows = static_cast<int>(w.rows.positions.size());
  w.batch_spans = w.all_spans;
  for (const SequenceRange& range : pass.ranges) {
    Append(range, pass.layer_end == model_->config.layers);
  }
  w.all_rows = static_cast<int>(w.rows.positions.size());
  TRIVIUM_CHECK(w.logit_rows.size() <= kMaxLogitRows, "logits of {} rows wanted, at most {}",
                w.logit_rows.size(), kMaxLogitRows);
  CheckWrites(batch, pass.ranges);
  for (const SequenceRange& range : batch) AddInput(range);
  if (pass.layer_begin == 0) {
    for (const SequenceRange& range : pass.ranges) AddInput(range);
  }
  const int block_tokens = storage_->layout().block_tokens;
  const size_t logits = w.logit_rows.size() * static_cast<size_t>(model_->config.vocab);
  if (w.logits.size() < logits) w.logits.resize(logits);
  GroupBySharedPrefix(w.rows.positions, block_tokens, w.batch_spans);
  GroupBySharedPrefix(w.rows.positions, block_tokens, w.all_spans);
}

void Engine::Join(const LayerPass& pass) {
  Workspace& w = *workspace_;
  w.rows.count = w.all_rows;
  w.rows.spans = w.all_spans;
  if (pass.layer_begin == 0) return;  // embedded with the batch
  const auto width = static_cast<size_t>(model_->config.hidden);
  const auto rows = static_cast<size_t>(w.all_rows - w.batch_rows);
  TRIVIUM_CHECK(pass.hidden->size() == rows * width, "{} values of {} rows", pass.hidden->size(),
                rows);
  std::ranges::copy(*pass.hidden, w.rows.x.begin() + static_cast<std::ptrdiff_t>(w.batch_rows) *
                                                         static_cast<std::ptrdiff_t>(width));
}

void Engine::Leave(const LayerPass& pass) {
  Workspace& w = *workspace_;
  const int64_t width = model_->config.hidden;
  pass.hidden->assign(w.rows.x.begin() + w.batch_rows * width,
                      w.rows.x.begin() + w.all_rows * width);
  w.rows.count = w.batch_rows;
  w.rows.spans = w.batch_spans;
}

bool Engine::HasOnlyLogitRows() const {
  return static_cast<int>(workspace_->logit_rows.size()) == workspace_->rows.count;
}

// Once the last layer's keys and values are stored, only rows whose logits are wanted have a
// reader.
void Engine::KeepLogitRows() {
  Workspace& w = *workspace_;
  Rows& rows = w.rows;
  if (HasOnlyLogitRows()) return;
  CompactRows(rows.x, w.logit_rows, model_->config.hidden);
  CompactRows(rows.normed, w.logit_rows, model_->config.hidden);
  CompactRows(rows.positions, w.logit_rows, 1);
  rows.spans.swap(w.logit_spans);
  rows.count = static_cast<int>(w.logit_rows.size());
  GroupBySharedPrefix(rows.positions, storage_->layout().block_tokens, rows.spans);
}

StepResult Engine::Step(std::span<const SequenceRange> batch, const LayerPass& pass,
                        const LayerDone& layer_done) {
  Workspace& w = *workspace_;
  Gather(batch, pass);
  if (w.all_rows == 0) return {};
  w.rows.count = w.all_rows;
  w.rows.Reserve(model_->config);
  w.rows.kv_bytes_read = w.rows.expert_bytes_read = 0;
  Embed();
  const int layers = model_->config.layers;
  const bool has_pass = !pass.ranges.empty();
  w.rows.count = w.batch_rows;
  w.rows.spans = w.batch_spans;
  for (int layer = 0; layer < layers; ++layer) {
    if (has_pass && layer == pass.layer_begin) Join(pass);
    if (w.rows.count == 0) continue;
    const bool is_last = layer == layers - 1;
    forward_->ComputeKv(layer, *storage_, !is_last || HasOnlyLogitRows(), w.rows);
    if (layer_done) layer_done(layer);
    if (is_last) KeepLogitRows();
    if (w.rows.count > 0) forward_->AttendAndFeedForward(layer, *storage_, w.rows);
    if (has_pass && layer + 1 == pass.layer_end && layer + 1 < layers) Leave(pass);
  }
  if (!w.logit_rows.empty()) forward_->ComputeLogits(w.rows, w.logits.data());
  const size_t logits = w.logit_rows.size() * static_cast<size_t>(model_->config.vocab);
  return {.logits = {w.logits.data(), logits},
          .first_row = w.first_row,
          .kv_bytes_read = w.rows.kv_bytes_read,
          .expert_bytes_read = w.rows.expert_bytes_read};
}

}  // namespace trivium::engine
