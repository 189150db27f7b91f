#include "services/router/dispatch/sim_cluster.h"

#include <algorithm>
#include <atomic>

#include "common/kv/answer_room.h"

namespace trivium::router {
namespace {

constexpr int32_t kBlockTokens = 16, kRequestsMax = 8;
constexpr uint64_t kPullLanding = 77;

}  // namespace

// What prefill and decode worker share about one attempt.
struct SimCluster::Landing {
  std::mutex mutex;
  bool has_kv = false, is_finished = false;
};

struct SimCluster::Call final : StageCall {
  void Cancel() override { is_cancelled = true; }

  Role role = Role::kPrefill;
  WorkerIndex worker = kNoWorker;
  int32_t prompt_tokens = 0, output_index = 0;  // when it was opened
  struct Member {
    std::vector<int32_t> ids;
    int32_t output_index = 0;
    bool is_finished = false;
  };
  std::vector<Member> members;  // by choice
  v1::StageSampling sampling;
  int32_t preemptions = 0;
  bool prefills = false;    // decode: it waits for no landing
  int32_t pull_tokens = 0;  // prefill: that it still asks for
  StageHandlers<v1::PrefillEvent> prefill;
  StageHandlers<v1::DecodeEvent> decode;
  StageHandlers<v1::PrefixSent> pull;  // of a holder's call, which has nothing else
  bool is_pull = false;
  std::shared_ptr<Landing> landing;
  std::atomic<bool> is_cancelled{false};
  std::string key;
  std::atomic<uint32_t> ended_choices{0};  // a bit for each

  int places() const { return role == Role::kPrefill ? 1 : static_cast<int>(members.size()); }
  bool is_over() const {
    return std::all_of(members.begin(), members.end(),
                       [](const Member& member) { return member.is_finished; });
  }

  std::mutex mutex;  // one event at a time
  int state = 0;
  int32_t first_tokens = 0;  // sent by a prefill worker
  int64_t blocks = -1;       // held; -1: not admitted
  bool has_kv_sent = false;
  int32_t prompt_done = 0;  // positions whose logprobs have been sent
  std::atomic<bool> is_ended{false};
};

SimCluster::SimCluster(SimOptions options) : options_(std::move(options)) {
  workers_.resize(options_.prefill_workers + options_.decode_workers);
  for (size_t i = 0; i < workers_.size(); ++i) {
    if (static_cast<int>(i) >= options_.prefill_workers) workers_[i].role = Role::kDecode;
  }
}

SimCluster::~SimCluster() = default;

std::vector<WorkerAddress> SimCluster::addresses() const {
  std::vector<WorkerAddress> out;
  for (size_t i = 0; i < workers_.size(); ++i) {
    out.push_back({fmt::format("sim:{}", i), workers_[i].role});
  }
  return out;
}

std::shared_ptr<SimCluster::Call> SimCluster::Open(
    Role role, WorkerIndex worker, const v1::RequestKey& key,
    const google::protobuf::RepeatedField<int32_t>& ids, int32_t output_index, int32_t choices,
    const v1::StageSampling& sampling) {
  TRIVIUM_CHECK(choices >= 1 && (choices == 1 || output_index == 0), "{} choices at {}", choices,
                output_index);
  TRIVIUM_CHECK(key.secret().size() == 16, "secret of {} bytes", key.secret().size());
  auto call = std::make_shared<Call>();
  call->role = role;
  call->worker = worker;
  call->key = key.SerializeAsString();
  call->prompt_tokens = ids.size();
  call->output_index = output_index;
  call->members.assign(static_cast<size_t>(choices), {{ids.begin(), ids.end()}, output_index});
  call->sampling = sampling;
  std::lock_guard lock(mutex_);
  ++opened_;
  auto& landing = landings_[{key.request_id() + key.secret(), key.attempt()}];
  TRIVIUM_CHECK((landing == nullptr) == (role == Role::kDecode), "decode is asked first");
  if (landing == nullptr) landing = std::make_shared<Landing>();
  call->landing = landing;
  calls_.push_back(call);
  return call;
}

template <typename Request>
void SimCluster::Tell(Role stage, const Request& request) {
  if (request.kv_domains().empty()) return;
  std::lock_guard lock(mutex_);
  told_.push_back(
      {stage, request.key().attempt(), {request.kv_domains().begin(), request.kv_domains().end()}});
}

std::shared_ptr<StageCall> SimCluster::Prefill(WorkerIndex worker,
                                               const v1::PrefillRequest& request,
                                               std::optional<TimePoint>,
                                               StageHandlers<v1::PrefillEvent> handlers) {
  TRIVIUM_CHECK(request.ticket().landing_id() == worker_count() + 1u, "another ticket");
  auto call = Open(Role::kPrefill, worker, request.key(), request.token_ids(),
                   request.output_index(), request.choices(), request.sampling());
  Tell(Role::kPrefill, request);
  {
    std::lock_guard lock(mutex_);
    prefills_.push_back(request);
  }
  std::unique_lock lock(call->mutex);
  call->pull_tokens = request.pull_tokens();
  call->prefill = std::move(handlers);
  lock.unlock();
  Refused(call);
  return call;
}

std::shared_ptr<StageCall> SimCluster::SendPrefix(WorkerIndex worker,
                                                  const v1::SendPrefixRequest& request,
                                                  std::optional<TimePoint>,
                                                  StageHandlers<v1::PrefixSent> handlers) {
  TRIVIUM_CHECK(request.ticket().landing_id() == kPullLanding, "another ticket");
  auto call = std::make_shared<Call>();
  call->worker = worker;
  call->is_pull = true;
  call->prompt_tokens = request.token_ids_size();
  call->pull = std::move(handlers);
  {
    std::lock_guard lock(mutex_);
    ++opened_;
    pulls_.push_back(request);
    calls_.push_back(call);
  }
  Refused(call);
  return call;
}

std::shared_ptr<StageCall> SimCluster::Decode(WorkerIndex worker, const v1::DecodeRequest& request,
                                              std::optional<TimePoint>,
                                              StageHandlers<v1::DecodeEvent> handlers) {
  auto call = Open(Role::kDecode, worker, request.key(), request.token_ids(),
                   request.output_index(), request.choices(), request.sampling());
  Tell(Role::kDecode, request);
  std::unique_lock lock(call->mutex);
  TRIVIUM_CHECK(request.preemptions() <= kv::kPreemptionsMax, "preempted too often");
  call->preemptions = request.preemptions();
  call->prefills = request.prefills();
  call->decode = std::move(handlers);
  lock.unlock();
  Refused(call);
  return call;
}

// The call is in the middle of an event, maybe: it takes note of this at the next one.
void SimCluster::EndChoice(WorkerIndex worker, const v1::EndChoiceRequest& request) {
  std::lock_guard lock(mutex_);
  for (const auto& call : calls_) {
    if (call->role != Role::kDecode || call->worker != worker) continue;
    if (call->key != request.key().SerializeAsString()) continue;
    call->ended_choices |= 1u << request.choice();
    ++choices_ended_;
  }
}

// Ends a call at once, as gRPC does towards a worker that is not there.
void SimCluster::Refused(const std::shared_ptr<Call>& call) {
  absl::Status status;
  std::function<void()> on_open;
  {
    std::lock_guard lock(mutex_);
    const Worker& worker = workers_[call->worker];
    status = worker.is_up ? worker.refuses : Unavailable("connection refused");
    on_open = std::exchange(on_open_, nullptr);
  }
  if (on_open) on_open();
  if (status.ok()) return;
  std::lock_guard lock(call->mutex);
  End(*call, status);
}

// The call's lock is held.
void SimCluster::End(Call& call, const absl::Status& status) {
  if (call.is_ended.exchange(true)) return;
  {
    std::lock_guard lock(mutex_);
    if (call.blocks >= 0) {
      workers_[call.worker].blocks_used -= call.blocks;
      workers_[call.worker].requests -= call.places();
    }
    std::erase_if(calls_, [&](const auto& one) { return one.get() == &call; });
  }
  const auto on_end = call.is_pull                  ? std::move(call.pull.on_end)
                      : call.role == Role::kPrefill ? std::move(call.prefill.on_end)
                                                    : std::move(call.decode.on_end);
  call.prefill = {};
  call.decode = {};
  call.pull = {};
  if (on_end) on_end(status);
}

absl::Status SimCluster::Admit(Call& call) {
  WorkerView view;
  view.role = call.role;
  view.block_tokens = kBlockTokens;
  view.expected_output_tokens = options_.expected_output_tokens;
  const RequestShape shape{
      .prompt_tokens = call.prompt_tokens,
      .output_tokens = call.sampling.max_tokens() - call.output_index,
      .choices = static_cast<int32_t>(call.members.size()),
      .in_full = call.members.size() > 1 ||
                 (call.sampling.ignore_eos() && call.sampling.stop_token_ids().empty()),
      .preemptions = call.preemptions,
      .blame = {}};
  std::lock_guard lock(mutex_);
  Worker& worker = workers_[call.worker];
  const int64_t blocks = BlocksAtFirst(view, shape);
  const int64_t total =
      call.role == Role::kPrefill ? options_.prefill_blocks : options_.decode_blocks;
  if (worker.blocks_used + blocks > total || worker.requests + call.places() > kRequestsMax) {
    return ResourceExhausted("no room");
  }
  worker.blocks_used += blocks;
  worker.requests += call.places();
  call.blocks = blocks;
  return absl::OkStatus();
}

v1::StageToken SimCluster::NextToken(Call& call, int32_t choice) {
  Call::Member& member = call.members[static_cast<size_t>(choice)];
  const int32_t id = HashToken(options_, member.ids, call.sampling, choice);
  v1::StageToken token;
  token.set_choice(choice);
  token.set_index(member.output_index);
  token.set_id(call.is_cancelled ? 3 + (id + 1) % (options_.vocab - 3) : id);
  token.set_finish_reason(FinishOf(options_, id, member.output_index, call.sampling));
  member.ids.push_back(id);
  member.output_index += 1;
  member.is_finished = !token.finish_reason().empty() || (call.ended_choices >> choice & 1) != 0;
  return token;
}

// Whether the KV of the newest token has a block.
bool SimCluster::HasRoom(Call& call) {
  if (call.members.size() > 1) return true;
  const auto tokens = static_cast<int64_t>(call.members.front().ids.size());
  if (BlocksFor(tokens, kBlockTokens) <= call.blocks) return true;
  TRIVIUM_CHECK(call.preemptions < kv::kPreemptionsMax, "it was to be admitted in full");
  std::lock_guard lock(mutex_);
  Worker& worker = workers_[call.worker];
  if (worker.blocks_used >= options_.decode_blocks) return false;
  ++worker.blocks_used;
  ++call.blocks;
  return true;
}

void SimCluster::StepPull(Call& call) {
  v1::PrefixSent sent;
  sent.set_tokens(call.prompt_tokens);
  sent.set_kv_bytes(int64_t{call.prompt_tokens} << 16);
  sent.set_transfer_ms(1);
  call.pull.on_event(sent);
  End(call, absl::OkStatus());
}

void SimCluster::StepDecode(Call& call, std::mt19937_64& random) {
  v1::DecodeEvent event;
  if (call.state == 0 && call.prefills) {
    call.state = 2;
    event.mutable_prefilled();
    return call.decode.on_event(event);
  }
  if (call.state == 0) {
    call.state = 1;
    event.mutable_ticket()->set_landing_id(worker_count() + 1);
    return call.decode.on_event(event);
  }
  if (call.state == 1) {
    std::lock_guard lock(call.landing->mutex);
    if (call.landing->is_finished) call.state = 3;
    if (!call.landing->has_kv && call.state == 1) return;
  }
  if (call.state == 3) return End(call, absl::OkStatus());
  if (call.state == 2 && !HasRoom(call)) return End(call, absl::AbortedError("preempted"));
  call.state = 2;
  // The members end independently, and their tokens mix in any order.
  auto choice = static_cast<int32_t>(random() % call.members.size());
  while (call.members[static_cast<size_t>(choice)].is_finished) {
    choice = (choice + 1) % static_cast<int32_t>(call.members.size());
  }
  *event.mutable_token() = NextToken(call, choice);
  if (call.is_over()) call.state = 3;
  call.decode.on_event(event);
}

// The next few; false when none is left.
bool SimCluster::AddPromptTokens(Call& call, std::mt19937_64& random, v1::PromptLogprobs* message) {
  const int32_t wanted = call.sampling.prompt_logprobs();
  const int32_t left = call.prompt_tokens - call.output_index - call.prompt_done;
  if (wanted < 0 || left == 0) return false;
  const auto count = std::min(left, 1 + static_cast<int32_t>(random() % 40));
  const std::vector<int32_t>& ids = call.members.front().ids;
  for (int32_t i = 0; i < count; ++i) {
    *message->add_tokens() = SimPromptToken(options_, ids, call.prompt_done++, wanted);
    if (call.is_cancelled) message->mutable_tokens(i)->set_logprob(-0.5f);
  }
  return true;
}

void SimCluster::StepPrefill(Call& call, std::mt19937_64& random) {
  v1::PrefillEvent event;
  const auto deliver = [&] {
    std::lock_guard lock(call.landing->mutex);
    call.landing->has_kv = call.has_kv_sent = true;
  };
  if (call.pull_tokens > 0) {
    call.pull_tokens = 0;
    event.mutable_pull_ticket()->set_landing_id(kPullLanding);
    return call.prefill.on_event(event);
  }
  if (call.state == 0) {
    // The transfer may be over before the first token has reached the router.
    if (random() % 3 == 0 && !call.has_kv_sent) return deliver();
    if (AddPromptTokens(call, random, event.mutable_prompt_logprobs())) {
      return call.prefill.on_event(event);
    }
    *event.mutable_first_token() = NextToken(call, call.first_tokens++);
    if (call.first_tokens == static_cast<int32_t>(call.members.size())) call.state = 1;
    if (call.is_over()) {
      std::lock_guard lock(call.landing->mutex);
      call.landing->is_finished = true;
    }
    return call.prefill.on_event(event);
  }
  if (call.state == 1) {
    call.state = 2;
    deliver();
    event.mutable_sent()->set_kv_bytes(int64_t{call.prompt_tokens} * 10);
    event.mutable_sent()->set_cached_tokens(options_.cached_tokens);
    return call.prefill.on_event(event);
  }
  End(call, absl::OkStatus());
}

bool SimCluster::StepRandomCall(std::mt19937_64& random, double fault) {
  std::shared_ptr<Call> call;
  {
    std::lock_guard lock(mutex_);
    if (calls_.empty()) return false;
    call = calls_[random() % calls_.size()];
    if (workers_[call->worker].is_stopped) return true;
  }
  std::lock_guard lock(call->mutex);
  const bool is_open = call->is_pull                  ? static_cast<bool>(call->pull.on_event)
                       : call->role == Role::kPrefill ? static_cast<bool>(call->prefill.on_event)
                                                      : static_cast<bool>(call->decode.on_event);
  if (call->is_ended || !is_open) return true;
  if (call->is_cancelled && random() % 2 == 0) {
    End(*call, absl::CancelledError("cancelled"));
  } else if (std::uniform_real_distribution<>(0, 1)(random) < fault) {
    const absl::StatusCode codes[] = {
        absl::StatusCode::kUnavailable, absl::StatusCode::kInternal,
        absl::StatusCode::kDataLoss,    absl::StatusCode::kCancelled,
        absl::StatusCode::kOk,          absl::StatusCode::kDeadlineExceeded};
    End(*call, absl::Status(codes[random() % std::size(codes)], "injected"));
  } else if (call->is_pull) {
    StepPull(*call);
  } else if (call->blocks < 0) {
    if (const absl::Status status = Admit(*call); !status.ok()) End(*call, status);
  } else if (call->role == Role::kDecode) {
    StepDecode(*call, random);
  } else {
    StepPrefill(*call, random);
  }
  return true;
}

bool SimCluster::Report(WorkerIndex worker, const v1::KvEvents* events) {
  v1::WorkerState state;
  if (events != nullptr) *state.mutable_kv_events() = *events;
  {
    std::lock_guard lock(mutex_);
    Worker& one = workers_[worker];
    if (!one.is_up || one.is_stopped) return true;
    const int32_t total =
        one.role == Role::kPrefill ? options_.prefill_blocks : options_.decode_blocks;
    state.set_sequence(++one.sequence);
    state.set_worker_id(fmt::format("{}-{}", RoleName(one.role), worker));
    state.set_role(RoleName(one.role));
    state.set_epoch(one.epoch * 1000 + worker);
    state.set_fingerprint(kFingerprint);
    state.set_numerics_class(options_.numerics_class);
    state.set_wire_format(1);
    state.set_blocks_total(total);
    state.set_blocks_free(total - static_cast<int32_t>(one.blocks_used));
    state.set_block_tokens(kBlockTokens);
    state.set_requests_running(one.requests);
    state.set_requests_max(kRequestsMax);
    state.set_expected_output_tokens(options_.expected_output_tokens);
  }
  return dispatcher_->OnWorkerState(worker, state);
}

void SimCluster::Kill(WorkerIndex worker) {
  std::vector<std::shared_ptr<Call>> calls;
  {
    std::lock_guard lock(mutex_);
    workers_[worker].is_up = false;
    workers_[worker].is_stopped = false;
    for (const auto& call : calls_) {
      if (call->worker == worker) calls.push_back(call);
    }
  }
  dispatcher_->OnWatchEnd(worker, Unavailable("connection reset"));
  for (const auto& call : calls) {
    std::lock_guard lock(call->mutex);
    const bool is_open = call->prefill.on_end || call->decode.on_end || call->pull.on_end;
    if (is_open) End(*call, Unavailable("connection reset"));
  }
}

bool SimCluster::Preempt() {
  std::vector<std::shared_ptr<Call>> calls;
  {
    std::lock_guard lock(mutex_);
    calls = calls_;
  }
  for (const auto& call : calls) {
    std::lock_guard lock(call->mutex);
    if (call->role != Role::kDecode || call->state != 2 || call->is_ended) continue;
    End(*call, absl::AbortedError("preempted"));
    return true;
  }
  return false;
}

void SimCluster::Restart(WorkerIndex worker) {
  std::lock_guard lock(mutex_);
  if (workers_[worker].is_up) return;
  workers_[worker].is_up = true;
  ++workers_[worker].epoch;
}

void SimCluster::SetStopped(WorkerIndex worker, bool stopped) {
  std::lock_guard lock(mutex_);
  workers_[worker].is_stopped = stopped;
}

void SimCluster::SetOnOpen(std::function<void()> hook) {
  std::lock_guard lock(mutex_);
  on_open_ = std::move(hook);
}

void SimCluster::SetRefusing(WorkerIndex worker, absl::Status status) {
  std::lock_guard lock(mutex_);
  workers_[worker].refuses = std::move(status);
}

int SimCluster::calls_opened() const {
  std::lock_guard lock(mutex_);
  return opened_;
}

int SimCluster::calls_not_cancelled() const {
  std::lock_guard lock(mutex_);
  return static_cast<int>(std::count_if(calls_.begin(), calls_.end(),
                                        [](const auto& call) { return !call->is_cancelled; }));
}

int SimCluster::choices_ended() const {
  std::lock_guard lock(mutex_);
  return choices_ended_;
}

int64_t SimCluster::blocks_held() const {
  std::lock_guard lock(mutex_);
  int64_t blocks = 0;
  for (const Worker& worker : workers_) blocks += worker.blocks_used;
  return blocks;
}

}  // namespace trivium::router
