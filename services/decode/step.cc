// One step of the decode stage: which rows it holds, and what comes of them.
#include <algorithm>
#include <utility>

#include "common/worker/first_tokens.h"
#include "common/worker/step_batch.h"
#include "services/decode/step_loop.h"

namespace trivium::decode {
std::vector<StepPart> StepLoop::Plan() {
  std::vector<StepPart> parts;
  worker::StepLoad running;
  for (const auto& [number, job] : jobs_) {
    if (job->state != Job::State::kRunning) continue;
    for (Member& member : job->members) {
      if (member.blocks.empty()) continue;
      parts.push_back({job.get(), &member});
      running.Add(job->position(member), 1);
    }
  }
  PlanPrompts(running, &parts);
  return parts;
}

// Where nobody waits for the next token, no time has to be kept.
void StepLoop::PlanPrompts(worker::StepLoad running, std::vector<StepPart>* parts) {
  std::vector<worker::PromptTurn> prompts;
  for (const auto& [number, job] : jobs_) {
    if (job->state != Job::State::kPrefilling) continue;
    prompts.push_back({number, {.done = job->computed, .total = job->request.prompt_tokens()}});
  }
  plan_ = schedule_.Plan(prompts, running,
                         {.rows = std::min(context_.step_tokens, engine::Engine::kMaxRows),
                          .seconds = running.rows > 0 ? context_.step_target_s : 0,
                          .cost = context_.cost});
  for (const worker::PromptChunk& chunk : plan_.chunks) {
    Job* job = jobs_.at(chunk.number).get();
    parts->push_back({job, &job->members.front(), chunk.end});
  }
}

void StepLoop::RunStep() {
  const TimePoint begin = context_.clock->Now();
  const std::vector<StepPart> parts = Plan();
  if (parts.empty()) return;
  worker::StepBatch batch(context_);
  const size_t answers = parts.size() - plan_.chunks.size();
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto& [job, member, prompt_end] = parts[i];
    if (job->first_step == TimePoint{}) job->first_step = begin;
    if (i < answers) {
      batch.AddAnswer(job->number, member->last_id, job->position(*member),
                      member->blocks.block_table());
    } else {
      batch.AddChunk(plan_.chunks[i - answers], job->request, member->blocks.block_table(), false);
    }
  }
  // A long step must not let the landings of requests that still wait run out.
  batch.Run(schedule_, [this](int) { KeepLandingsAlive(); });
  ++steps_;
  std::vector<std::vector<worker::OutputToken>> tokens;
  for (size_t i = 0; i < parts.size(); ++i) {
    const bool is_done = i < answers || schedule_.is_through();
    tokens.push_back(is_done ? Advance(parts[i], batch.logits(i))
                             : std::vector<worker::OutputToken>());
  }
  batch.Report(plan_, begin);
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
  job.computed = part.prompt_end;
  context_.pool->Publish(
      part.member->blocks, part.member->chain,
      std::min(part.prompt_end / context_.engine->storage().layout().block_tokens,
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
