#include "services/prefill/step_loop.h"

#include <algorithm>
#include <utility>

#include "common/engine/prompt_scores.h"
#include "common/telemetry/log.h"
#include "common/worker/chunk_plan.h"
#include "common/worker/convert.h"
#include "common/worker/first_tokens.h"
#include "common/worker/step_batch.h"
#include "services/prefill/job.h"

namespace trivium::prefill {
namespace {

// Leases end on the transport's thread, which posts no command: so waiting prompts look again this
// often.
constexpr Duration kLeasePoll = std::chrono::milliseconds(5);

template <typename... F>
struct Overloaded : F... {
  using F::operator()...;
};

}  // namespace

StepLoop::StepLoop(const worker::LoopContext& context)
    : context_(context),
      admission_(context.requests_max),
      mailbox_(std::make_shared<worker::Mailbox<Command>>()),
      waiting_(context.pool, context.engine->storage().layout().block_tokens, context.step_tokens),
      schedule_(worker::MakeSchedule(context_, kScoredRows, 0)) {
  PublishLoad();
  thread_ = std::thread([this] { Run(); });
}

StepLoop::~StepLoop() { Stop(); }

absl::StatusOr<uint64_t> StepLoop::Submit(worker::StageRequest request, transfer::Ticket ticket,
                                          PrefillSink* sink) {
  const int32_t blocks =
      worker::BlocksFor(request.prompt_tokens(), context_.engine->storage().layout().block_tokens);
  const int32_t total = context_.pool->counts().total;
  if (blocks > total) {
    return InvalidArgument("token_ids needs {} KV blocks, this worker has {}", blocks, total);
  }
  RETURN_IF_ERROR(PictureIntake::CheckFits(context_.media, request));
  RETURN_IF_ERROR(admission_.Enter());
  auto job = std::make_unique<Job>();
  const uint64_t number = next_number_++;
  job->number = number;
  job->request = std::move(request);
  job->ticket = std::move(ticket);
  job->sink = sink;
  job->submitted = context_.clock->Now();
  job->alive = std::make_shared<const uint64_t>(number);
  if (mailbox_->Post(Arrived{std::move(job)})) return number;
  admission_.Leave();
  return Unavailable("the worker is stopping");
}

void StepLoop::Cancel(uint64_t number) { mailbox_->Post(Cancelled{number}); }

void StepLoop::Drain() {
  admission_.Drain();
  context_.board->SetDraining();
}

void StepLoop::Stop() {
  mailbox_->Close();
  if (thread_.joinable()) thread_.join();
}

void StepLoop::Run() {
  while (true) {
    for (Command& command : mailbox_->Take(IdleTime())) Apply(std::move(command));
    if (mailbox_->closed()) break;
    CheckPulls();
    CheckPictures();
    Admit();
    PublishLoad();
    if (const std::vector<Chunk> chunks = Plan(); !chunks.empty()) RunStep(chunks);
  }
  for (Command& command : mailbox_->Take(Duration::zero())) Apply(std::move(command));
  while (!jobs_.empty()) End(jobs_.begin()->first, Unavailable("the worker is stopping"));
}

std::optional<Duration> StepLoop::IdleTime() const {
  bool waiting = false;
  for (const auto& [number, job] : jobs_) {
    if (IsReady(*job)) return Duration::zero();
    waiting |= job->state != Job::State::kFetching && job->state != Job::State::kSending;
  }
  if (waiting) return kLeasePoll;
  return std::nullopt;
}

void StepLoop::Apply(Command command) {
  std::visit(Overloaded{[this](Arrived& arrived) {
                          const Job& job = *arrived.job;
                          waiting_.Add(job.number, job.request, job.submitted);
                          jobs_.emplace(job.number, std::move(arrived.job));
                        },
                        [this](Cancelled& cancelled) {
                          if (!jobs_.contains(cancelled.number)) return;
                          End(cancelled.number, absl::CancelledError("cancelled by the caller"));
                        },
                        [this](Fetched& fetched) {
                          const auto job = jobs_.find(fetched.number);
                          if (job == jobs_.end()) return;
                          absl::Status status = Begin(*job->second, fetched.blocks);
                          if (!status.ok()) End(fetched.number, std::move(status));
                        },
                        [this](Delivered& delivered) {
                          const auto job = jobs_.find(delivered.number);
                          if (job == jobs_.end()) return;
                          Finish(*job->second, std::move(delivered.stats));
                        },
                        [this](Pulled& pulled) {
                          const auto job = jobs_.find(pulled.number);
                          if (job != jobs_.end()) EndPull(*job->second, pulled.arrival);
                        },
                        [this](SliceLanded& landed) {
                          const auto job = jobs_.find(landed.number);
                          if (job != jobs_.end()) OnSliceLanded(*job->second, landed);
                        }},
             command);
}

void StepLoop::Finish(Job& job, absl::StatusOr<transfer::TransferStats> stats) {
  if (!stats.ok()) {
    End(job.number, Unavailable("decode worker lost: {}", Message(stats.status())));
    return;
  }
  TRIVIUM_CHECK(job.state == Job::State::kSending, "a transfer was delivered before its end");
  job.kv_bytes_acked_before_end = stats->kv_bytes_acked_before_finish;
  job.sink->OnSent({.transfer = *stats,
                    .cached_tokens = job.cached,
                    .pulled_tokens = job.pulled,
                    .queue_s = job.queue_s,
                    .compute_s = job.compute_s});
  End(job.number, absl::OkStatus());
}

void StepLoop::Admit() {
  std::vector<PromptQueue::Admitted> admitted;
  for (const auto& [number, job] : jobs_) {
    const bool is_admitted =
        job->state != Job::State::kWaiting && job->state != Job::State::kSending;
    if (is_admitted) admitted.push_back(AdmittedOf(*job));
  }
  std::vector<std::pair<uint64_t, absl::Status>> failed;
  const auto start = [&](uint64_t number) -> absl::StatusOr<PromptQueue::Admitted> {
    Job& job = *jobs_.at(number);
    absl::Status status = Start(job);
    if (status.ok()) return AdmittedOf(job);
    const bool waits = absl::IsResourceExhausted(status) || absl::IsAborted(status);
    if (!waits) failed.emplace_back(number, status);
    return status;
  };
  const auto request = [&](uint64_t number) -> const auto& { return jobs_.at(number)->request; };
  waiting_.Admit(context_.clock->Now(), std::move(admitted), request, start);
  for (auto& [number, status] : failed) End(number, std::move(status));
}

PromptQueue::Admitted StepLoop::AdmittedOf(const Job& job) const {
  const bool lacks_picture = job.state == Job::State::kComputing && !IsReady(job);
  return {.request = &job.request,
          .done = job.done,
          .next = lacks_picture ? job.pictures->ready_end() : job.done,
          .reach = job.reach(),
          .waits = job.state == Job::State::kPulling || lacks_picture};
}

absl::Status StepLoop::Start(Job& job) {
  const int32_t block_tokens = context_.engine->storage().layout().block_tokens;
  // A prompt that is scored has to be computed to the last row.
  const kv::PrefixUse prefix =
      job.is_scored() ? kv::PrefixUse() : worker::PrefixOf(job.request, block_tokens);
  const int32_t blocks = worker::BlocksFor(job.request.prompt_tokens(), block_tokens);
  // First, since reserving evicts and giving back scrubs.
  RETURN_IF_ERROR(CheckPictures(job, blocks));
  ASSIGN_OR_RETURN(job.blocks, context_.pool->Reserve(blocks, prefix));
  if (absl::Status status = StartPictures(job); !status.ok()) {
    job.blocks = kv::Reservation();
    return status;
  }
  job.turn = ++turns_;
  return Fetch(job, prefix) ? absl::OkStatus() : Begin(job, 0);
}

// False: there is nothing to wait for.
bool StepLoop::Fetch(Job& job, const kv::PrefixUse& prefix) {
  if (context_.promotion == nullptr || prefix.chain == nullptr) return false;
  auto wanted = context_.promotion->Plan(job.blocks, prefix);
  if (!wanted.has_value()) return false;
  job.state = Job::State::kFetching;
  context_.promotion->Begin(*std::move(wanted), job.alive,
                            [mailbox = mailbox_, number = job.number](int32_t blocks) {
                              mailbox->Post(Fetched{number, blocks});
                            });
  return true;
}

absl::Status StepLoop::Begin(Job& job, int32_t fetched_blocks) {
  const int32_t block_tokens = context_.engine->storage().layout().block_tokens;
  const int32_t blocks = job.blocks.cached_blocks() + fetched_blocks;
  if (fetched_blocks > 0) context_.pool->Publish(job.blocks, job.request.chain, blocks);
  job.loaded = fetched_blocks * block_tokens;
  job.cached = job.done = blocks * block_tokens;
  const bool pulls = job.request.pull_tokens > job.cached && !job.is_scored();
  return pulls && BeginPull(job) ? absl::OkStatus() : BeginComputing(job);
}

absl::Status StepLoop::BeginComputing(Job& job) {
  const std::weak_ptr<const uint64_t> alive = job.alive;
  auto done = [mailbox = mailbox_, alive](absl::StatusOr<transfer::TransferStats> stats) {
    const auto number = alive.lock();
    if (number != nullptr) mailbox->Post(Delivered{*number, std::move(stats)});
  };
  const std::span<const BlockId> blocks = job.blocks.blocks();
  auto sender = context_.transport->Open(
      job.ticket, job.request.key,
      {.blocks = {blocks.begin(), blocks.end()}, .lease = job.blocks.Lease()}, std::move(done));
  if (absl::IsResourceExhausted(sender.status())) {
    return Unavailable("decode worker cannot be reached: {}", Message(sender.status()));
  }
  RETURN_IF_ERROR(sender.status());
  job.sender = *std::move(sender);
  job.state = Job::State::kComputing;
  Send(job, {.layer_begin = 0,
             .layer_end = context_.engine->model().config.layers,
             .token_begin = 0,
             .token_end = job.done});
  absl::Status pictures = BeginPictures(job);
  // The one code that would mean that it has not begun.
  if (absl::IsResourceExhausted(pictures)) {
    return Unavailable("no landing for slices: {}", Message(pictures));
  }
  return pictures;
}

// What cannot come is computed.
bool StepLoop::BeginPull(Job& job) {
  const std::weak_ptr<const uint64_t> alive = job.alive;
  const auto landed = [mailbox = mailbox_, alive](absl::StatusOr<transfer::Arrival> arrival) {
    const auto number = alive.lock();
    if (number != nullptr) mailbox->Post(Pulled{*number, std::move(arrival)});
  };
  auto pull = Pull::Begin(context_, job.request, job.blocks, job.cached, landed);
  if (!pull.ok()) return false;
  job.pull = *std::move(pull);
  job.state = Job::State::kPulling;
  job.sink->OnPullTicket(job.pull->ticket());
  return true;
}

void StepLoop::EndPull(Job& job, const absl::StatusOr<transfer::Arrival>& arrival) {
  const int32_t block_tokens = context_.engine->storage().layout().block_tokens;
  const std::unique_ptr<Pull> pull = std::move(job.pull);
  if (!arrival.ok()) {
    // What is still on its way may touch these blocks as long as they are leased: it takes others.
    job.request.pull_tokens = job.cached = job.loaded = job.done = 0;
    job.blocks = kv::Reservation();
    job.pictures = nullptr;
    job.state = Job::State::kWaiting;
    waiting_.Add(job.number, job.request, job.submitted, true);
    return;
  }
  job.done = pull->ReachOf(*arrival);
  job.pulled = job.done - job.cached;
  context_.pool->Publish(job.blocks, job.request.chain, job.done / block_tokens);
  absl::Status status = BeginComputing(job);
  if (!status.ok()) End(job.number, std::move(status));
}

void StepLoop::CheckPulls() {
  const TimePoint now = context_.clock->Now();
  for (const auto& [number, job] : jobs_) {
    if (job->pull != nullptr) job->pull->CheckTime(now);
  }
}

// What the receiver holds already (before ticket.token_begin) stays here.
void StepLoop::Send(Job& job, transfer::RowRange rows) {
  rows.token_begin = std::max(rows.token_begin, job.ticket.token_begin);
  if (rows.token_begin < rows.token_end) job.sender->Send(rows);
}

std::vector<StepLoop::Chunk> StepLoop::Plan() {
  std::vector<const Job*> computing;
  for (const auto& [number, job] : jobs_) {
    if (IsReady(*job)) computing.push_back(job.get());
  }
  std::ranges::sort(computing, {}, &Job::turn);
  const int32_t block_tokens = context_.engine->storage().layout().block_tokens;
  std::vector<worker::PromptTurn> prompts;
  for (const Job* job : computing) {
    prompts.push_back({job->number, {job->done, job->ready_end(block_tokens), job->is_scored()}});
  }
  plan_ = schedule_.Plan(prompts, {},
                         {.rows = std::min(context_.step_tokens, engine::Engine::kMaxRows),
                          .seconds = context_.step_target_s,
                          .cost = context_.cost});
  std::vector<Chunk> chunks;
  for (const worker::PromptChunk& chunk : plan_.chunks) {
    chunks.push_back({jobs_.at(chunk.number).get(), chunk});
  }
  return chunks;
}

void StepLoop::RunStep(const std::vector<Chunk>& chunks) {
  const TimePoint begin = context_.clock->Now();
  worker::StepBatch batch(context_);
  std::vector<PictureRows> pictures(chunks.size());
  for (size_t i = 0; i < chunks.size(); ++i) {
    const auto& [job, tokens] = chunks[i];
    if (job->started == TimePoint{}) {
      job->started = begin;
      job->queue_s = worker::SecondsBetween(job->submitted, begin);
    }
    if (job->pictures != nullptr && plan_.layer_begin == 0) {
      pictures[i].given = job->pictures->Rows(tokens.begin, tokens.end, &pictures[i].values);
    }
    batch.AddChunk(tokens, job->request, job->blocks.block_table(), job->is_scored(),
                   pictures[i].given);
  }
  batch.Run(schedule_, [&](int layer) {
    SendLayers(chunks, layer);
    KeepPicturesAlive();  // a long step must not let them run out
  });
  ++steps_;
  if (schedule_.is_through()) {
    for (size_t i = 0; i < chunks.size(); ++i) Advance(chunks[i], batch.logits(i));
  }
  batch.Report(plan_, begin);
}

// The chunk is through all layers.
void StepLoop::Advance(const Chunk& chunk, std::span<const float> logits) {
  Job& job = *chunk.job;
  job.done = chunk.tokens.end;
  context_.pool->Publish(job.blocks, job.request.chain,
                         std::min(job.done / context_.engine->storage().layout().block_tokens,
                                  job.request.chain.size()));
  if (job.pictures != nullptr) job.pictures->Release(job.done);
  if (logits.empty()) return;
  if (job.is_scored()) ScorePrompt(chunk, logits);
  const auto vocab = static_cast<size_t>(context_.engine->model().config.vocab);
  if (job.done == job.request.prompt_tokens()) Sample(job, logits.last(vocab));
}

void StepLoop::SendLayers(const std::vector<Chunk>& chunks, int layer) {
  const int layers = context_.engine->model().config.layers;
  const int group = worker::LayersPerGroup(layers);
  if ((layer + 1) % group != 0 && layer + 1 != layers) return;
  for (const Chunk& chunk : chunks) {
    if (layer + 1 == layers) chunk.job->kv_computed = context_.clock->Now();
    Send(*chunk.job, {.layer_begin = layer / group * group,
                      .layer_end = layer + 1,
                      .token_begin = chunk.tokens.begin,
                      .token_end = chunk.tokens.end});
  }
}

void StepLoop::ScorePrompt(const Chunk& chunk, std::span<const float> logits) {
  const worker::StageRequest& request = chunk.job->request;
  // What earlier attempts have emitted stands behind the prompt and is none of it.
  const auto prompt =
      std::span(request.token_ids)
          .first(static_cast<size_t>(request.prompt_tokens() - request.output_index));
  int32_t index = engine::FirstScored(chunk.tokens.begin);
  std::vector<worker::OutputToken> tokens;
  for (engine::SampledToken& token : engine::ScorePrompt(prompt, chunk.tokens.begin, logits,
                                                         context_.engine->model().config.vocab,
                                                         request.sampling.prompt_logprobs)) {
    tokens.push_back({.index = index, .token = std::move(token), .has_logprob = index > 0});
    ++index;
  }
  if (!tokens.empty()) chunk.job->sink->OnPromptTokens(tokens);
}

void StepLoop::Sample(Job& job, std::span<const float> logits) {
  const std::vector<worker::OutputToken> tokens = worker::SampleFirst(
      job.request, logits, context_.engine->model().tokenizer->end_of_generation_ids());
  const TimePoint now = context_.clock->Now();
  job.compute_s = worker::SecondsBetween(job.started, now);
  job.state = Job::State::kSending;
  for (const worker::OutputToken& token : tokens) job.sink->OnFirstToken(token);
  context_.probe->OnFirstToken(worker::SecondsBetween(job.submitted, now));
  context_.probe->OnPrompt({.cached = job.cached - job.loaded,
                            .loaded = job.loaded,
                            .received = job.pulled,
                            .computed = job.done - job.cached - job.pulled});
  job.sender->Finish(worker::SerializeTail(tokens), worker::GoesOn(tokens));
}

void StepLoop::End(uint64_t number, absl::Status status) {
  waiting_.Remove(number);
  schedule_.Drop(number);
  auto node = jobs_.extract(number);
  std::unique_ptr<Job> job = std::move(node.mapped());
  PrefillSink* sink = job->sink;
  context_.probe->OnEnd(status);
  const bool expected = status.ok() || absl::IsCancelled(status);
  telemetry::Log(expected ? telemetry::Level::kInfo : telemetry::Level::kWarning, "prefill_end",
                 {{"request_id", job->request.key.request.value},
                  {"attempt", job->request.key.attempt.value},
                  {"status", absl::StatusCodeToString(status.code())},
                  {"error", Message(status)},
                  {"prompt_tokens", job->request.prompt_tokens()},
                  {"cached_tokens", job->cached},
                  {"pulled_tokens", job->pulled},
                  {"computed_tokens", job->done - job->cached - job->pulled},
                  {"kv_computed_ns", job->kv_computed.time_since_epoch().count()},
                  {"kv_bytes_acked_before_end", job->kv_bytes_acked_before_end},
                  {"queue_s", job->queue_s},
                  {"compute_s", job->compute_s}});
  job.reset();
  admission_.Leave();
  PublishLoad();
  sink->OnEnd(std::move(status));
}

void StepLoop::PublishLoad() {
  worker::Load load{.steps = steps_, .requests_max = context_.requests_max};
  for (const auto& [number, job] : jobs_) {
    if (job->state == Job::State::kWaiting) {
      ++load.requests_waiting;
    } else {
      ++load.requests_running;
    }
    // What waits for pictures keeps nobody's tokens from being computed.
    if (job->state != Job::State::kSending && (job->request.slices.empty() || IsReady(*job))) {
      load.prompt_tokens_waiting += job->request.prompt_tokens() - job->reach();
    }
  }
  context_.board->Set(load);
}

}  // namespace trivium::prefill
