// The forward pass: one step takes a packed batch of token ranges from any number of sequences
// (whole prompts, chunks, single tokens) without padding. Prefill and decode are two callers of the
// same step. Ranges may also pass a few layers in each step, beside a batch that passes all of
// them.
//
// Thread-safety: one thread drives an Engine. The KV blocks named in a batch must be owned by the
// caller. Ranges whose tables begin with the same blocks share them: attention reads these once for
// all; no row may write into a block that another range of the step reads (that ends the process).
// Invariants: a row's logits depend only on its own sequence's tokens; positions before a range's
// first must have been processed (or received) already. Working memory grows with the
// largest step seen, up to what kMaxRows and kMaxLogitRows need, and is reused: a step no larger
// than an earlier one allocates nothing here.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "common/kv/kv_storage.h"
#include "common/model/model.h"
#include "kernels/ops.h"

namespace trivium::engine {

enum class LogitsWanted : uint8_t { kNone, kLast, kAll };

// Rows that enter the first layer as they are, instead of the embeddings of their tokens: those of
// pictures. Read while the step runs.
struct GivenRows {
  int32_t first = 0;            // of the range's tokens
  std::span<const float> rows;  // [at least 1, hidden]
};

struct SequenceRange {
  std::span<const int32_t> tokens;       // ids to process, at least one, each below vocab
  int32_t position = 0;                  // of tokens[0]
  std::span<const int32_t> block_table;  // covers position + tokens.size()
  LogitsWanted logits = LogitsWanted::kLast;
  // The ids in these places are not looked at, beyond being below vocab. None over another.
  std::span<const GivenRows> given = {};
};

class Forward;

// Ranges that pass the layers [layer_begin, layer_end) in this step: layered prefill ("From
// Tokens to Layers", 2025). In these layers they and the batch are one packed batch; the others do
// not see them. Each step goes on where the one before has ended, with the same ranges or fewer.
struct LayerPass {
  std::span<const SequenceRange> ranges;
  int layer_begin = 0, layer_end = 0;  // their logits come with the model's last layer
  // [rows, hidden], in the order of the ranges: the residual stream between two steps. Read where
  // layer_begin > 0, written where layer_end is not the model's last; null where neither.
  std::vector<float>* hidden = nullptr;
};

// Called on the engine's thread as soon as layer `layer` of every range that passes it lies in the
// KV storage.
using LayerDone = std::function<void(int layer)>;

// Both views are valid until the next step.
struct StepResult {
  std::span<const float> logits;  // [logit rows, vocab], in the order of the ranges
  // For each range of the batch, then of the pass, its first logit row, or -1.
  std::span<const int> first_row;
  int64_t kv_bytes_read = 0;      // by attention, all layers
  int64_t expert_bytes_read = 0;  // weights of the experts that rows were routed to, all layers
};

class Engine {
 public:
  static constexpr int kMaxRows = 8192;       // tokens of one step
  static constexpr int kMaxLogitRows = 2048;  // rows of one step whose logits are wanted

  // Packs the weights: about a second for 135 M parameters. The storage must have the model's
  // layers, key-value heads and head size.
  Engine(std::shared_ptr<const model::Model> model, std::unique_ptr<kernels::Ops> ops,
         std::shared_ptr<kv::KvStorage> storage);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Callers validate what comes from outside: ids, positions and tables that break the rules above
  // end the process. A layer that no row passes gives no call of `layer_done`.
  StepResult Step(std::span<const SequenceRange> batch, const LayerDone& layer_done = nullptr) {
    return Step(batch, {}, layer_done);
  }
  StepResult Step(std::span<const SequenceRange> batch, const LayerPass& pass,
                  const LayerDone& layer_done);

  const model::Model& model() const { return *model_; }
  const kernels::Ops& ops() const { return *ops_; }
  const kv::KvStorage& storage() const { return *storage_; }
  kv::KvStorage& storage() { return *storage_; }

 private:
  struct Workspace;

  void CheckRange(const SequenceRange& range) const;
  void CheckPass(const LayerPass& pass) const;
  void CheckWrites(std::span<const SequenceRange> batch, std::span<const SequenceRange> pass);
  void Gather(std::span<const SequenceRange> batch, const LayerPass& pass);
  void Append(const SequenceRange& range, bool gives_logits);
  void AddInput(const SequenceRange& range);
  void Embed();
  void Join(const LayerPass& pass);
  void Leave(const LayerPass& pass);
  bool HasOnlyLogitRows() const;
  void KeepLogitRows();

  std::shared_ptr<const model::Model> model_;
  std::unique_ptr<kernels::Ops> ops_;
  std::shared_ptr<kv::KvStorage> storage_;
  std::unique_ptr<Forward> forward_;
  std::unique_ptr<Workspace> workspace_;
};

// The layout that a storage for this model needs.
kernels::KvLayout KvLayoutOf(const model::ModelConfig& config, int block_tokens = 16,
                             kernels::KvType type = kernels::KvType::kF16);

}  // namespace trivium::engine
