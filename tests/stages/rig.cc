#include "tests/stages/rig.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

namespace trivium::stages {
namespace {

constexpr int32_t kLocalBlocks = 256;
constexpr auto kPatience = std::chrono::seconds(300);

}  // namespace

void StepLog::OnStep(const worker::StepRecord& step) {
  const Step copy{{step.ranges.begin(), step.ranges.end()}, step.load, step.limit};
  {
    std::lock_guard lock(mutex_);
    steps_.push_back(copy);
  }
  if (on_step) on_step(copy);
}

void StepLog::OnTokenGap(double seconds) {
  EXPECT_GE(seconds, 0);
  std::lock_guard lock(mutex_);
  ++gaps_;
}

int64_t StepLog::gaps() const {
  std::lock_guard lock(mutex_);
  return gaps_;
}

void StepLog::OnEnd(const absl::Status& status) {
  std::lock_guard lock(mutex_);
  ++ends_[status.code()];
}

void StepLog::OnPrompt(const worker::PromptRecord& prompt) {
  std::lock_guard lock(mutex_);
  prompts_.cached += prompt.cached;
  prompts_.loaded += prompt.loaded;
  prompts_.received += prompt.received;
  prompts_.computed += prompt.computed;
}

worker::PromptRecord StepLog::prompts() const {
  std::lock_guard lock(mutex_);
  return prompts_;
}

int StepLog::ends(absl::StatusCode code) const {
  std::lock_guard lock(mutex_);
  const auto found = ends_.find(code);
  return found == ends_.end() ? 0 : found->second;
}

std::vector<StepLog::Step> StepLog::steps() const {
  std::lock_guard lock(mutex_);
  return steps_;
}

void StepLog::WaitStepOf(uint64_t request) const {
  const auto is_in = [request](const Step& step) {
    return std::any_of(step.ranges.begin(), step.ranges.end(),
                       [request](const auto& range) { return range.request == request; });
  };
  for (const TimePoint begin = Clock::Real().Now(); Clock::Real().Now() - begin < kPatience;) {
    {
      std::lock_guard lock(mutex_);
      if (std::any_of(steps_.begin(), steps_.end(), is_in)) return;
    }
    std::this_thread::yield();
  }
  TRIVIUM_CHECK(false, "request {} was never in a step", request);
}

WorkerParts::WorkerParts(const RigOptions& rig, int32_t blocks, uint64_t epoch)
    : options(rig),
      engine(engine::MakeTestEngine(
          {.isa = kernels::Isa::kReference, .numerics = rig.numerics, .threads = 1}, blocks)) {
  const bool has_tiers = rig.tier_memory_bytes > 0 || !rig.tier_disk.empty();
  kv::BlockSaver saver;
  if (has_tiers) saver = [this](BlockId block, auto& content) { offload->Save(block, content); };
  pool = std::make_unique<kv::BlockPool>(
      blocks, [storage = engine.storage](BlockId block) { storage->Scrub(block); }, Clock::Real(),
      std::move(saver));
  if (has_tiers) {
    auto opened = kv::Offload::Open(
        engine.storage,
        {.memory_bytes = rig.tier_memory_bytes,
         .disk_path = rig.tier_disk.empty() ? "" : fmt::format("{}.{}", rig.tier_disk, epoch),
         .disk_bytes = 64 << 20,
         .disk_secret = std::string(32, 's'),
         .events = &pool->events()});
    TRIVIUM_CHECK(opened.ok(), "{}", Message(opened.status()));
    offload = *std::move(opened);
    promotion = std::make_unique<worker::Promotion>(*offload, cost);
  }
  transfer::TransportOptions transport_options;
  transport_options.storage = engine.storage;
  transport_options.epoch = {epoch};
  transport_options.timeouts.scale = rig.timeout_scale;
  auto made = transfer::MakeInProcessTransport(std::move(transport_options));
  TRIVIUM_CHECK(made.ok(), "{}", Message(made.status()));
  transport = *std::move(made);
}

worker::LoopContext WorkerParts::Context() {
  return {.engine = engine.engine.get(),
          .pool = pool.get(),
          .transport = transport.get(),
          .board = &board,
          .probe = &log,
          .promotion = promotion.get(),
          .step_tokens = options.step_tokens,
          .prefill_policy = options.prefill_policy,
          .step_target_s = options.step_target_s,
          .cost = &cost,
          .requests_max = options.requests_max,
          .admits_expected = options.admits_expected,
          .keep_alive_interval = std::chrono::duration_cast<Duration>(
              std::chrono::milliseconds(250) * options.timeout_scale)};
}

namespace {

template <typename Condition>
bool WaitUntil(const Condition& condition) {
  const TimePoint deadline = Clock::Real().Now() + kPatience;
  while (Clock::Real().Now() < deadline) {
    if (condition()) return true;
    std::this_thread::yield();
  }
  return false;
}

}  // namespace

bool WorkerParts::WaitAllFree() const {
  return WaitUntil([&] {
    const kv::BlockPool::Counts counts = pool->counts();
    EXPECT_EQ(counts.free + counts.used + counts.leased, counts.total);
    return counts.free == counts.total;
  });
}

bool WorkerParts::WaitHeard() const {
  return WaitUntil([&] { return transport->counters().bytes_received > 0; });
}

void Outcome::Add(const worker::OutputToken& token) {
  std::lock_guard lock(mutex_);
  EXPECT_EQ(ends_, 0) << "a token after the end";
  tokens_.push_back(token);
  changed_.notify_all();
}

void Outcome::OnPromptTokens(const std::vector<worker::OutputToken>& tokens) {
  std::lock_guard lock(mutex_);
  EXPECT_TRUE(tokens_.empty()) << "a token of the prompt after the first one of the answer";
  prompt_tokens_.insert(prompt_tokens_.end(), tokens.begin(), tokens.end());
}

void Outcome::OnSent(const prefill::SentReport& report) {
  std::lock_guard lock(mutex_);
  sent_ = report;
}

void Outcome::OnPrefilled(const decode::PrefillReport& report) {
  std::lock_guard lock(mutex_);
  EXPECT_TRUE(tokens_.empty());
  sent_.cached_tokens = report.cached_tokens;
}

void Outcome::OnEnd(absl::Status status) {
  std::lock_guard lock(mutex_);
  EXPECT_EQ(ends_++, 0) << "a second end";
  status_ = std::move(status);
  changed_.notify_all();
}

bool Outcome::WaitFor(Duration timeout) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, timeout, [this] { return ends_ > 0; });
}

absl::Status Outcome::Wait() {
  TRIVIUM_CHECK(WaitFor(kPatience), "a request did not end");
  std::lock_guard lock(mutex_);
  return absl::Status(status_.code(), status_.message());
}

void Outcome::WaitTokens(size_t count) {
  std::unique_lock lock(mutex_);
  const bool came =
      changed_.wait_for(lock, kPatience, [&] { return ends_ > 0 || tokens_.size() >= count; });
  TRIVIUM_CHECK(came, "a request made no progress");
}

std::vector<worker::OutputToken> Outcome::tokens() const {
  std::lock_guard lock(mutex_);
  return tokens_;
}

std::vector<worker::OutputToken> Outcome::prompt_tokens() const {
  std::lock_guard lock(mutex_);
  return prompt_tokens_;
}

std::vector<int32_t> Outcome::ids() const {
  std::vector<int32_t> ids;
  for (const worker::OutputToken& token : tokens()) ids.push_back(token.token.id);
  return ids;
}

int Outcome::ends() const {
  std::lock_guard lock(mutex_);
  return ends_;
}

prefill::SentReport Outcome::sent() const {
  std::lock_guard lock(mutex_);
  return sent_;
}

Rig::Rig(const RigOptions& rig)
    : options(rig),
      prefill_parts(rig, rig.prefill_blocks, 11),
      decode_parts(rig, rig.decode_blocks, 22),
      prefill(std::make_unique<prefill::StepLoop>(prefill_parts.Context())),
      decode(std::make_unique<decode::StepLoop>(decode_parts.Context())),
      local_(engine::MakeTestEngine(
          {.isa = kernels::Isa::kReference, .numerics = rig.numerics, .threads = 1}, kLocalBlocks)),
      local_pool_(kLocalBlocks) {}

Rig::~Rig() {
  prefill.reset();
  decode.reset();
  prefill_parts.transport.reset();
  decode_parts.transport.reset();
}

worker::StageRequest Rig::Request(std::vector<int32_t> ids, const engine::SamplingParams& sampling,
                                  int32_t output_index) {
  std::lock_guard lock(mutex_);
  ++requests_;
  transfer::Credentials key{.request = {fmt::format("request-{}", requests_)}, .attempt = {1}};
  key.secret.fill(static_cast<uint8_t>(requests_));
  return {.key = std::move(key),
          .token_ids = std::move(ids),
          .output_index = output_index,
          .sampling = sampling};
}

std::unique_ptr<Flight> Rig::Launch(const worker::StageRequest& request) {
  return LaunchAt(*prefill, request);
}

std::unique_ptr<Flight> Rig::LaunchAt(prefill::StepLoop& at, const worker::StageRequest& request,
                                      OnPullTicket on_pull_ticket,
                                      OnSliceTickets on_slice_tickets) {
  auto flight = std::make_unique<Flight>();
  flight->prefill.on_slice_tickets = std::move(on_slice_tickets);
  flight->prefill.on_pull_ticket = std::move(on_pull_ticket);
  auto landing = decode->Submit(request, &flight->decode);
  if (!landing.ok()) {
    flight->decode.End(landing.status());
    flight->prefill.End(absl::CancelledError("never begun"));
    return flight;
  }
  flight->decode_number = landing->number;
  if (request.prefills) {
    flight->prefill.End(absl::OkStatus());
    return flight;
  }
  auto prompt = at.Submit(request, *landing->ticket, &flight->prefill);
  if (prompt.ok()) {
    flight->prefill_number = *prompt;
  } else {
    flight->prefill.End(prompt.status());
    decode->Cancel(flight->decode_number);
  }
  return flight;
}

absl::StatusOr<std::vector<worker::OutputToken>> Rig::Run(const worker::StageRequest& request) {
  const std::unique_ptr<Flight> flight = Launch(request);
  const absl::Status prefilled = flight->prefill.Wait();
  const absl::Status decoded = flight->decode.Wait();
  RETURN_IF_ERROR(decoded);
  RETURN_IF_ERROR(prefilled);
  const std::vector<worker::OutputToken> tokens = flight->decode.tokens();
  if (request.prefills) return tokens;
  const std::vector<worker::OutputToken> first = flight->prefill.tokens();
  EXPECT_EQ(first.size(), 1u);
  EXPECT_EQ(first[0].token.id, tokens[0].token.id);
  EXPECT_EQ(first[0].index, tokens[0].index);
  EXPECT_EQ(first[0].finish, tokens[0].finish);
  return tokens;
}

engine::Generation Rig::Local(const worker::StageRequest& request) {
  auto result = engine::GenerateLocal(*local_.engine, local_pool_, request.token_ids,
                                      request.sampling, options.step_tokens);
  TRIVIUM_CHECK(result.ok(), "{}", Message(result.status()));
  return *std::move(result);
}

std::vector<int32_t> Rig::RandomPrompt(std::mt19937& random, size_t count) const {
  return engine::RandomIds(random, count, local_.config().vocab);
}

}  // namespace trivium::stages
