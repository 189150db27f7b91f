// The forward pass: one step takes a packed batch of token ranges from any number of sequences
// (whole prompts, chunks, single tokens) without padding. Prefill and decode are two callers of the
// same step.
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

#include "common/kv/kv_storage.h"
#include "common/model/model.h"
#include "kernels/ops.h"

namespace trivium::engine {

enum class LogitsWanted : uint8_t { kNone, kLast, kAll };

struct SequenceRange {
  std::span<const int32_t> tokens;       // ids to process, at least one, each below vocab
  int32_t position = 0;                  // of tokens[0]
  std::span<const int32_t> block_table;  // covers position + tokens.size()
  LogitsWanted logits = LogitsWanted::kLast;
};

class Forward;

// Called on the engine's thread as soon as layer `layer` of every range lies in the KV storage.
using LayerDone = std::function<void(int layer)>;

// Both views are valid until the next step.
struct StepResult {
  std::span<const float> logits;   // [logit rows, vocab], in batch order
  std::span<const int> first_row;  // for each range, its first logit row, or -1
  int64_t kv_bytes_read = 0;       // by attention, all layers
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
  // end the process. An empty batch gives no rows and no calls of `layer_done`.
  StepResult Step(std::span<const SequenceRange> batch, const LayerDone& layer_done = nullptr);

  const model::Model& model() const { return *model_; }
  const kernels::Ops& ops() const { return *ops_; }
  const kv::KvStorage& storage() const { return *storage_; }
  kv::KvStorage& storage() { return *storage_; }

 private:
  struct Workspace;

  void CheckRange(const SequenceRange& range) const;
  void CheckWrites(std::span<const SequenceRange> batch);
  void GatherBatch(std::span<const SequenceRange> batch);
  void KeepLogitRows();

  std::shared_ptr<const model::Model> model_;
  std::unique_ptr<kernels::Ops> ops_;
  std::shared_ptr<kv::KvStorage> storage_;
  std::unique_ptr<Forward> forward_;
  std::unique_ptr<Workspace> workspace_;
};

// The layout that a storage for this model needs.
kernels::KvLayout KvLayoutOf(const model::ModelConfig& config, int block_tokens = 16);

}  // namespace trivium::engine
