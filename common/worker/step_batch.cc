#include "common/worker/step_batch.h"

#include <algorithm>

namespace trivium::worker {

void StepBatch::AddAnswer(uint64_t number, const int32_t& newest, int32_t position,
                          std::span<const int32_t> block_table) {
  answers_.push_back({.tokens = {&newest, 1}, .position = position, .block_table = block_table});
  records_.push_back({number, position, 1, 0, context_.engine->model().config.layers});
}

void StepBatch::AddChunk(const PromptChunk& chunk, const StageRequest& request,
                         std::span<const int32_t> block_table, bool scored,
                         std::span<const engine::GivenRows> given) {
  const int32_t rows = chunk.end - chunk.begin;
  const bool is_last = chunk.end == request.prompt_tokens();
  chunks_.push_back(
      {.tokens = std::span(request.token_ids)
                     .subspan(static_cast<size_t>(chunk.begin), static_cast<size_t>(rows)),
       .position = chunk.begin,
       .block_table = block_table,
       .logits = scored    ? engine::LogitsWanted::kAll
                 : is_last ? engine::LogitsWanted::kLast
                           : engine::LogitsWanted::kNone,
       .given = given});
  records_.push_back({chunk.number, chunk.begin, rows});
}

void StepBatch::Run(PromptSchedule& schedule, const engine::LayerDone& layer_done) {
  const engine::LayerPass pass = schedule.Pass(chunks_);
  for (auto& record : std::span(records_).subspan(answers_.size())) {
    record.layer_begin = pass.layer_begin;
    record.layer_end = pass.layer_end;
  }
  result_ = context_.engine->Step(answers_, pass, layer_done);
}

std::span<const float> StepBatch::logits(size_t index) const {
  const int first = result_.first_row[index];
  if (first < 0) return {};
  int64_t rows = 1;
  if (index >= answers_.size()) {
    const engine::SequenceRange& range = chunks_[index - answers_.size()];
    if (range.logits == engine::LogitsWanted::kAll) rows = std::ssize(range.tokens);
  }
  const int64_t vocab = context_.engine->model().config.vocab;
  return result_.logits.subspan(static_cast<size_t>(first * vocab),
                                static_cast<size_t>(rows * vocab));
}

void StepBatch::Report(const PromptStep& plan, TimePoint begin) {
  StepRecord record{.ranges = records_};
  const int layers = context_.engine->model().config.layers;
  for (const RangeRecord& range : records_) {
    StepLoad load;
    load.Add(range.position, range.rows);
    record.load = record.load + load.Share(range.layer_end - range.layer_begin, layers);
  }
  if (!plan.chunks.empty()) record.limit = plan.limit;
  record.expert_bytes = result_.expert_bytes_read;
  record.seconds = SecondsBetween(begin, context_.clock->Now());
  context_.probe->OnStep(record);
}

PromptSchedule MakeSchedule(const LoopContext& context, int32_t scored_rows, int32_t running_max) {
  return PromptSchedule({.policy = context.prefill_policy,
                         .layers = context.engine->model().config.layers,
                         .running_max = running_max,
                         .scored_rows = scored_rows,
                         .chunks = static_cast<size_t>(engine::Engine::kMaxLogitRows - scored_rows),
                         .block_tokens = context.engine->storage().layout().block_tokens});
}

}  // namespace trivium::worker
