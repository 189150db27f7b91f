// For tests: an engine on the tiny random model. Thread-safety: one thread.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "common/engine/engine.h"
#include "common/kv/kv_storage.h"
#include "common/model/model.h"
#include "common/model/testing/tiny_model.h"
#include "kernels/ops.h"

namespace trivium::engine {

// Random weights of the given type, with a tied Q8_0 embedding unless that is F32. Written and
// loaded once a process and type.
std::shared_ptr<const model::Model> TinyModel(
    kernels::WeightType linear_type = kernels::WeightType::kF32);

// Written, loaded and removed.
std::shared_ptr<const model::Model> LoadTinyModel(const model::TinyModelOptions& options);

struct TestEngine {
  std::shared_ptr<kv::KvStorage> storage;
  std::unique_ptr<Engine> engine;

  const model::ModelConfig& config() const { return engine->model().config; }
};

using OpsWrapper = std::function<std::unique_ptr<kernels::Ops>(std::unique_ptr<kernels::Ops>)>;

TestEngine MakeTestEngine(const kernels::OpsOptions& options, int32_t blocks = 512,
                          const OpsWrapper& wrap = nullptr,
                          kernels::WeightType linear_type = kernels::WeightType::kF32);

TestEngine MakeTestEngine(const kernels::OpsOptions& options,
                          std::shared_ptr<const model::Model> model, int32_t blocks = 512,
                          const OpsWrapper& wrap = nullptr);

std::vector<int32_t> RandomIds(std::mt19937& random, size_t count, int32_t vocab);

// A prompt with blocks of its own, scattered over the storage.
struct Prompt {
  std::vector<int32_t> ids;
  std::vector<int32_t> table;

  SequenceRange Range(size_t begin, size_t count, LogitsWanted logits) const {
    return {.tokens = std::span(ids).subspan(begin, count),
            .position = static_cast<int32_t>(begin),
            .block_table = table,
            .logits = logits};
  }
  SequenceRange Whole(LogitsWanted logits) const { return Range(0, ids.size(), logits); }
};

// Prompts of 1 … most_tokens random tokens; no block belongs to two of them.
std::vector<Prompt> RandomPrompts(std::mt19937& random, const TestEngine& test, size_t count,
                                  size_t most_tokens);

using Logits = std::vector<float>;

// Euclidean distance relative to the length of `expected`.
template <typename A, typename B>
double Distance(const A& actual, const B& expected) {
  double difference = 0, length = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(static_cast<double>(actual[i]) - static_cast<double>(expected[i]), 2);
    length += std::pow(static_cast<double>(expected[i]), 2);
  }
  return std::sqrt(difference / length);
}

// The logits of the prompt's last token, run in one step.
Logits RunWhole(Engine& engine, const Prompt& prompt);

// The same after running the prompt in pieces that end at `cuts`.
Logits RunCut(Engine& engine, const Prompt& prompt, const std::vector<size_t>& cuts);

// Ends of pieces of up to 24 tokens; of single ones in each fourth round.
std::vector<size_t> RandomCuts(std::mt19937& random, size_t tokens, int round);

// The bits of every key and value of the prompt's positions, layer by layer.
std::vector<uint16_t> KvBits(const kv::KvStorage& storage, const Prompt& prompt, int first_layer,
                             int last_layer);
inline std::vector<uint16_t> KvBits(const kv::KvStorage& storage, const Prompt& prompt) {
  return KvBits(storage, prompt, 0, storage.layers() - 1);
}

}  // namespace trivium::engine
