#include "services/router/scheduler/placement.h"

#include <algorithm>
#include <iterator>
#include <string_view>
#include <tuple>
#include <utility>

#include "common/kv/answer_room.h"
#include "services/router/scheduler/cost.h"
#include "services/router/scheduler/decision.h"
#include "services/router/scheduler/encode_placement.h"

namespace trivium::router {
namespace {

// Workers with equal keys may exchange KV: one wire format, and one numerics class unless rounding
// is allowed to differ.
using PairKey = std::pair<std::string_view, uint32_t>;
PairKey KeyOf(const WorkerView& worker) {
  const std::string_view numerics = worker.numerics_class;
  return {IsFast(worker.numerics_class) ? "fast" : numerics, worker.wire_format};
}

// The entry of a key, made when it is new. There are one or two of them in a cluster.
template <typename Entry>
Entry& EntryOf(const PairKey& key, std::vector<std::pair<PairKey, Entry>>* entries) {
  for (auto& [other, entry] : *entries) {
    if (other == key) return entry;
  }
  return entries->emplace_back(key, Entry()).second;
}

int BlameOf(const RequestShape& shape, WorkerIndex worker) {
  for (const WorkerBlame& blame : shape.blame) {
    if (blame.worker == worker) return blame.points;
  }
  return 0;
}

int64_t BlocksWith(const WorkerView& worker, const RequestShape& shape, int32_t output_tokens) {
  const int64_t one = BlocksFor(int64_t{shape.prompt_tokens} + output_tokens, worker.block_tokens);
  const int64_t shared =
      shape.choices == 1 ? 0 : shape.prompt_tokens / std::max(1, worker.block_tokens);
  return shared + (one - shared) * shape.choices;
}

bool HasPlaces(const WorkerView& worker, const RequestShape& shape) {
  return PlacesAt(worker.role, shape) <= worker.requests_max;
}

bool TakesPictures(const WorkerView& worker, const RequestShape& shape) {
  return worker.role != Role::kPrefill || shape.picture_blocks <= worker.picture_blocks_total;
}

// Whether the worker can hold this attempt.
bool CouldHold(const WorkerView& worker, const RequestShape& shape) {
  const int64_t blocks = worker.role == Role::kPrefill
                             ? BlocksFor(shape.prompt_tokens, worker.block_tokens)
                             : BlocksWith(worker, shape, shape.output_tokens);
  return HasPlaces(worker, shape) && blocks <= worker.blocks_total && TakesPictures(worker, shape);
}

// Tokens whose KV a worker must be able to hold for this attempt and every later one.
int64_t TokensEverAt(Role role, const RequestShape& shape) {
  const int64_t output = shape.output_tokens;
  return shape.prompt_tokens + (role == Role::kPrefill ? output - 1 : output * shape.choices);
}

bool CouldEverHold(const WorkerView& worker, const RequestShape& shape) {
  if (worker.role == Role::kDecode) return CouldHold(worker, shape);
  return HasPlaces(worker, shape) &&
         BlocksFor(TokensEverAt(worker.role, shape), worker.block_tokens) <= worker.blocks_total;
}

// What an idle worker spares is kept by floors and pins: the asker's own, maybe, or nothing to an
// answer that has begun. The worker knows, and is asked once by those that it may refuse.
bool NeedsKept(const WorkerView& worker, const RequestShape& shape) {
  return BlocksAtFirst(worker, shape) > FreeBlocks(worker);
}
bool MayAskForKept(const WorkerView& worker, const RequestShape& shape, WorkerIndex index) {
  return Requests(worker) == 0 && (shape.has_begun || BlameOf(shape, index) == 0) &&
         BlocksAtFirst(worker, shape) <= worker.blocks_free - worker.own_blocks;
}

bool FitsNow(const WorkerView& worker, const RequestShape& shape, const Held& held) {
  if (worker.is_full) return false;
  if (Requests(worker) > worker.requests_max - PlacesAt(worker.role, shape)) return false;
  if (NeedsKept(worker, shape) && !MayAskForKept(worker, shape, held.worker)) return false;
  return worker.role == Role::kDecode || Backlog(worker) < kPrefillBacklogTokens + held.disk_tokens;
}

// Less is better. Blame first, so that a retry leaves a worker that failed this request; a decode
// worker that was merely there when the prefill worker failed is kept.
struct Cost {
  int blame = 0;
  bool needs_kept = false;    // it may refuse
  bool is_elsewhere = false;  // than the retry's decode worker before
  double total_s = 0;
  int64_t backlog = 0;
  int32_t requests = 0;
  double recent = 0;  // so that those who idle take turns by what they have done
  auto operator<=>(const Cost&) const = default;
};
Cost CostOf(const WorkerView& worker, WorkerIndex index, const RequestShape& shape,
            const Estimate& estimate, Policy policy) {
  Cost cost{.blame = BlameOf(shape, index), .needs_kept = NeedsKept(worker, shape)};
  if (policy == Policy::kPredictedCost) cost.total_s = estimate.total_s();
  if (policy != Policy::kRoundRobin) {
    cost.backlog = worker.role == Role::kPrefill ? Backlog(worker) : 0;
    cost.requests = Requests(worker);
    cost.recent = worker.own_recent_tokens;
  }
  if (worker.role == Role::kPrefill) return cost;
  cost.is_elsewhere = index != shape.decode_before;
  if (!cost.is_elsewhere) cost.blame = std::max(0, cost.blame - 1);
  return cost;
}

struct Offer {
  WorkerIndex worker = kNoWorker;
  Cost cost;
  Estimate estimate;
};

// The workers of one role that have room, and the cheapest of them, the `turn`-th of equals.
class Offers {
 public:
  // `is_shown`: it may be asked for by Show.
  void Add(const Offer& offer, bool is_shown) {
    ++size_;
    if (is_shown) all_.push_back(offer);
    const auto order =
        best_.empty() ? std::partial_ordering::less : offer.cost <=> best_.front().cost;
    if (order > 0) return;
    if (order < 0) best_.clear();
    best_.push_back(offer);
  }
  bool empty() const { return size_ == 0; }
  int32_t size() const { return size_; }
  const Cost& cost() const { return best_.front().cost; }
  const Offer& Pick(uint64_t turn) const { return best_[turn % best_.size()]; }

  std::vector<Candidate> Show(const Offer& picked) const {
    const auto candidate = [](const Offer& offer) {
      return Candidate{offer.worker, offer.cost.blame, offer.estimate};
    };
    std::vector<const Offer*> others;
    for (const Offer& offer : all_) {
      if (offer.worker != picked.worker) others.push_back(&offer);
    }
    const size_t shown = std::min(others.size(), Decision::kShownMax - 1);
    std::partial_sort(others.begin(), others.begin() + static_cast<ptrdiff_t>(shown), others.end(),
                      [](const Offer* a, const Offer* b) {
                        return std::tie(a->cost, a->worker) < std::tie(b->cost, b->worker);
                      });
    std::vector<Candidate> all{candidate(picked)};
    for (size_t i = 0; i < shown; ++i) all.push_back(candidate(*others[i]));
    return all;
  }

 private:
  std::vector<Offer> all_;   // those to be shown
  std::vector<Offer> best_;  // equals
  int32_t size_ = 0;
};

// Prompt rows that a decode worker takes among its own at once: more would hold up those it serves.
constexpr int32_t kLocalRowsMax = 256;

bool MayPrefill(const WorkerView& worker, const RequestShape& shape, int32_t cached_tokens) {
  const int64_t rows = shape.prompt_tokens - cached_tokens;
  return !shape.needs_prefill_worker && cached_tokens >= shape.pictures_end &&
         shape.blame.empty() && cached_tokens > 0 && !NeedsKept(worker, shape) &&
         rows + worker.own_prompt_tokens <= kLocalRowsMax;
}

// INVALID_ARGUMENT when every prefill worker has reported, and those that take pictures could not
// hold these.
absl::Status CheckPicturesFit(const ClusterSnapshot& cluster, const RequestShape& shape) {
  if (shape.picture_blocks == 0) return absl::OkStatus();
  int32_t most = 0;
  for (const WorkerView& worker : cluster.workers) {
    if (worker.role != Role::kPrefill || worker.condition == WorkerCondition::kRefused) continue;
    if (worker.blocks_total == 0) return absl::OkStatus();
    most = std::max(most, worker.picture_blocks_total);
  }
  if (most == 0 || shape.picture_blocks <= most) return absl::OkStatus();
  return InvalidArgument(
      "the pictures take {} blocks of multimedia tokens, more than any prefill worker holds: {}",
      shape.picture_blocks, most);
}

// FAILED_PRECONDITION: no worker that encodes is there; ABORTED: none has room.
absl::Status CheckEncoders(const ClusterSnapshot& cluster, const RequestShape& shape) {
  if (shape.picture_blocks == 0) return absl::OkStatus();
  if (absl::Status status = CheckPictureStages(cluster); !status.ok()) {
    return FailedPrecondition("{}", Message(status));
  }
  const bool has_room = std::ranges::any_of(cluster.workers, TakesMoreSlices);
  return has_room ? absl::OkStatus() : absl::AbortedError("every encode worker has its hands full");
}

// Whether slices would have to be encoded for the worker.
bool NeedsEncoder(const WorkerView& worker, const RequestShape& shape, const Held& held) {
  return worker.role == Role::kPrefill && held.disk_tokens < shape.pictures_end;
}

struct Pairing {
  Offers prefill, decode;
  Offers local;  // decode workers that would compute the rest of the prompt
  bool could_hold_prefill = false, could_hold_decode = false;
  bool has_offers() const { return !prefill.empty() && !decode.empty(); }
};
using Pairings = std::vector<std::pair<PairKey, Pairing>>;

Pairings Collect(const ClusterSnapshot& cluster, const RequestShape& shape, bool may_encode,
                 bool is_shown) {
  const Speeds speeds = FastestOf(cluster);
  const PullSources sources(cluster, shape);
  Pairings pairings;
  Pairing* at = nullptr;
  const WorkerView* like = nullptr;  // whose pairing that is: often it is the next one's too
  auto held = shape.held.begin();
  for (WorkerIndex i = 0; i < cluster.workers.size(); ++i) {
    while (held != shape.held.end() && held->worker < i) ++held;
    const bool holds = held != shape.held.end() && held->worker == i;
    const Held here = holds ? *held : Held{.worker = i};
    const WorkerView& worker = cluster.workers[i];
    if (worker.role == Role::kEncode || worker.condition != WorkerCondition::kReady) continue;
    if (!CouldHold(worker, shape)) continue;
    if (!may_encode && NeedsEncoder(worker, shape, here)) continue;
    if (like == nullptr || worker.wire_format != like->wire_format ||
        worker.numerics_class != like->numerics_class) {
      at = &EntryOf(KeyOf(worker), &pairings);
      like = &worker;
    }
    Pairing& pairing = *at;
    const bool is_prefill = worker.role == Role::kPrefill;
    (is_prefill ? pairing.could_hold_prefill : pairing.could_hold_decode) = true;
    if (!FitsNow(worker, shape, here)) continue;
    Estimate estimate = EstimateFor(worker, shape, here, speeds, cluster.kv_bytes_per_token);
    if (is_prefill) {
      PullWhatPays(worker, shape, sources.BestFor(i), speeds, cluster.kv_bytes_per_token,
                   &estimate);
    }
    (is_prefill ? pairing.prefill : pairing.decode)
        .Add({i, CostOf(worker, i, shape, estimate, cluster.policy), estimate}, is_shown);
    if (is_prefill || !MayPrefill(worker, shape, here.disk_tokens)) continue;
    const Estimate local = EstimateLocal(worker, shape, here, speeds, cluster.kv_bytes_per_token);
    if (!MayPrefill(worker, shape, local.cached_tokens)) continue;
    pairing.local.Add({i, CostOf(worker, i, shape, local, cluster.policy), local}, is_shown);
  }
  return pairings;
}

PlacementReason ReasonOf(const RequestShape& shape, const Pairing& pairing, const Offer& prefill,
                         const Offer& decode, Policy policy) {
  if (!shape.blame.empty() || shape.decode_before != kNoWorker) return PlacementReason::kRetry;
  if (prefill.estimate.pull.tokens > 0) return PlacementReason::kPull;
  if (pairing.prefill.size() == 1 && pairing.decode.size() == 1) return PlacementReason::kOnlyFit;
  if (policy == Policy::kRoundRobin) return PlacementReason::kInTurn;
  if (prefill.estimate.cached_tokens > 0 || decode.estimate.cached_tokens > 0) {
    return PlacementReason::kCacheHit;
  }
  return shape.held.empty() ? PlacementReason::kLeastLoaded : PlacementReason::kHolderBusy;
}

Placement TakeLocal(const Offer& local, const Pairing& pairing, const RequestShape& shape,
                    Decision* why) {
  const Placement placement{kNoWorker, local.worker};
  if (why != nullptr) {
    *why = {.placement = placement,
            .reason = PlacementReason::kLocal,
            .prompt_tokens = shape.prompt_tokens,
            .prefill = {},
            .decode = pairing.local.Show(local),
            .prefill_fitting = pairing.prefill.size(),
            .decode_fitting = pairing.local.size()};
  }
  return placement;
}

}  // namespace

const char* RoleName(Role role) {
  constexpr const char* kNames[] = {"prefill", "decode", "encode"};
  return kNames[static_cast<size_t>(role)];
}

const char* ReasonName(PlacementReason reason) {
  constexpr const char* kNames[] = {"retry",        "only_fit", "cache_hit", "holder_busy",
                                    "least_loaded", "local",    "in_turn",   "pull"};
  return kNames[static_cast<size_t>(reason)];
}

Policy PolicyNamed(std::string_view name) {
  constexpr std::string_view kNames[] = {"predicted_cost", "least_loaded", "round_robin"};
  const auto* const it = std::find(std::begin(kNames), std::end(kNames), name);
  TRIVIUM_CHECK(it != std::end(kNames), "no placement policy is called {}", name);
  return static_cast<Policy>(it - std::begin(kNames));
}

const char* ConditionName(WorkerCondition condition) {
  constexpr const char* kNames[] = {"ready", "draining", "suspect", "unreachable", "refused"};
  return kNames[static_cast<size_t>(condition)];
}

Held HeldBy(const RequestShape& shape, WorkerIndex worker) {
  const auto it =
      std::lower_bound(shape.held.begin(), shape.held.end(), worker,
                       [](const Held& held, WorkerIndex index) { return held.worker < index; });
  return it != shape.held.end() && it->worker == worker ? *it : Held{.worker = worker};
}

int32_t TokensToCompute(const RequestShape& shape, WorkerIndex worker) {
  return std::max(1, shape.prompt_tokens - HeldBy(shape, worker).disk_tokens);
}

int64_t BlocksFor(int64_t tokens, int32_t block_tokens) {
  const int64_t size = std::max(1, block_tokens);
  return (tokens + size - 1) / size;
}

int64_t BlocksAtFirst(const WorkerView& worker, const RequestShape& shape) {
  if (worker.role == Role::kPrefill) return BlocksFor(shape.prompt_tokens, worker.block_tokens);
  const int32_t output = kv::TokensToReserve({.remaining = shape.output_tokens,
                                              .in_full = shape.in_full,
                                              .preemptions = shape.preemptions},
                                             worker.expected_output_tokens);
  return BlocksWith(worker, shape, output);
}

int32_t PlacesAt(Role role, const RequestShape& shape) {
  return role == Role::kPrefill ? 1 : shape.choices;
}

bool IsFast(const std::string& numerics_class) { return numerics_class.rfind("fast", 0) == 0; }

absl::Status CheckStages(const ClusterSnapshot& cluster) {
  bool has_prefill = false, has_decode = false;
  std::vector<std::pair<PairKey, std::pair<bool, bool>>> keys;
  for (const WorkerView& worker : cluster.workers) {
    if (worker.role == Role::kEncode || worker.condition != WorkerCondition::kReady) continue;
    auto& [prefill, decode] = EntryOf(KeyOf(worker), &keys);
    (worker.role == Role::kPrefill ? prefill : decode) = true;
    (worker.role == Role::kPrefill ? has_prefill : has_decode) = true;
  }
  if (!has_decode && !has_prefill)
    return Unavailable("no prefill and no decode worker is reachable");
  if (!has_decode) return Unavailable("no decode worker is reachable");
  if (!has_prefill) return Unavailable("no prefill worker is reachable");
  for (const auto& [key, stages] : keys) {
    if (stages.first && stages.second) return absl::OkStatus();
  }
  return Unavailable(
      "no decode worker fits a prefill worker: numerics classes or wire formats differ");
}

absl::Status CheckPictureStages(const ClusterSnapshot& cluster) {
  bool has_encoder = false, has_prefill = false;
  for (const WorkerView& worker : cluster.workers) {
    if (worker.condition != WorkerCondition::kReady) continue;
    has_encoder |= worker.encodes;
    has_prefill |= worker.role == Role::kPrefill && worker.picture_blocks_total > 0;
  }
  if (!has_encoder)
    return Unavailable("no encode worker is reachable, and the prompt has pictures");
  if (has_prefill) return absl::OkStatus();
  return Unavailable("no reachable prefill worker takes pictures: pictures.memory_bytes is 0");
}

absl::Status CheckFits(const ClusterSnapshot& cluster, const RequestShape& shape) {
  RETURN_IF_ERROR(CheckPicturesFit(cluster, shape));
  for (const Role role : {Role::kPrefill, Role::kDecode}) {
    const bool fits = std::ranges::any_of(cluster.workers, [&](const WorkerView& worker) {
      return worker.role == role && worker.condition != WorkerCondition::kRefused &&
             (worker.blocks_total == 0 || CouldEverHold(worker, shape));
    });
    if (fits) continue;
    int64_t most_tokens = -1;
    int32_t most_places = 0;
    bool has_places = false;
    for (const WorkerView& worker : cluster.workers) {
      if (worker.role != role || worker.condition == WorkerCondition::kRefused) continue;
      has_places |= HasPlaces(worker, shape);
      most_places = std::max(most_places, worker.requests_max);
      most_tokens =
          std::max(most_tokens, int64_t{worker.blocks_total} * std::max(1, worker.block_tokens));
    }
    if (most_tokens < 0) continue;
    if (!has_places) {
      return InvalidArgument("{} choices are more than any {} worker serves at once: {}",
                             shape.choices, RoleName(role), most_places);
    }
    return InvalidArgument("{} tokens ({}) are more than the KV memory of any {} worker holds: {}",
                           TokensEverAt(role, shape),
                           role == Role::kPrefill ? "prompt and max_tokens but the last"
                           : shape.choices == 1   ? "prompt and max_tokens"
                                                  : "prompt and max_tokens of each choice",
                           RoleName(role), most_tokens);
  }
  return absl::OkStatus();
}

absl::StatusOr<Placement> Choose(const ClusterSnapshot& cluster, const RequestShape& shape,
                                 Decision* why) {
  RETURN_IF_ERROR(CheckFits(cluster, shape));
  const absl::Status encoders = CheckEncoders(cluster, shape);
  const Pairings pairings = Collect(cluster, shape, encoders.ok(), why != nullptr);
  bool could_hold = false;
  const std::pair<PairKey, Pairing>* best = nullptr;
  const auto cost = [](const auto& one) {
    return std::tie(one.second.prefill.cost(), one.second.decode.cost(), one.first);
  };
  for (const auto& one : pairings) {
    could_hold |= one.second.could_hold_prefill && one.second.could_hold_decode;
    if (!one.second.has_offers()) continue;
    if (best == nullptr || cost(one) < cost(*best)) best = &one;
  }
  if (best == nullptr) {
    if (could_hold && !encoders.ok()) {
      return absl::AbortedError("the workers that hold its pictures have no room now");
    }
    RETURN_IF_ERROR(encoders);
    RETURN_IF_ERROR(CheckStages(cluster));
    if (could_hold) return ResourceExhausted("no pair of workers has room now");
    return FailedPrecondition("only a worker that is away now could hold the request");
  }
  const Pairing& pairing = best->second;
  const Offer& prefill = pairing.prefill.Pick(shape.turn);
  const Offer& decode = pairing.decode.Pick(shape.turn);
  const bool is_local =
      !pairing.local.empty() &&
      pairing.local.cost().total_s < prefill.estimate.total_s() + decode.estimate.total_s();
  if (is_local) return TakeLocal(pairing.local.Pick(shape.turn), pairing, shape, why);
  const Placement placement{prefill.worker, decode.worker, prefill.estimate.pull};
  if (why != nullptr) {
    *why = {.placement = placement,
            .reason = ReasonOf(shape, pairing, prefill, decode, cluster.policy),
            .prompt_tokens = shape.prompt_tokens,
            .prefill = pairing.prefill.Show(prefill),
            .decode = pairing.decode.Show(decode),
            .prefill_fitting = pairing.prefill.size(),
            .decode_fitting = pairing.decode.size()};
  }
  return placement;
}

}  // namespace trivium::router
