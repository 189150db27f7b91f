#include "common/engine/generate.h"

#include <algorithm>

namespace trivium::engine {
namespace {

absl::Status ValidateRequest(const Engine& engine, std::span<const int32_t> prompt_ids,
                             const SamplingParams& params, int chunk_tokens) {
  const model::ModelConfig& config = engine.model().config;
  RETURN_IF_ERROR(Validate(params, config.vocab));
  if (chunk_tokens < 1 || chunk_tokens > Engine::kMaxRows) {
    return InvalidArgument("chunk_tokens is {}, must be 1 … {}", chunk_tokens, Engine::kMaxRows);
  }
  if (prompt_ids.empty()) return InvalidArgument("the prompt has no tokens");
  for (size_t i = 0; i < prompt_ids.size(); ++i) {
    if (prompt_ids[i] >= 0 && prompt_ids[i] < config.vocab) continue;
    return InvalidArgument("token_ids[{}] is {}, must be 0 … {}", i, prompt_ids[i],
                           config.vocab - 1);
  }
  const auto context = static_cast<size_t>(config.context);
  const auto wanted = static_cast<size_t>(params.max_tokens);
  if (prompt_ids.size() > context || wanted > context - prompt_ids.size()) {
    return InvalidArgument("{} prompt tokens and max_tokens {} exceed the context of {}",
                           prompt_ids.size(), params.max_tokens, context);
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<int32_t> Generation::Ids() const {
  std::vector<int32_t> ids;
  ids.reserve(tokens.size());
  for (const SampledToken& token : tokens) ids.push_back(token.id);
  return ids;
}

absl::StatusOr<Generation> GenerateLocal(Engine& engine, kv::BlockPool& pool,
                                         std::span<const int32_t> prompt_ids,
                                         const SamplingParams& params, int chunk_tokens) {
  RETURN_IF_ERROR(ValidateRequest(engine, prompt_ids, params, chunk_tokens));
  const auto prompt = static_cast<int32_t>(prompt_ids.size());
  const int block_tokens = engine.storage().layout().block_tokens;
  const int32_t positions = prompt + params.max_tokens;
  ASSIGN_OR_RETURN(const kv::Reservation blocks,
                   pool.Reserve((positions + block_tokens - 1) / block_tokens));

  StepResult step;
  for (int32_t done = 0; done < prompt;) {
    const int32_t count = std::min(chunk_tokens, prompt - done);
    const bool last = done + count == prompt;
    const SequenceRange chunk{
        .tokens = prompt_ids.subspan(static_cast<size_t>(done), static_cast<size_t>(count)),
        .position = done,
        .block_table = blocks.block_table(),
        .logits = last ? LogitsWanted::kLast : LogitsWanted::kNone};
    step = engine.Step({&chunk, 1});
    done += count;
  }
  const auto end_ids = engine.model().tokenizer->end_of_generation_ids();
  TokenHistory history(params, prompt_ids, 0);
  Generation result;
  for (int32_t index = 0;; ++index) {
    result.tokens.push_back(Sample(step.logits, params, index, end_ids, history));
    const int32_t id = result.tokens.back().id;
    history.Add(id);
    result.finish = FinishAfter(id, params, index, end_ids);
    if (result.finish != FinishReason::kNone) return result;
    const SequenceRange next{.tokens = {&id, 1},
                             .position = prompt + index,
                             .block_table = blocks.block_table(),
                             .logits = LogitsWanted::kLast};
    step = engine.Step({&next, 1});
  }
}

}  // namespace trivium::engine
