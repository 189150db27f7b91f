#include "services/decode/step_loop.h"

#include <algorithm>
#include <utility>

#include "common/telemetry/log.h"
#include "common/worker/convert.h"
#include "common/worker/first_tokens.h"
#include "common/worker/landing.h"
#include "common/worker/step_batch.h"

namespace trivium::decode {
namespace {

template <typename... F>
struct Overloaded : F... {
  using F::operator()...;
};

// One step has a row with logits for every running member.
worker::LoopContext Bounded(worker::LoopContext context) {
  context.requests_max =
      std::min({context.requests_max, context.step_tokens, int32_t{engine::Engine::kMaxLogitRows}});
  return context;
}

}  // namespace

StepLoop::StepLoop(const worker::LoopContext& context)
    : context_(Bounded(context)),
      admission_(context_.requests_max),
      mailbox_(std::make_shared<worker::Mailbox<Command>>()),
      schedule_(worker::MakeSchedule(context_, 0, context_.requests_max)) {
  PublishLoad();
  thread_ = std::thread([this] { Run(); });
}

StepLoop::~StepLoop() { Stop(); }

absl::StatusOr<StepLoop::Submitted> StepLoop::Submit(worker::StageRequest request,
                                                     DecodeSink* sink) {
  RETURN_IF_ERROR(admission_.Enter(request.choices));
  return SubmitAdmitted(std::move(request), sink);
}

absl::StatusOr<StepLoop::Submitted> StepLoop::SubmitAdmitted(worker::StageRequest request,
                                                             DecodeSink* sink) {
  auto blocks = Reserve(request);
  if (!blocks.ok()) {
    admission_.Leave(request.choices);
    if (!absl::IsResourceExhausted(blocks.status())) return blocks.status();
    return worker::RetryLater(Message(blocks.status()));
  }
  auto job = std::make_unique<Job>();
  const uint64_t number = next_number_++;
  job->number = number;
  job->request = std::move(request);
  job->sink = sink;
  job->submitted = context_.clock->Now();
  job->members_left = job->request.choices;
  for (int32_t choice = 0; choice < job->request.choices; ++choice) {
    job->members.push_back({.sampling = job->request.SamplingOf(choice),
                            .blocks = std::move((*blocks)[static_cast<size_t>(choice)]),
                            .chain = job->request.chain});
  }
  job->cached = job->members.front().blocks.cached_blocks() *
                context_.engine->storage().layout().block_tokens;
  job->computed = job->cached;
  if (MayGrow(*job)) job->growing = growing_;
  job->alive = std::make_shared<const uint64_t>(number);
  const bool prefills = job->request.prefills;
  std::optional<kv::Offload::Wanted> wanted;
  if (prefills && context_.promotion != nullptr) {
    wanted = context_.promotion->Plan(
        job->members.front().blocks,
        worker::PrefixOf(job->request, context_.engine->storage().layout().block_tokens));
  }
  if (prefills && !wanted.has_value()) {
    if (absl::Status status = CheckPictures(*job); !status.ok()) {
      admission_.Leave(job->request.choices);
      return status;
    }
  }
  if (prefills) job->state = wanted ? Job::State::kFetching : Job::State::kPrefilling;
  transfer::LandingOptions landing = LandingFor(*job);
  const int32_t choices = job->request.choices;
  const std::weak_ptr<const uint64_t> alive = job->alive;
  if (!mailbox_->Post(Reserved{std::move(job)})) {
    admission_.Leave(choices);
    return Unavailable("the worker is stopping");
  }
  if (wanted.has_value()) {
    context_.promotion->Begin(*std::move(wanted), alive,
                              [mailbox = mailbox_, number](int32_t fetched) {
                                mailbox->Post(Fetched{number, fetched});
                              });
  }
  if (prefills) return Submitted{number, std::nullopt};
  auto ticket = context_.transport->Expect(std::move(landing));
  if (!ticket.ok()) {
    mailbox_->Post(Cancelled{number, true});
    return ticket.status();
  }
  mailbox_->Post(Expected{number, ticket->landing_id});
  return Submitted{number, *std::move(ticket)};
}

absl::StatusOr<std::vector<kv::Reservation>> StepLoop::Reserve(
    const worker::StageRequest& request) {
  const int32_t block_tokens = context_.engine->storage().layout().block_tokens;
  const int32_t total = context_.pool->counts().total;
  const int64_t all = worker::NeedOf(request, request.remaining_tokens(), block_tokens).Blocks();
  if (all > total) {
    return InvalidArgument("{} KV blocks may be needed, the pool has {}", all, total);
  }
  const int32_t expected = context_.admits_expected ? lengths_.expected() : 0;
  kv::GroupNeed need =
      worker::NeedOf(request, kv::TokensToReserve(request.bounds(), expected), block_tokens);
  need.spare = Spare();
  return context_.pool->ReserveGroup(need, worker::PrefixOf(request, block_tokens));
}

// It has no multimedia tokens, so of a prompt that it prefills their KV must be here.
absl::Status StepLoop::CheckPictures(const Job& job) {
  const auto& slices = job.request.slices;
  if (slices.empty() || job.computed >= slices.back().end()) return absl::OkStatus();
  return FailedPrecondition("it does not hold the KV of the prompt's pictures");
}

bool StepLoop::MayGrow(const Job& job) const {
  const int32_t all = job.request.prompt_tokens() + job.request.remaining_tokens();
  return worker::BlocksFor(all, context_.engine->storage().layout().block_tokens) >
         static_cast<int32_t>(job.members.front().blocks.blocks().size());
}

int32_t StepLoop::Spare() const {
  return SpareBlocks(static_cast<int32_t>(growing_.use_count()) - 1);
}

// The prompt's KV lands in the first member's blocks. The job must be in the mailbox before the
// landing is open, so that its arrival finds it there.
transfer::LandingOptions StepLoop::LandingFor(const Job& job) const {
  transfer::LandingOptions landing = worker::LandingIn(job.members.front().blocks, *context_.pool,
                                                       {job.cached, job.request.prompt_tokens()});
  landing.credentials = job.request.key;
  const std::weak_ptr<const uint64_t> alive = job.alive;
  landing.on_arrival = [mailbox = mailbox_, alive](absl::StatusOr<transfer::Arrival> arrival) {
    const auto number = alive.lock();
    if (number != nullptr) mailbox->Post(Landed{*number, std::move(arrival)});
  };
  return landing;
}

void StepLoop::Cancel(uint64_t number) { mailbox_->Post(Cancelled{number, false}); }

void StepLoop::EndChoice(const transfer::Credentials& key, int32_t choice) {
  if (cuts_waiting_ >= context_.requests_max) return;
  ++cuts_waiting_;
  mailbox_->Post(ChoiceCut{key, choice});
}

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
    KeepLandingsAlive();
    MakeRoom();
    PublishLoad();
    RunStep();
  }
  for (Command& command : mailbox_->Take(Duration::zero())) Apply(std::move(command));
  while (!jobs_.empty()) End(jobs_.begin()->first, Unavailable("the worker is stopping"));
}

std::optional<Duration> StepLoop::IdleTime() const {
  if (jobs_.empty()) return std::nullopt;
  for (const auto& [number, job] : jobs_) {
    const bool waits = job->state == Job::State::kLanding || job->state == Job::State::kFetching;
    if (!waits) return Duration::zero();
  }
  return context_.keep_alive_interval;
}

void StepLoop::Apply(Command command) {
  const auto find = [this](uint64_t number) {
    const auto found = jobs_.find(number);
    return found == jobs_.end() ? nullptr : found->second.get();
  };
  std::visit(Overloaded{[this](Reserved& reserved) {
                          const uint64_t number = reserved.job->number;
                          jobs_.emplace(number, std::move(reserved.job));
                        },
                        [&](Expected& expected) {
                          if (Job* job = find(expected.number))
                            job->landing_id = expected.landing_id;
                        },
                        [&](Cancelled& cancelled) {
                          if (find(cancelled.number) == nullptr) return;
                          End(cancelled.number, absl::CancelledError("cancelled by the caller"),
                              cancelled.silent);
                        },
                        [&](Fetched& fetched) {
                          if (Job* job = find(fetched.number)) Fetch(*job, fetched.blocks);
                        },
                        [&](Landed& landed) {
                          if (Job* job = find(landed.number)) Land(*job, std::move(landed.arrival));
                        },
                        [this](const ChoiceCut& cut) { Cut(cut); }},
             command);
}

void StepLoop::Cut(const ChoiceCut& cut) {
  --cuts_waiting_;
  for (const auto& [number, job] : jobs_) {
    if (job->request.key != cut.key || cut.choice < 0 || cut.choice >= job->request.choices) {
      continue;
    }
    job->members[static_cast<size_t>(cut.choice)].is_cut = true;
  }
}

// These blocks, behind those found in the pool, hold their KV now.
void StepLoop::Fetch(Job& job, int32_t blocks) {
  Member& member = job.members.front();
  const int32_t block_tokens = context_.engine->storage().layout().block_tokens;
  context_.pool->Publish(member.blocks, member.chain, member.blocks.cached_blocks() + blocks);
  job.loaded = blocks * block_tokens;
  job.cached += job.loaded;
  job.computed = job.cached;
  job.state = Job::State::kPrefilling;
  if (absl::Status status = CheckPictures(job); !status.ok()) End(job.number, std::move(status));
}

void StepLoop::Land(Job& job, absl::StatusOr<transfer::Arrival> arrival) {
  job.landing_id.reset();  // the transport has closed it
  if (!arrival.ok()) {
    End(job.number, Unavailable("landing failed: {}", Message(arrival.status())));
    return;
  }
  if (absl::Status status = Join(job, *arrival); !status.ok()) End(job.number, std::move(status));
}

absl::Status StepLoop::Join(Job& job, const transfer::Arrival& arrival) {
  ASSIGN_OR_RETURN(
      const std::vector<worker::OutputToken> first,
      worker::ParseTail(arrival.tail, context_.engine->model().config.vocab, job.request));
  const bool goes_on = worker::GoesOn(first);
  if (goes_on && !arrival.kv_complete) {
    return absl::DataLossError("landing failed: the request goes on, but its KV is not complete");
  }
  if (goes_on && job.request.remaining_tokens() == 1) {
    return absl::DataLossError("landing failed: the last token does not end the request");
  }
  job.kv_bytes = arrival.kv_bytes;
  if (arrival.kv_complete) {
    Publish(job.members.front());
    context_.probe->OnPrompt(
        {.cached = job.cached, .received = job.request.prompt_tokens() - job.cached});
  }
  Start(job, first);
  return absl::OkStatus();
}

// The KV of the prompt is there, and each choice has its first token.
void StepLoop::Start(Job& job, const std::vector<worker::OutputToken>& first) {
  job.state = Job::State::kRunning;
  job.joined = context_.clock->Now();
  const engine::TokenHistory history(job.request.sampling, job.request.token_ids,
                                     job.request.output_index);
  for (Member& member : job.members) member.history = history;
  context_.probe->OnFirstToken(worker::SecondsBetween(job.submitted, job.joined));
  if (worker::GoesOn(first)) ShareKv(job);
  for (const worker::OutputToken& token : first) Emit(job, token);
}

// The members have the prompt's full blocks in common; the rest of the prompt lies in the first
// one's next block.
void StepLoop::ShareKv(Job& job) {
  const int32_t block_tokens = context_.engine->storage().layout().block_tokens;
  const int32_t rows = job.request.prompt_tokens() % block_tokens;
  if (rows == 0) return;
  const auto block = static_cast<size_t>(job.request.prompt_tokens() / block_tokens);
  for (size_t i = 1; i < job.members.size(); ++i) {
    context_.engine->storage().CopyRows(job.members[0].blocks.blocks()[block],
                                        job.members[i].blocks.blocks()[block], rows);
  }
}

// A landing lives as long as the request does: it is the open call, not a guess, that says a sender
// is due.
void StepLoop::KeepLandingsAlive() {
  const TimePoint now = context_.clock->Now();
  if (now - kept_alive_ < context_.keep_alive_interval) return;
  kept_alive_ = now;
  for (const auto& [number, job] : jobs_) {
    if (job->landing_id.has_value()) context_.transport->KeepAlive(*job->landing_id);
  }
}

// Before a step every running request owns the block that its next row goes to.
void StepLoop::MakeRoom() {
  const int32_t block_tokens = context_.engine->storage().layout().block_tokens;
  std::vector<std::pair<uint64_t, Member*>> outgrown;
  for (const auto& [number, job] : jobs_) {
    if (job->state != Job::State::kRunning) continue;
    for (Member& member : job->members) {
      const auto block = static_cast<size_t>(job->position(member) / block_tokens);
      const size_t owned = member.blocks.blocks().size();
      if (owned > 0 && block >= owned) outgrown.emplace_back(number, &member);
    }
  }
  for (const auto& [number, member] : outgrown) {
    // Its own request may be the one that gives way.
    while (jobs_.contains(number) && !member->blocks.Extend(1).ok()) Preempt();
  }
}

void StepLoop::Preempt() {
  std::vector<Standing> running;
  for (const auto& [number, job] : jobs_) {
    // Choices hold all their blocks from the start, and share some: they stay.
    if (job->state != Job::State::kRunning || job->request.choices > 1) continue;
    running.push_back({number, job->request.priority, job->request.preemptions});
  }
  const int chosen = GivesWay(running);
  TRIVIUM_CHECK(chosen >= 0, "a request outgrew its room though it held all");
  End(running[static_cast<size_t>(chosen)].number,
      absl::AbortedError("preempted: its KV blocks were needed by another request"));
}

// The job may be gone when this returns, but never before each of its members has ended.
void StepLoop::Emit(Job& job, const worker::OutputToken& token) {
  Member& member = job.members[static_cast<size_t>(token.choice)];
  const TimePoint now = context_.clock->Now();
  if (member.tokens > 0) {
    context_.probe->OnTokenGap(worker::SecondsBetween(member.newest_at, now));
  }
  member.newest_at = now;
  ++member.tokens;
  member.last_id = token.token.id;
  member.history.Add(token.token.id);
  job.sink->OnToken(token);
  if (token.finish == engine::FinishReason::kNone && !member.is_cut) return;
  Learn(job, member);
  member.blocks = kv::Reservation();
  if (--job.members_left == 0) return End(job.number, absl::OkStatus());
  admission_.Leave();
}

void StepLoop::Learn(const Job& job, const Member& member) {
  if (member.tokens == 0 || job.request.is_length_known()) return;
  lengths_.Add(job.request.output_index + member.tokens);
}

void StepLoop::End(uint64_t number, absl::Status status, bool silent) {
  schedule_.Drop(number);
  auto node = jobs_.extract(number);
  std::unique_ptr<Job> job = std::move(node.mapped());
  DecodeSink* sink = job->sink;
  const bool expected = status.ok() || absl::IsCancelled(status) || absl::IsAborted(status);
  const double decode_s = job->state != Job::State::kRunning
                              ? 0
                              : worker::SecondsBetween(job->joined, context_.clock->Now());
  int32_t tokens = 0;
  for (const Member& member : job->members) {
    tokens += member.tokens;
    // A stop string ends an answer by cancelling the call.
    if (absl::IsCancelled(status) && !member.blocks.empty()) Learn(*job, member);
  }
  if (!silent) context_.probe->OnEnd(status);
  telemetry::Log(expected ? telemetry::Level::kInfo : telemetry::Level::kWarning, "decode_end",
                 {{"request_id", job->request.key.request.value},
                  {"attempt", job->request.key.attempt.value},
                  {"status", absl::StatusCodeToString(status.code())},
                  {"error", Message(status)},
                  {"prompt_tokens", job->request.prompt_tokens()},
                  {"choices", job->request.choices},
                  {"tokens", tokens},
                  {"cached_tokens", job->cached},
                  {"kv_bytes", job->kv_bytes},
                  {"first_step_ns", job->first_step.time_since_epoch().count()},
                  {"decode_s", decode_s}});
  if (job->landing_id.has_value()) context_.transport->Withdraw(*job->landing_id);
  // The last member's place is left with the request.
  const int32_t places = std::max(1, job->members_left);
  job.reset();
  admission_.Leave(places);
  PublishLoad();
  if (!silent) sink->OnEnd(std::move(status));
}

void StepLoop::PublishLoad() {
  worker::Load load{.steps = steps_, .requests_max = context_.requests_max};
  load.expected_output_tokens = context_.admits_expected ? lengths_.expected() : 0;
  load.blocks_spare = Spare();
  for (const auto& [number, job] : jobs_) {
    if (job->state == Job::State::kRunning) {
      load.requests_running += job->members_left;
    } else {
      load.requests_waiting += job->members_left;
      load.prompt_tokens_waiting += job->request.prompt_tokens() - job->computed;
    }
  }
  context_.board->Set(load);
}

}  // namespace trivium::decode
