// One step of the decode stage: which rows it holds, and what comes of them.
#include <algorithm>
#include <utility>

#include "common/engine/step_cost.h"
#include "common/worker/chunk_plan.h"
#include "common/worker/first_tokens.h"
#include "services/decode/step_loop.h"

namespace trivium::decode {
namespace {

engine::SequenceRange RangeOf(const StepPart& part) {
  const worker::StageRequest& request = part.job->request;
  engine::SequenceRange range{.tokens = {&part.member->last_id, 1},
                              .position = part.begin,
                              .block_table = part.member->blocks.block_table(),
                              .logits = engine::LogitsWanted::kLast};
  if (part.job->state == Job::State::kPrefilling) {
    range.tokens =
        std::span(request.token_ids)
            .subspan(static_cast<size_t>(part.begin), static_cast<size_t>(part.end - part.begin));
    if (part.end < request.prompt_tokens()) range.logits = engine::LogitsWanted::kNone;
  }
  return range;
}

}  // namespace

std::vector<StepPart> StepLoop::Plan() {
  std::vector<StepPart> parts;
  for (const auto& [number, job] : jobs_) {
    if (job->state != Job::State::kRunning) continue;
    for (Member& member : job->members) {
      if (member.blocks.empty()) continue;
      parts.push_back({job.get(), &member, job->position(member), job->position(member) + 1});
    }
  }
  PlanPrompts(&parts);
  return parts;
}

// Those that run come first; prompts take the rows that are left, and never less than a block.
void StepLoop::PlanPrompts(std::vector<StepPart>* parts) {
  std::vector<Job*> prefilling;
  std::vector<worker::PromptProgress> progress;
  for (const auto& [number, job] : jobs_) {
    if (job->state != Job::State::kPrefilling) continue;
    prefilling.push_back(job.get());
    progress.push_back({.done = job->computed, .total = job->request.prompt_tokens()});
  }
  if (prefilling.empty()) return;
  const int32_t block_tokens = context_.engine->storage().layout().block_tokens;
  const auto running = static_cast<int32_t>(parts->size());
  const worker::PlanLimits limits{
      .rows = std::max(block_tokens, context_.step_tokens - running),
      .chunks = static_cast<size_t>(engine::Engine::kMaxLogitRows) - parts->size(),
      .block_tokens = block_tokens};
  for (const worker::PlannedChunk& chunk : worker::PlanChunks(progress, limits)) {
    Job* job = prefilling[chunk.prompt];
    parts->push_back({job, &job->members.front(), chunk.begin, chunk.end});
  }
}

void StepLoop::RunStep() {
  const TimePoint begin = context_.clock->Now();
  const std::vector<StepPart> parts = Plan();
  if (parts.empty()) return;
  std::vector<engine::SequenceRange> ranges;
  std::vector<worker::RangeRecord> records;
  worker::StepRecord step;
  for (const StepPart& part : parts) {
    if (part.job->first_step == TimePoint{}) part.job->first_step = begin;
    ranges.push_back(RangeOf(part));
    const int32_t rows = part.end - part.begin;
    records.push_back({part.job->number, part.begin, rows});
    step.rows += rows;
    step.keys += engine::KeysOfRange(part.begin, rows);
  }
  // A long step must not let the landings of requests that still wait run out.
  const engine::StepResult result =
      context_.engine->Step(ranges, [this](int) { KeepLandingsAlive(); });
  ++steps_;
  const auto vocab = static_cast<size_t>(context_.engine->model().config.vocab);
  std::vector<std::vector<worker::OutputToken>> tokens;
  for (size_t i = 0; i < parts.size(); ++i) {
    const int row = result.first_row[i];
    tokens.push_back(Advance(
        parts[i], row < 0 ? std::span<const float>()
                          : result.logits.subspan(static_cast<size_t>(row) * vocab, vocab)));
  }
  step.ranges = records;
  step.seconds = worker::SecondsBetween(begin, context_.clock->Now());
  context_.probe->OnStep(step);
  for (size_t i = 0; i < parts.size(); ++i) {
    if (!tokens[i].empty()) Give(*parts[i].job, tokens[i]);
  }
}

void StepLoop::Give(Job& job, const std::vector<worker::OutputToken>& tokens) {
  if (job.state == Job::State::kRunning) return Emit(job, tokens.front());
  job.sink->OnPrefilled(
      {.cached_tokens = job.cached,
       .queue_s = worker::SecondsBetween(job.submitted, job.first_step),
       .compute_s = worker::SecondsBetween(job.first_step, context_.clock->Now())});
  context_.probe->OnPrompt({.cached = job.cached - job.loaded,
                            .loaded = job.loaded,
                            .computed = job.request.prompt_tokens() - job.cached});
  Start(job, tokens);
}

std::vector<worker::OutputToken> StepLoop::Advance(const StepPart& part,
                                                   std::span<const float> logits) {
  Job& job = *part.job;
  if (job.state == Job::State::kRunning) {
    const int32_t full = part.member->chain.size();
    part.member->chain.Append({&part.member->last_id, 1});
    if (part.member->chain.size() > full) Publish(*part.member);
    return {NextToken(job, *part.member, logits)};
  }
  job.computed = part.end;
  context_.pool->Publish(part.member->blocks, part.member->chain,
                         std::min(part.end / context_.engine->storage().layout().block_tokens,
                                  part.member->chain.size()));
  if (logits.empty()) return {};
  return worker::SampleFirst(job.request, logits,
                             context_.engine->model().tokenizer->end_of_generation_ids());
}

// The KV of all tokens of its chain is there.
void StepLoop::Publish(Member& member) {
  context_.pool->Publish(member.blocks, member.chain, member.chain.size());
}

worker::OutputToken StepLoop::NextToken(const Job& job, const Member& member,
                                        std::span<const float> logits) const {
  const auto end_ids = context_.engine->model().tokenizer->end_of_generation_ids();
  const int32_t index = job.index(member) + 1;
  worker::OutputToken token{
      .choice = static_cast<int32_t>(&member - job.members.data()),
      .index = index,
      .token = engine::Sample(logits, member.sampling, index, end_ids, member.history),
      .has_logprob = member.sampling.logprobs >= 0};
  token.finish = engine::FinishAfter(token.token.id, member.sampling, index, end_ids);
  return token;
}

}  // namespace trivium::decode
