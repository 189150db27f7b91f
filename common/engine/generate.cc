#include "common/engine/generate.h"

#include <algorithm>

#include "common/engine/prompt_scores.h"

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

// The logits of the last row, valid until the next step.
std::span<const float> Prefill(Engine& engine, std::span<const int32_t> block_table,
                               std::span<const int32_t> prompt, const SamplingParams& params,
                               int chunk_tokens, std::span<const GivenRows> given,
                               Generation* result) {
  const int32_t vocab = engine.model().config.vocab;
  const bool scores = params.prompt_logprobs >= 0;
  const auto chunk_max =
      static_cast<size_t>(scores ? std::min(chunk_tokens, Engine::kMaxLogitRows) : chunk_tokens);
  StepResult step;
  for (size_t done = 0; done < prompt.size();) {
    const size_t count = std::min(chunk_max, prompt.size() - done);
    const bool last = done + count == prompt.size();
    const auto rows = GivenIn(given, static_cast<int32_t>(done), static_cast<int32_t>(done + count),
                              engine.model().config.hidden);
    const SequenceRange chunk{.tokens = prompt.subspan(done, count),
                              .position = static_cast<int32_t>(done),
                              .block_table = block_table,
                              .logits = scores ? LogitsWanted::kAll
                                        : last ? LogitsWanted::kLast
                                               : LogitsWanted::kNone,
                              .given = rows};
    step = engine.Step({&chunk, 1});
    if (scores) {
      for (SampledToken& token :
           ScorePrompt(prompt, chunk.position, step.logits, vocab, params.prompt_logprobs)) {
        result->prompt.push_back(std::move(token));
      }
    }
    done += count;
  }
  return step.logits.last(static_cast<size_t>(vocab));
}

}  // namespace

std::vector<GivenRows> GivenIn(std::span<const GivenRows> given, int32_t begin, int32_t end,
                               int64_t hidden) {
  std::vector<GivenRows> inside;
  for (const GivenRows& one : given) {
    const auto rows = static_cast<int32_t>(std::ssize(one.rows) / hidden);
    const int32_t from = std::max(begin, one.first), to = std::min(end, one.first + rows);
    if (from >= to) continue;
    inside.push_back(
        {from - begin, one.rows.subspan(static_cast<size_t>((from - one.first) * hidden),
                                        static_cast<size_t>((to - from) * hidden))});
  }
  return inside;
}

std::vector<int32_t> Generation::Ids() const {
  std::vector<int32_t> ids;
  ids.reserve(tokens.size());
  for (const SampledToken& token : tokens) ids.push_back(token.id);
  return ids;
}

absl::StatusOr<Generation> GenerateLocal(Engine& engine, kv::BlockPool& pool,
                                         std::span<const int32_t> prompt_ids,
                                         const SamplingParams& params, int chunk_tokens,
                                         std::span<const GivenRows> given) {
  RETURN_IF_ERROR(ValidateRequest(engine, prompt_ids, params, chunk_tokens));
  const auto prompt = static_cast<int32_t>(prompt_ids.size());
  const int block_tokens = engine.storage().layout().block_tokens;
  const int32_t positions = prompt + params.max_tokens;
  ASSIGN_OR_RETURN(const kv::Reservation blocks,
                   pool.Reserve((positions + block_tokens - 1) / block_tokens));

  Generation result;
  std::span<const float> logits =
      Prefill(engine, blocks.block_table(), prompt_ids, params, chunk_tokens, given, &result);
  const auto end_ids = engine.model().tokenizer->end_of_generation_ids();
  TokenHistory history(params, prompt_ids, 0);
  for (int32_t index = 0;; ++index) {
    result.tokens.push_back(Sample(logits, params, index, end_ids, history));
    const int32_t id = result.tokens.back().id;
    history.Add(id);
    result.finish = FinishAfter(id, params, index, end_ids);
    if (result.finish != FinishReason::kNone) return result;
    const SequenceRange next{.tokens = {&id, 1},
                             .position = prompt + index,
                             .block_table = blocks.block_table(),
                             .logits = LogitsWanted::kLast};
    logits = engine.Step({&next, 1}).logits;
  }
}

}  // namespace trivium::engine
