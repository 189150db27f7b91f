// The forward pass: one step takes a packed batch of token ranges from any number of sequences (whole
// prompts, chunks, single tokens) without padding. Prefill and decode are two callers of the same step.
//
// Thread-safety: one thread drives an Engine. The KV blocks named in a batch must be owned by the caller.
// Invariants: a row's logits depend only on its own sequence's tokens; positions before a range's first
// must have been processed (or received) already.
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

struct SequenceRange {
  std::span<const int32_t> tokens;       // ids to process, at least one, each below vocab
  int32_t position = 0;                  // of tokens[0]
  std::span<const int32_t> block_table;  // covers position + tokens.size()
  LogitsWanted logits = LogitsWanted::kLast;
};

// Called on the engine's thread as soon as layer `layer` of every range lies in the KV storage.
using LayerDone = std::function<void(int layer)>;

struct StepResult {
  std::span<const float> logits;   // [logit rows, vocab], in batch order; valid until the next step
  std::vector<int> first_row;      // for each range, its first logit row, or -1
};

class Engine {
 public:
  // Packs the weights (in the background of nothing: takes a second for 135 M parameters).
  Engine(std::shared_ptr<const model::Model> model, std::unique_ptr<kernels::Ops> ops,
         std::shared_ptr<kv::KvStorage> storage);
  ~Engine();

  StepResult Step(std::span<const SequenceRange> batch, const LayerDone& layer_done = nullptr);

  const model::Model& model() const { return *model_; }
  const kernels::Ops& ops() const { return *ops_; }

 private:
  struct Workspace;
  std::shared_ptr<const model::Model> model_;
  std::unique_ptr<kernels::Ops> ops_;
  std::shared_ptr<kv::KvStorage> storage_;
  std::unique_ptr<Workspace> workspace_;
};

}  // namespace trivium::engine
