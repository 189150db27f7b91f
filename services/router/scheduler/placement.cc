#include "services/router/scheduler/placement.h"

#include <algorithm>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include "common/kv/answer_room.h"

namespace trivium::router {
namespace {

// Workers with equal keys may exchange KV: one wire format, and one numerics class unless rounding
// is allowed to differ.
using PairKey = std::pair<std::string, uint32_t>;
PairKey KeyOf(const WorkerView& worker) {
  return {IsFast(worker.numerics_class) ? "fast" : worker.numerics_class, worker.wire_format};
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

// Whether the worker can hold this attempt.
bool CouldHold(const WorkerView& worker, const RequestShape& shape) {
  const int64_t blocks = worker.role == Role::kPrefill
                             ? BlocksFor(shape.prompt_tokens, worker.block_tokens)
                             : BlocksWith(worker, shape, shape.output_tokens);
  return HasPlaces(worker, shape) && blocks <= worker.blocks_total;
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

int64_t Backlog(const WorkerView& worker) {
  return std::max(worker.prompt_tokens_waiting, worker.own_prompt_tokens);
}

int32_t Requests(const WorkerView& worker) {
  return std::max(worker.requests, worker.own_requests);
}

bool FitsNow(const WorkerView& worker, const RequestShape& shape) {
  if (worker.is_full) return false;
  if (Requests(worker) > worker.requests_max - PlacesAt(worker.role, shape)) return false;
  const int64_t free = std::min(worker.blocks_free - worker.blocks_spare - worker.own_blocks_unseen,
                                worker.blocks_total - worker.own_blocks);
  if (BlocksAtFirst(worker, shape) > free) return false;
  return worker.role == Role::kDecode || Backlog(worker) < kPrefillBacklogTokens;
}

// Less is better. Blame first, so that a retry leaves a worker that failed this request; a decode
// worker that was merely there when the prefill worker failed is kept.
using Cost = std::tuple<int, int, int64_t, int32_t>;
Cost CostOf(const WorkerView& worker, WorkerIndex index, const RequestShape& shape) {
  const int blame = BlameOf(shape, index);
  if (worker.role == Role::kPrefill) return {blame, 0, Backlog(worker), Requests(worker)};
  const bool before = index == shape.decode_before;
  return {before ? std::max(0, blame - 1) : blame, before ? 0 : 1, Requests(worker), 0};
}

// The cheapest of the workers seen, the `turn`-th of equals.
class Cheapest {
 public:
  void Offer(const Cost& cost, WorkerIndex index) {
    if (equals_.empty() || cost < cost_) {
      cost_ = cost;
      equals_.clear();
    }
    if (cost == cost_) equals_.push_back(index);
  }
  bool empty() const { return equals_.empty(); }
  const Cost& cost() const { return cost_; }
  WorkerIndex Pick(uint64_t turn) const { return equals_[turn % equals_.size()]; }

 private:
  Cost cost_{};
  std::vector<WorkerIndex> equals_;
};

struct Pairing {
  Cheapest prefill, decode;
  bool could_hold_prefill = false, could_hold_decode = false;
};

}  // namespace

const char* RoleName(Role role) { return role == Role::kPrefill ? "prefill" : "decode"; }

const char* ConditionName(WorkerCondition condition) {
  constexpr const char* kNames[] = {"ready", "draining", "suspect", "unreachable", "refused"};
  return kNames[static_cast<size_t>(condition)];
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
  std::map<PairKey, std::pair<bool, bool>> keys;
  for (const WorkerView& worker : cluster.workers) {
    if (worker.condition != WorkerCondition::kReady) continue;
    auto& [prefill, decode] = keys[KeyOf(worker)];
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

absl::Status CheckFits(const ClusterSnapshot& cluster, const RequestShape& shape) {
  for (const Role role : {Role::kPrefill, Role::kDecode}) {
    int64_t most_tokens = -1;
    int32_t most_places = 0;
    bool may_fit = false, has_places = false;
    for (const WorkerView& worker : cluster.workers) {
      if (worker.role != role || worker.condition == WorkerCondition::kRefused) continue;
      const bool is_unknown = worker.blocks_total == 0;
      may_fit |= is_unknown || CouldEverHold(worker, shape);
      has_places |= is_unknown || HasPlaces(worker, shape);
      most_places = std::max(most_places, worker.requests_max);
      most_tokens =
          std::max(most_tokens, int64_t{worker.blocks_total} * std::max(1, worker.block_tokens));
    }
    if (may_fit || most_tokens < 0) continue;
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

absl::StatusOr<Placement> Choose(const ClusterSnapshot& cluster, const RequestShape& shape) {
  RETURN_IF_ERROR(CheckFits(cluster, shape));
  RETURN_IF_ERROR(CheckStages(cluster));
  std::map<PairKey, Pairing> pairings;
  for (WorkerIndex i = 0; i < cluster.workers.size(); ++i) {
    const WorkerView& worker = cluster.workers[i];
    if (worker.condition != WorkerCondition::kReady) continue;
    if (!CouldHold(worker, shape)) continue;
    Pairing& pairing = pairings[KeyOf(worker)];
    const bool is_prefill = worker.role == Role::kPrefill;
    (is_prefill ? pairing.could_hold_prefill : pairing.could_hold_decode) = true;
    if (!FitsNow(worker, shape)) continue;
    (is_prefill ? pairing.prefill : pairing.decode).Offer(CostOf(worker, i, shape), i);
  }
  bool could_hold = false;
  const Pairing* best = nullptr;
  const auto cost = [](const Pairing& p) { return std::tie(p.prefill.cost(), p.decode.cost()); };
  for (const auto& [key, pairing] : pairings) {
    could_hold |= pairing.could_hold_prefill && pairing.could_hold_decode;
    if (pairing.prefill.empty() || pairing.decode.empty()) continue;
    if (best == nullptr || cost(pairing) < cost(*best)) best = &pairing;
  }
  if (best != nullptr)
    return Placement{best->prefill.Pick(shape.turn), best->decode.Pick(shape.turn)};
  if (could_hold) return ResourceExhausted("no pair of workers has room now");
  return FailedPrecondition("only a worker that is away now could hold the request");
}

}  // namespace trivium::router
