#include "services/router/scheduler/cost.h"

#include <algorithm>
#include <utility>

namespace trivium::router {
namespace {

// Before anything has been measured anywhere. Only their proportions matter then.
constexpr StepCost kStepCostBefore{.per_row_s = 5e-4, .base_s = 2e-3, .per_key_s = 0};
constexpr double kTransferBytesPerSBefore = 1e9;
// Measured alike: between equal machines, fits of step times differ by less than this, and
// transfers, which share their time with computation, by less than that.
constexpr double kStepNoise = 1.25, kTransferNoise = 2;
// Bytes of KV a second, of a worker that has not measured its own: unpacking, and reading from a
// disk and unsealing.
constexpr double kMemoryBytesPerSBefore = 5e8, kDiskBytesPerSBefore = 2e8;
constexpr int64_t kStepRows = 512;
// The beginning of an answer, by which its decode worker's speed is judged.
constexpr double kAnswerTokens = 32;
// Of a second of a prefill worker, to those who come next.
constexpr double kWorkHarm = 0.25;
// Two calls, a connection perhaps, and the step that goes on at the prefill worker.
constexpr double kPullOverhead_s = 5e-3;
// Of the time that computing takes: so long is a pull waited for at most, and one that is expected
// to take longer is not begun.
constexpr double kPullShare = 0.5;
// Of the time of a transfer, to each request at its sender.
constexpr double kSendHarm = 0.25;
// Of a decode worker's blocks: with fewer of them free, preemption comes near.
constexpr double kHeadroom = 0.125;

bool IsMeasured(const StepCost& cost) { return cost.per_row_s > 0; }

StepCost Or(const StepCost& measured, const StepCost& fastest) {
  const bool differs = measured.per_row_s > fastest.per_row_s * kStepNoise;
  return IsMeasured(measured) && differs ? measured : fastest;
}

double SecondsOf(const StepCost& cost, int64_t rows, int64_t keys) {
  const int64_t steps = (rows + kStepRows - 1) / kStepRows;
  return cost.base_s * static_cast<double>(steps) + cost.per_row_s * static_cast<double>(rows) +
         cost.per_key_s * static_cast<double>(keys);
}

// The rows from `position` to the end of the prompt; each sees all before it.
double PrefillSeconds(const StepCost& cost, int64_t position, int64_t prompt_tokens) {
  const int64_t rows = prompt_tokens - position;
  return SecondsOf(cost, rows, rows * position + rows * (rows + 1) / 2);
}

double TransferSpeed(double measured, double fastest) {
  const bool is_slow = measured > 0 && measured * kTransferNoise < fastest;
  return is_slow ? measured : fastest;
}

// Uses as much of what is held as is worth its loading: `rest_s(tokens)` is what it costs to go on
// from there.
template <typename Rest>
void LoadWhatPays(const WorkerView& worker, const Held& held, int32_t most, int64_t token_bytes,
                  Rest rest_s, Estimate* estimate, double Estimate::*rest) {
  const int32_t hot = std::min(held.hot_tokens, most);
  const int32_t memory = std::min(held.memory_tokens, most);
  const int32_t disk = std::min(held.disk_tokens, most);
  const auto bytes = [&](int32_t tokens) { return static_cast<double>(tokens * token_bytes); };
  const auto take = [&](int32_t tokens, double load_s) {
    estimate->cached_tokens = tokens;
    estimate->load_s = load_s;
    estimate->*rest = rest_s(tokens);
  };
  take(hot, 0);
  if (disk == hot) return;
  const auto measured = [](double bytes_per_s, double before) {
    return bytes_per_s > 0 ? bytes_per_s : before;
  };
  const double from_memory_s =
      bytes(memory - hot) / measured(worker.memory_load_bytes_per_s, kMemoryBytesPerSBefore);
  const double from_disk_s =
      from_memory_s +
      bytes(disk - memory) / measured(worker.disk_load_bytes_per_s, kDiskBytesPerSBefore);
  for (const auto& [tokens, load_s] :
       {std::pair(memory, from_memory_s), std::pair(disk, from_disk_s)}) {
    if (load_s + rest_s(tokens) < estimate->load_s + estimate->*rest) take(tokens, load_s);
  }
}

Estimate ForPrefill(const WorkerView& worker, const RequestShape& shape, const Held& held,
                    const StepCost& cost, int64_t token_bytes) {
  Estimate estimate{.wait_s = SecondsOf(cost, Backlog(worker), 0)};
  LoadWhatPays(
      worker, held, shape.prompt_tokens - 1, token_bytes,
      [&](int32_t tokens) { return PrefillSeconds(cost, tokens, shape.prompt_tokens); }, &estimate,
      &Estimate::compute_s);
  estimate.harm_s = kWorkHarm * (estimate.load_s + estimate.compute_s);
  return estimate;
}

// The time of the answer's first tokens, what each running request loses meanwhile, and where
// blocks are short, the prefill that a preempted request will have to repeat.
double HarmAt(const WorkerView& worker, const RequestShape& shape, const StepCost& cost) {
  const int64_t running = Requests(worker);
  const int64_t keys = int64_t{shape.choices} * shape.prompt_tokens;
  const double slower_s =
      cost.per_row_s * shape.choices + cost.per_key_s * static_cast<double>(keys);
  const double step_s = SecondsOf(cost, running + shape.choices, keys);
  const double wanted = kHeadroom * worker.blocks_total;
  const auto left = static_cast<double>(FreeBlocks(worker) - BlocksAtFirst(worker, shape));
  const double scarcity = wanted <= 0 ? 0 : std::clamp(1 - left / wanted, 0.0, 1.0);
  return kAnswerTokens * (step_s + static_cast<double>(running) * slower_s) +
         scarcity * PrefillSeconds(cost, 0, shape.prompt_tokens);
}

}  // namespace

int64_t Backlog(const WorkerView& worker) {
  return std::max(worker.prompt_tokens_waiting, worker.own_prompt_tokens);
}

int32_t Requests(const WorkerView& worker) {
  return std::max(worker.requests, worker.own_requests);
}

int64_t FreeBlocks(const WorkerView& worker) {
  return std::min(worker.blocks_free - worker.blocks_spare - worker.own_blocks_unseen,
                  worker.blocks_total - worker.own_blocks);
}

Speeds FastestOf(const ClusterSnapshot& cluster) {
  Speeds speeds;
  for (const WorkerView& worker : cluster.workers) {
    if (worker.role == Role::kEncode) continue;
    StepCost& fastest = worker.role == Role::kPrefill ? speeds.prefill : speeds.decode;
    const bool is_first = !IsMeasured(fastest);
    if (IsMeasured(worker.step_cost) && (is_first || worker.step_cost < fastest)) {
      fastest = worker.step_cost;
    }
    double& transfer =
        worker.role == Role::kPrefill ? speeds.pull_bytes_per_s : speeds.transfer_bytes_per_s;
    transfer = std::max(transfer, worker.transfer_bytes_per_s);
  }
  if (!IsMeasured(speeds.prefill)) speeds.prefill = kStepCostBefore;
  if (!IsMeasured(speeds.decode)) speeds.decode = kStepCostBefore;
  for (double* transfer : {&speeds.transfer_bytes_per_s, &speeds.pull_bytes_per_s}) {
    if (*transfer <= 0) *transfer = kTransferBytesPerSBefore;
  }
  return speeds;
}

Estimate EstimateFor(const WorkerView& worker, const RequestShape& shape, const Held& held,
                     const Speeds& speeds, int64_t kv_bytes_per_token) {
  if (worker.role == Role::kPrefill) {
    return ForPrefill(worker, shape, held, Or(worker.step_cost, speeds.prefill),
                      kv_bytes_per_token);
  }
  const double bytes_per_s =
      TransferSpeed(worker.transfer_bytes_per_s, speeds.transfer_bytes_per_s);
  Estimate estimate{.cached_tokens = std::min(held.hot_tokens, shape.prompt_tokens)};
  estimate.transfer_s =
      static_cast<double>((shape.prompt_tokens - estimate.cached_tokens) * kv_bytes_per_token) /
      bytes_per_s;
  estimate.harm_s = HarmAt(worker, shape, Or(worker.step_cost, speeds.decode));
  return estimate;
}

void PullWhatPays(const WorkerView& worker, const RequestShape& shape, const PullSource& source,
                  const Speeds& speeds, int64_t kv_bytes_per_token, Estimate* estimate) {
  const int64_t missing = source.tokens - estimate->cached_tokens;
  if (missing <= 0) return;
  const StepCost cost = Or(worker.step_cost, speeds.prefill);
  const double send_s = static_cast<double>(missing * kv_bytes_per_token) /
                        TransferSpeed(worker.transfer_bytes_per_s, speeds.pull_bytes_per_s);
  const double rest_s = PrefillSeconds(cost, source.tokens, shape.prompt_tokens);
  const double saved_s = estimate->compute_s - rest_s;
  Estimate pulling = *estimate;
  pulling.pull = {source.holder, source.tokens, kPullShare * saved_s};
  pulling.pull_s = kPullOverhead_s + send_s;
  pulling.compute_s = rest_s;
  pulling.harm_s =
      kWorkHarm * (pulling.load_s + rest_s) + kSendHarm * send_s * std::max(1, source.requests);
  if (pulling.pull_s > pulling.pull.within_s || pulling.total_s() >= estimate->total_s()) return;
  *estimate = pulling;
}

Estimate EstimateLocal(const WorkerView& worker, const RequestShape& shape, const Held& held,
                       const Speeds& speeds, int64_t kv_bytes_per_token) {
  const StepCost decoding = Or(worker.step_cost, speeds.decode);
  // Steps of one row tell base and rows not apart: such a fit may call the rows of a prompt free,
  // and then no cached one would be worth its loading.
  StepCost cost = decoding;
  cost.per_row_s = std::max(cost.per_row_s, speeds.prefill.per_row_s);
  Estimate estimate{.wait_s = SecondsOf(cost, worker.own_prompt_tokens, 0)};
  LoadWhatPays(
      worker, held, shape.prompt_tokens - 1, kv_bytes_per_token,
      [&](int32_t tokens) { return PrefillSeconds(cost, tokens, shape.prompt_tokens); }, &estimate,
      &Estimate::compute_s);
  estimate.harm_s = HarmAt(worker, shape, decoding) + Requests(worker) * estimate.compute_s;
  return estimate;
}

}  // namespace trivium::router
