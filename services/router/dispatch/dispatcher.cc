#include "services/router/dispatch/dispatcher.h"

#include <algorithm>
#include <utility>

#include "services/router/dispatch/router_metrics.h"

namespace trivium::router {

Dispatcher::Dispatcher(Options options)
    : context_(std::move(options.run)),
      index_({.workers = options.table.workers.size()}),
      table_(std::move(options.table)),
      ledger_(&table_.cluster()),
      queue_(options.queue) {
  context_.host = this;
  table_.cluster().kv_bytes_per_token = options.kv_bytes_per_token;
  table_.cluster().policy = options.policy;
}

Dispatcher::~Dispatcher() {
  TRIVIUM_CHECK(runs_.empty(), "{} requests outlive the dispatcher", runs_.size());
}

void Dispatcher::Make(const Calls& calls) {
  for (const auto& call : calls) call();
}

std::shared_ptr<RequestRun> Dispatcher::Submit(RunRequest request,
                                               std::shared_ptr<ResponseSink> sink) {
  context_.metrics->Submitted(request.tenant);
  Calls calls;
  std::shared_ptr<RequestRun> run;
  absl::Status refusal;
  std::vector<kv::KeySpace> spaces;
  {
    std::lock_guard lock(mutex_);
    spaces = table_.KeySpaces();
  }
  std::vector<kv::MediaSpan> media;
  for (const RunSlice& slice : request.slices) media.push_back(slice.span);
  request.kv_keys = KeysOf(request.prompt_ids, request.kv_domains, spaces, media);
  RefuseReason reason = RefuseReason::kDraining;
  {
    std::lock_guard lock(mutex_);
    const uint64_t ticket = last_ticket_ += kTicketStride;
    run = std::make_shared<RequestRun>(context_, ticket, std::move(request), sink);
    const RequestShape shape = run->Shape();
    if (is_draining_) {
      refusal = Unavailable("the router is shutting down");
    } else if (refusal = CheckFits(table_.cluster(), shape); !refusal.ok()) {
      reason = RefuseReason::kInvalid;
    } else {
      runs_.emplace(ticket, run);
      Enqueue(ticket, shape, context_.clock->Now(), false);
      Pump(&calls);
      reason = RefuseReason::kQueueFull;
      if (const auto expired = queue_.EnforceBound()) {
        if (expired->ticket == ticket) {
          refusal = expired->status;
          runs_.erase(ticket);
        } else {
          context_.metrics->Refused(RefuseReason::kOverShare);
          Refuse(expired->ticket, expired->status, &calls);
        }
      }
    }
  }
  Make(calls);
  if (refusal.ok()) return run;
  context_.metrics->Refused(reason);
  sink->OnError(refusal);
  return nullptr;
}

void Dispatcher::Drain() {
  std::lock_guard lock(mutex_);
  is_draining_ = true;
}

bool Dispatcher::AwaitClosed(Duration timeout) {
  std::unique_lock lock(mutex_);
  return none_.wait_for(lock, timeout, [&] { return runs_.empty(); });
}

PlacedWorker Dispatcher::Describe(WorkerIndex worker) {
  if (worker == kNoWorker) return {};
  const WorkerView& view = table_.cluster().workers[worker];
  return {worker, view.epoch, table_.IdOf(worker), view.numerics_class};
}

// Sorted by worker: each worker has the keys of one space.
std::vector<Held> Dispatcher::HeldOf(const RunRequest& request) const {
  std::vector<Held> held;
  if (table_.cluster().policy != Policy::kPredictedCost) return held;
  for (const PromptKeys& keys : request.kv_keys) {
    index_.LookUp(keys.keys, keys.space.block_tokens, &held);
  }
  std::sort(held.begin(), held.end(),
            [](const Held& a, const Held& b) { return a.worker < b.worker; });
  return held;
}

void Dispatcher::Expect(const RunRequest& request, WorkerIndex worker) {
  const WorkerView& view = table_.cluster().workers[worker];
  for (const PromptKeys& keys : request.kv_keys) {
    if (keys.space.numerics_class == view.numerics_class &&
        keys.space.kv_format == view.wire_format && keys.space.block_tokens == view.block_tokens) {
      index_.Expect(worker, keys.keys, context_.clock->Now());
    }
  }
}

void Dispatcher::Place(uint64_t ticket, const RequestShape& shape, Decision decision,
                       Calls* calls) {
  const Placement placement = decision.placement;
  const std::shared_ptr<RequestRun>& run = runs_.at(ticket);
  ledger_.Charge(ticket, placement, shape);
  // A sibling waits at the prefill worker for what is being computed there; at a decode worker it
  // would find nothing before this one's KV has landed.
  if (placement.prefill != kNoWorker) Expect(run->request(), placement.prefill);
  context_.metrics->Placed(decision.reason);
  decisions_.Add(run->request().id, run->request().tenant, std::move(decision));
  const PlacedPair pair{.prefill = Describe(placement.prefill),
                        .decode = Describe(placement.decode),
                        .holder = Describe(placement.pull.holder),
                        .pull_tokens = placement.pull.tokens,
                        .pull_for = std::chrono::duration_cast<Duration>(
                            std::chrono::duration<double>(placement.pull.within_s))};
  calls->push_back([run, ticket, pair] { run->OnPlaced(ticket, pair); });
}

std::vector<Dispatcher::Explanation> Dispatcher::Explain(const std::string& request_id) const {
  std::lock_guard lock(mutex_);
  std::vector<Explanation> all;
  for (const DecisionLog::Entry& entry : decisions_.Find(request_id)) {
    all.push_back({entry.tenant, ToText(entry.decision, [this](WorkerIndex worker) {
                     return table_.IdOf(worker);
                   })});
  }
  return all;
}

void Dispatcher::Refuse(uint64_t ticket, const absl::Status& status, Calls* calls) {
  calls->push_back([run = runs_.at(ticket), ticket, status] { run->OnRefused(ticket, status); });
}

void Dispatcher::Enqueue(uint64_t ticket, RequestShape shape, TimePoint waiting_since,
                         bool comes_back) {
  const RunRequest& request = runs_.at(ticket)->request();
  shape.held = HeldOf(request);
  queue_.Add({.ticket = ticket,
              .shape = std::move(shape),
              .waiting_since = waiting_since,
              .share = request.share,
              .priority = request.priority,
              .comes_back = comes_back},
             context_.clock->Now());
}

void Dispatcher::Pump(Calls* calls) {
  queue_.Pump(
      table_.cluster(), context_.clock->Now(),
      {.look_up = [this](uint64_t ticket) { return HeldOf(runs_.at(ticket)->request()); },
       .place = [this, calls](
                    uint64_t ticket, const RequestShape& shape,
                    Decision decision) { Place(ticket, shape, std::move(decision), calls); },
       .refuse = [this, calls](uint64_t ticket,
                               const absl::Status& status) { Refuse(ticket, status, calls); }});
}

void Dispatcher::TellLost(const std::vector<LostWorker>& lost, Calls* calls) {
  for (const LostWorker& one : lost) {
    calls->push_back([this, worker = one.worker] { index_.Drop(worker); });
    for (const auto& [ticket, run] : runs_) {
      calls->push_back(
          [run, ticket, one] { run->OnWorkerLost(ticket, one.worker, one.epoch, one.reason); });
    }
  }
}

bool Dispatcher::OnWorkerState(WorkerIndex worker, const v1::WorkerState& state) {
  Calls calls;
  bool is_refused = false;
  {
    std::lock_guard lock(mutex_);
    TellLost(table_.OnState(worker, state, context_.clock->Now()), &calls);
    const WorkerView& view = table_.cluster().workers[worker];
    // What an encode worker holds is no KV.
    is_refused = view.condition == WorkerCondition::kRefused || view.role == Role::kEncode;
    ledger_.OnReport(worker);
    Pump(&calls);
  }
  Make(calls);
  if (is_refused || !state.has_kv_events()) return true;
  return index_.Apply(worker, state.kv_events());
}

void Dispatcher::OnWatchEnd(WorkerIndex worker, const absl::Status& status) {
  std::lock_guard lock(mutex_);
  table_.OnStreamEnd(worker, status);
}

void Dispatcher::Tick() {
  Calls calls;
  {
    std::lock_guard lock(mutex_);
    const TimePoint now = context_.clock->Now();
    TellLost(table_.Tick(now), &calls);
    for (const AdmissionQueue::Expired& expired : queue_.Expire(now, table_.cluster())) {
      Refuse(expired.ticket, expired.status, &calls);
    }
    Pump(&calls);  // others wait only so long for one that finds no room
    for (const auto& [ticket, run] : runs_) {
      if (run->due() <= now) calls.push_back([run = run] { run->OnTimer(); });
    }
  }
  Make(calls);
  index_.Tick(context_.clock->Now());
}

Dispatcher::Counts Dispatcher::counts() const {
  std::lock_guard lock(mutex_);
  const int32_t waiting = queue_.size();
  return {waiting, static_cast<int32_t>(runs_.size()) - answered_ - waiting};
}

std::vector<v1::WorkerStatus> Dispatcher::Workers() const {
  std::lock_guard lock(mutex_);
  return table_.Status(context_.clock->Now());
}

void Dispatcher::Wait(uint64_t ticket, const RequestShape& shape, TimePoint waiting_since) {
  Calls calls;
  {
    std::lock_guard lock(mutex_);
    ledger_.Release(ticket);
    Enqueue(ticket, shape, waiting_since, true);
    Pump(&calls);
  }
  Make(calls);
}

void Dispatcher::WaitApart(uint64_t ticket, std::shared_ptr<RequestRun> run,
                           const RequestShape& shape, TimePoint waiting_since) {
  Calls calls;
  {
    std::lock_guard lock(mutex_);
    runs_.emplace(ticket, std::move(run));
    Enqueue(ticket, shape, waiting_since, true);
    Pump(&calls);
  }
  Make(calls);
}

void Dispatcher::Reserved(uint64_t ticket) {
  std::lock_guard lock(mutex_);
  ledger_.Reserved(ticket);
}

void Dispatcher::FirstToken(uint64_t ticket) {
  Calls calls;
  {
    std::lock_guard lock(mutex_);
    ledger_.FirstToken(ticket);
    Pump(&calls);
  }
  Make(calls);
}

void Dispatcher::PrefillEnded(uint64_t ticket) {
  Calls calls;
  {
    std::lock_guard lock(mutex_);
    ledger_.PrefillEnded(ticket);
    Pump(&calls);
  }
  Make(calls);
}

void Dispatcher::Transferred(uint64_t ticket, int64_t kv_bytes, Duration time) {
  std::lock_guard lock(mutex_);
  ledger_.Transferred(ticket, kv_bytes, std::chrono::duration<double>(time).count());
}

void Dispatcher::Pulled(uint64_t ticket, int64_t kv_bytes, Duration time) {
  std::lock_guard lock(mutex_);
  ledger_.Pulled(ticket, kv_bytes, std::chrono::duration<double>(time).count());
}

absl::StatusOr<std::vector<PlacedSlice>> Dispatcher::PlaceSlices(SlicesShape shape) {
  std::lock_guard lock(mutex_);
  for (SliceToPlace& slice : shape.slices) slice.holder = encoders_.Find(slice.key);
  ASSIGN_OR_RETURN(const std::vector<SlicePlace> places, SpreadSlices(table_.cluster(), shape));
  std::vector<PlacedSlice> placed;
  for (size_t i = 0; i < places.size(); ++i) {
    WorkerView& worker = table_.cluster().workers[places[i].worker];
    placed.push_back({.at = Describe(places[i].worker),
                      .holder = Describe(places[i].pull_from),
                      .pull_for = std::chrono::duration_cast<Duration>(
                          std::chrono::duration<double>(SecondsPerSlice(worker)))});
    ++worker.own_slices;
    encoders_.Remember(shape.slices[i].key, places[i].worker);
  }
  return placed;
}

void Dispatcher::SlicesEnded(const PlacedWorker& worker, int32_t slices) {
  Calls calls;
  {
    std::lock_guard lock(mutex_);
    table_.cluster().workers[worker.worker].own_slices -= slices;
    Pump(&calls);
  }
  Make(calls);
}

bool Dispatcher::IsGone(const PlacedWorker& worker) const {
  std::lock_guard lock(mutex_);
  return table_.IsGone(worker.worker, worker.epoch);
}

void Dispatcher::WorkerFailed(const PlacedWorker& worker, FailureAction action,
                              const std::string& why) {
  std::lock_guard lock(mutex_);
  switch (action) {
    case FailureAction::kWaitForRoom:
    case FailureAction::kMakeWay:
    case FailureAction::kElsewhere:
      return table_.MarkFull(worker.worker, worker.epoch);
    case FailureAction::kRetry:
      return table_.MarkSuspect(worker.worker, worker.epoch, why);
    case FailureAction::kRefuse:
      return table_.Refuse(worker.worker, worker.epoch, why);
    case FailureAction::kGiveUp:
      return;
  }
}

void Dispatcher::Answered(uint64_t ticket) {
  Calls calls;
  {
    std::lock_guard lock(mutex_);
    queue_.Remove(ticket);
    ledger_.Release(ticket);
    ++answered_;
    Pump(&calls);
  }
  Make(calls);
}

void Dispatcher::Closed(uint64_t ticket) {
  std::lock_guard lock(mutex_);
  answered_ -= static_cast<int32_t>(runs_.erase(ticket));
  if (runs_.empty()) none_.notify_all();
}

}  // namespace trivium::router
