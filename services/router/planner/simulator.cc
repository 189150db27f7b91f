#include "services/router/planner/simulator.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <queue>
#include <set>
#include <tuple>
#include <utility>

#include "services/router/planner/sim_pool.h"
#include "services/router/scheduler/admission_queue.h"
#include "services/router/scheduler/ledger.h"

namespace trivium::router {
namespace {

constexpr int32_t kBlockTokens = 16;

TimePoint At(double seconds) {
  return TimePoint(std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds)));
}

double SecondsOf(const StepCost& cost, int64_t rows) {
  return cost.base_s + cost.per_row_s * static_cast<double>(rows);
}

struct Event {
  enum class Kind : uint8_t { kArrival, kPrefilled, kLanded, kDecoded };
  double at_s = 0;
  uint64_t sequence = 0;  // of equal times the first made comes first
  Kind kind = Kind::kArrival;
  uint64_t subject = 0;  // a request, or for kDecoded a worker
  uint64_t version = 0;  // of the worker's batch: an older one counts for nothing
  bool operator>(const Event& other) const {
    return std::tie(at_s, sequence) > std::tie(other.at_s, other.sequence);
  }
};

// One request on its way.
struct Run {
  std::vector<kv::CutKey> keys;
  Placement placement;
  double placed_s = 0, compute_s = 0;
};

struct PrefillWorker {
  std::deque<uint64_t> queue;  // the first is being computed
  double busy_s = 0, window_busy_s = 0;
};

// All requests of a batch have had the same number of tokens made since the batch began to count.
struct DecodeWorker {
  std::priority_queue<std::pair<double, uint64_t>, std::vector<std::pair<double, uint64_t>>,
                      std::greater<>>
      ends;  // by the batch's count at which the request ends
  double tokens = 0, counted_s = 0;
  uint64_t version = 0;
};

class Simulation {
 public:
  Simulation(const SimClusterOptions& options, std::span<const SimRequest> trace)
      : options_(options),
        trace_(trace),
        cluster_(MakeCluster(options)),
        ledger_(&cluster_),
        queue_(options.queue),
        index_({.workers = cluster_.workers.size()}),
        runs_(trace.size()),
        prefill_(static_cast<size_t>(options.prefill_workers)),
        decode_(static_cast<size_t>(options.decode_workers)) {
    for (int i = 0; i < options.prefill_workers; ++i) {
      pools_.emplace_back(static_cast<WorkerIndex>(i), options.pool_blocks, &index_);
    }
  }

  SimReport RunAll() {
    if (!trace_.empty()) Push(trace_[0].arrival_s, Event::Kind::kArrival, 0);
    while (!events_.empty()) {
      const Event event = events_.top();
      events_.pop();
      now_s_ = event.at_s;
      CloseWindows();
      Handle(event);
      Pump();
    }
    return Report();
  }

 private:
  static ClusterSnapshot MakeCluster(const SimClusterOptions& options) {
    ClusterSnapshot cluster;
    cluster.kv_bytes_per_token = options.kv_bytes_per_token;
    cluster.policy = options.policy;
    for (int i = 0; i < options.prefill_workers + options.decode_workers; ++i) {
      WorkerView worker;
      worker.role = i < options.prefill_workers ? Role::kPrefill : Role::kDecode;
      worker.condition = WorkerCondition::kReady;
      worker.epoch = 1;
      worker.numerics_class = "fast/simulated";
      worker.wire_format = 1;
      worker.blocks_total = worker.blocks_free = options.decode_blocks;
      worker.block_tokens = kBlockTokens;
      worker.requests_max = options.requests_max;
      worker.step_cost = worker.role == Role::kPrefill ? options.prefill : options.decode;
      worker.transfer_bytes_per_s = options.transfer_bytes_per_s;
      cluster.workers.push_back(std::move(worker));
    }
    return cluster;
  }

  void Push(double at_s, Event::Kind kind, uint64_t subject, uint64_t version = 0) {
    events_.push({at_s, ++sequence_, kind, subject, version});
  }
  DecodeWorker& DecodeOf(uint64_t request) {
    return decode_[runs_[request].placement.decode - prefill_.size()];
  }

  void Handle(const Event& event) {
    switch (event.kind) {
      case Event::Kind::kArrival:
        return Arrive(event.subject);
      case Event::Kind::kPrefilled:
        return Prefilled(event.subject);
      case Event::Kind::kLanded:
        return Landed(event.subject);
      case Event::Kind::kDecoded:
        return Decoded(event.subject, event.version);
    }
  }

  void Arrive(uint64_t request) {
    const SimRequest& of = trace_[request];
    runs_[request].keys = KeysOfPrompt(of, request, kBlockTokens);
    RequestShape shape;
    shape.prompt_tokens = of.prompt_tokens;
    shape.output_tokens = of.output_tokens;
    shape.in_full = true;
    shape.needs_prefill_worker = true;  // its decode workers have no cost for prompts
    shape.turn = request;
    shape.held = HeldOf(request);
    queue_.Add({.ticket = request,
                .shape = shape,
                .waiting_since = At(now_s_),
                .share = of.share,
                .priority = of.priority},
               At(now_s_));
    WaitingLike(request).insert(request);
    if (request + 1 < trace_.size()) {
      Push(trace_[request + 1].arrival_s, Event::Kind::kArrival, request + 1);
    }
  }

  void Expire() {
    if (now_s_ < expire_s_) return;
    expire_s_ = now_s_ + 1;
    for (const AdmissionQueue::Expired& expired : queue_.Expire(At(now_s_), cluster_)) {
      Refuse(expired.ticket);
    }
    index_.Tick(At(now_s_));
  }

  std::vector<Held> HeldOf(uint64_t request) const {
    std::vector<Held> held;
    if (options_.policy == Policy::kPredictedCost) {
      index_.LookUp(runs_[request].keys, kBlockTokens, &held);
    }
    return held;
  }

  void Pump() {
    Expire();
    queue_.Pump(cluster_, At(now_s_), actions_);
    while (const auto expired = queue_.EnforceBound()) Refuse(expired->ticket);
  }

  std::set<uint64_t>& WaitingLike(uint64_t request) {
    return waiting_[{trace_[request].share.tenant, trace_[request].priority}];
  }

  void Refuse(uint64_t request) {
    runs_[request] = {};
    ++report_.refused;
    ++report_.tenants[trace_[request].share.tenant].refused;
    WaitingLike(request).erase(request);
  }

  void Account(uint64_t request, int32_t tokens) {
    SimReport::OfTenant& tenant = report_.tenants[trace_[request].share.tenant];
    const double arrival_s = trace_[request].arrival_s;
    if (now_s_ <= trace_.back().arrival_s) tenant.computed_tokens += tokens;
    tenant.wait_most_s = std::max(tenant.wait_most_s, now_s_ - arrival_s);
    std::set<uint64_t>& waiting = WaitingLike(request);
    waiting.erase(request);
    if (waiting.empty()) return;
    tenant.overtaken_by_most_s =
        std::max(tenant.overtaken_by_most_s, arrival_s - trace_[*waiting.begin()].arrival_s);
  }

  AdmissionQueue::Actions MakeActions() {
    return {
        .look_up = [this](uint64_t request) { return HeldOf(request); },
        .place = [this](uint64_t request, const RequestShape& shape,
                        const Decision& decision) { Place(request, shape, decision.placement); },
        .refuse = [this](uint64_t request, const absl::Status&) { Refuse(request); },
        .explains = false};
  }

  void Place(uint64_t request, const RequestShape& shape, const Placement& placement) {
    Run& run = runs_[request];
    run.placement = placement;
    run.placed_s = now_s_;
    Account(request, TokensToCompute(shape, placement.prefill));
    ledger_.Charge(request, placement, shape);
    ledger_.Reserved(request);
    WorkerView& decode = cluster_.workers[placement.decode];
    decode.blocks_free -= static_cast<int32_t>(BlocksAtFirst(decode, shape));
    ledger_.OnReport(placement.decode);
    if (options_.policy == Policy::kPredictedCost) {
      index_.Expect(placement.prefill, run.keys, At(now_s_));
    }
    PrefillWorker& prefill = prefill_[placement.prefill];
    prefill.queue.push_back(request);
    if (prefill.queue.size() == 1) BeginPrefill(request);
    if (!trace_[request].is_hot) {
      report_.other_wait_most_s =
          std::max(report_.other_wait_most_s, now_s_ - trace_[request].arrival_s);
    }
  }

  void BeginPrefill(uint64_t request) {
    Run& run = runs_[request];
    const SimRequest& of = trace_[request];
    int32_t cached = pools_[run.placement.prefill].Use(run.keys) * kBlockTokens;
    cached += Pull(run, cached);
    report_.prompt_tokens += of.prompt_tokens;
    report_.cached_tokens += cached;
    report_.cached_tokens_bound += boundless_.Use(of, kBlockTokens) * kBlockTokens;
    run.compute_s += SecondsOf(options_.prefill, of.prompt_tokens - cached);
    Push(now_s_ + run.compute_s, Event::Kind::kPrefilled, request);
  }

  // Tokens behind those cached that another worker sends; the worker does nothing else meanwhile,
  // which is a little worse than the real one.
  int32_t Pull(Run& run, int32_t cached) {
    const router::Pull& pull = run.placement.pull;
    if (pull.tokens <= cached) return 0;
    const int32_t held = pools_[pull.holder].Use(run.keys) * kBlockTokens;
    const int32_t pulled = std::max(0, std::min(held, pull.tokens) - cached);
    run.compute_s +=
        static_cast<double>(pulled * options_.kv_bytes_per_token) / options_.transfer_bytes_per_s;
    return pulled;
  }

  void Prefilled(uint64_t request) {
    Run& run = runs_[request];
    const SimRequest& of = trace_[request];
    PrefillWorker& worker = prefill_[run.placement.prefill];
    worker.busy_s += run.compute_s;
    worker.window_busy_s += run.compute_s;
    (of.is_hot ? hot_ : other_).push_back(now_s_ - of.arrival_s);
    pools_[run.placement.prefill].Store(run.keys);
    boundless_.Store(of);
    ledger_.FirstToken(request);
    ledger_.PrefillEnded(request);
    worker.queue.pop_front();
    if (!worker.queue.empty()) BeginPrefill(worker.queue.front());
    const auto bytes = static_cast<double>(of.prompt_tokens * options_.kv_bytes_per_token);
    Push(now_s_ + bytes / options_.transfer_bytes_per_s, Event::Kind::kLanded, request);
    run.keys = {};
  }

  // Counts the tokens made since the batch last changed.
  void Count(DecodeWorker& worker) {
    const double step_s = SecondsOf(options_.decode, static_cast<int64_t>(worker.ends.size()));
    worker.tokens += (now_s_ - worker.counted_s) / step_s;
    worker.counted_s = now_s_;
  }
  void AwaitNextEnd(DecodeWorker& worker) {
    ++worker.version;
    if (worker.ends.empty()) return;
    const double step_s = SecondsOf(options_.decode, static_cast<int64_t>(worker.ends.size()));
    const double left = std::max(0.0, worker.ends.top().first - worker.tokens);
    Push(now_s_ + left * step_s, Event::Kind::kDecoded,
         static_cast<uint64_t>(&worker - decode_.data()), worker.version);
  }

  void Landed(uint64_t request) {
    DecodeWorker& worker = DecodeOf(request);
    Count(worker);
    worker.ends.emplace(worker.tokens + trace_[request].output_tokens - 1, request);
    AwaitNextEnd(worker);
  }

  void Decoded(uint64_t index, uint64_t version) {
    DecodeWorker& worker = decode_[index];
    if (version != worker.version) return;
    Count(worker);
    const uint64_t request = worker.ends.top().second;
    worker.ends.pop();
    const SimRequest& of = trace_[request];
    cluster_.workers[prefill_.size() + index].blocks_free +=
        static_cast<int32_t>(BlocksFor(of.prompt_tokens + of.output_tokens, kBlockTokens));
    ledger_.Release(request);
    AwaitNextEnd(worker);
  }

  void CloseWindows() {
    if (now_s_ < window_end_s_) return;
    double most = 0, sum = 0;
    for (PrefillWorker& worker : prefill_) {
      most = std::max(most, worker.window_busy_s);
      sum += std::exchange(worker.window_busy_s, 0);
    }
    // The first window begins with empty caches, and the last ones have no arrivals.
    const bool counts = window_end_s_ > SimReport::kWindow_s && !trace_.empty() &&
                        now_s_ <= trace_.back().arrival_s;
    if (counts && sum > 0) {
      const double ratio = most * static_cast<double>(prefill_.size()) / sum;
      report_.prefill_most_to_mean = std::max(report_.prefill_most_to_mean, ratio);
    }
    window_end_s_ = (std::floor(now_s_ / SimReport::kWindow_s) + 1) * SimReport::kWindow_s;
  }

  static SimReport::Times TimesOf(std::vector<double>& all) {
    if (all.empty()) return {};
    std::sort(all.begin(), all.end());
    const auto at = [&](double share) {
      return all[static_cast<size_t>(share * static_cast<double>(all.size() - 1))];
    };
    return {.p50_s = at(0.5), .p99_s = at(0.99), .most_s = all.back()};
  }

  SimReport Report() {
    report_.hot_first_token = TimesOf(hot_);
    report_.other_first_token = TimesOf(other_);
    report_.end_s = now_s_;
    for (const PrefillWorker& worker : prefill_) report_.prefill_busy_s.push_back(worker.busy_s);
    return std::move(report_);
  }

  const SimClusterOptions options_;
  const std::span<const SimRequest> trace_;
  ClusterSnapshot cluster_;
  Ledger ledger_;
  AdmissionQueue queue_;
  const AdmissionQueue::Actions actions_ = MakeActions();
  PrefixIndex index_;
  std::vector<Run> runs_;
  std::vector<PrefillWorker> prefill_;
  std::vector<DecodeWorker> decode_;
  std::deque<SimPool> pools_;
  BoundlessPool boundless_;
  // Requests in the queue, by tenant and priority.
  std::map<std::pair<uint64_t, int32_t>, std::set<uint64_t>> waiting_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  uint64_t sequence_ = 0;
  double now_s_ = 0, window_end_s_ = 0, expire_s_ = 0;
  std::vector<double> hot_, other_;
  SimReport report_;
};

}  // namespace

SimReport Simulate(const SimClusterOptions& options, std::span<const SimRequest> trace) {
  return Simulation(options, trace).RunAll();
}

}  // namespace trivium::router
