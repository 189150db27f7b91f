#include "services/router/scheduler/ledger.h"

#include <algorithm>
#include <utility>

namespace trivium::router {
namespace {

// A transfer that shares its time with the computation of what it moves shows less than the line
// can do, so the best one counts, for a while.
constexpr double kTransferFade = 0.98;
constexpr int64_t kTransferBytesMin = 256 << 10;
// A worker's latest prompts, which are what it has done lately.
constexpr double kRecentPrompts = 64;
// A pull moves what is there already, and so shows what the line does now.
constexpr double kPullWeight = 0.3;
constexpr double kPullBytesPerSBefore = 1e8;
// Without one for so many reports of the worker (one to ten minutes), the next is tried as if it
// were the first: nothing else would tell that the line is better by now.
constexpr int32_t kPullReports = 2000;

}  // namespace

Ledger::Ledger(ClusterSnapshot* cluster)
    : cluster_(*cluster),
      reserved_(cluster->workers.size()),
      reports_since_pull_(cluster->workers.size()) {}

void Ledger::Charge(uint64_t ticket, const Placement& placement, const RequestShape& shape) {
  WorkerView& decode = cluster_.workers[placement.decode];
  Entry entry{.placement = placement,
              .decode_blocks = BlocksAtFirst(decode, shape),
              .prompt_tokens = std::min(
                  TokensToCompute(
                      shape, placement.prefill == kNoWorker ? placement.decode : placement.prefill),
                  shape.prompt_tokens - placement.pull.tokens),
              .decode_places = PlacesAt(Role::kDecode, shape)};
  // Tokens that wait for pictures keep nobody's from being computed.
  if (shape.picture_blocks > 0 && placement.prefill != kNoWorker) entry.prompt_tokens = 0;
  if (placement.prefill == kNoWorker) {
    entry.is_prefilling = false;
    decode.own_prompt_tokens += entry.prompt_tokens;
  } else {
    WorkerView& prefill = cluster_.workers[placement.prefill];
    entry.prefill_blocks = BlocksAtFirst(prefill, shape);
    prefill.own_requests += 1;
    prefill.own_blocks += entry.prefill_blocks;
    prefill.own_prompt_tokens += entry.prompt_tokens;
    const double fade = 1 - 1 / (kRecentPrompts * static_cast<double>(cluster_.workers.size()));
    for (WorkerView& worker : cluster_.workers) worker.own_recent_tokens *= fade;
    prefill.own_recent_tokens += entry.prompt_tokens;
  }
  const bool is_new = entries_.emplace(ticket, entry).second;
  TRIVIUM_CHECK(is_new, "request {} is charged twice", ticket);
  decode.own_requests += entry.decode_places;
  decode.own_blocks += entry.decode_blocks;
  decode.own_blocks_unseen += entry.decode_blocks;
}

void Ledger::Reserved(uint64_t ticket) {
  const auto it = entries_.find(ticket);
  if (it == entries_.end() || std::exchange(it->second.is_reserved, true)) return;
  reserved_[it->second.placement.decode].push_back(ticket);
}

void Ledger::FirstToken(uint64_t ticket) {
  const auto it = entries_.find(ticket);
  if (it != entries_.end()) PromptDone(it->second);
}

void Ledger::PromptDone(Entry& entry) {
  if (!std::exchange(entry.is_prompt_waiting, false)) return;
  const Placement& at = entry.placement;
  cluster_.workers[at.prefill == kNoWorker ? at.decode : at.prefill].own_prompt_tokens -=
      entry.prompt_tokens;
}

void Ledger::EndPrefill(Entry& entry) {
  PromptDone(entry);
  if (!std::exchange(entry.is_prefilling, false)) return;
  WorkerView& prefill = cluster_.workers[entry.placement.prefill];
  prefill.own_requests -= 1;
  prefill.own_blocks -= entry.prefill_blocks;
}

void Ledger::PrefillEnded(uint64_t ticket) {
  const auto it = entries_.find(ticket);
  if (it != entries_.end()) EndPrefill(it->second);
}

void Ledger::Seen(Entry& entry) {
  if (!std::exchange(entry.is_unseen, false)) return;
  cluster_.workers[entry.placement.decode].own_blocks_unseen -= entry.decode_blocks;
}

void Ledger::Release(uint64_t ticket) {
  const auto it = entries_.find(ticket);
  if (it == entries_.end()) return;
  EndPrefill(it->second);
  Seen(it->second);
  WorkerView& decode = cluster_.workers[it->second.placement.decode];
  decode.own_requests -= it->second.decode_places;
  decode.own_blocks -= it->second.decode_blocks;
  entries_.erase(it);
}

void Ledger::Transferred(uint64_t ticket, int64_t bytes, double seconds) {
  const auto it = entries_.find(ticket);
  if (it == entries_.end() || bytes < kTransferBytesMin || !(seconds > 0)) return;
  double& best = cluster_.workers[it->second.placement.decode].transfer_bytes_per_s;
  best = std::max(best * kTransferFade, static_cast<double>(bytes) / seconds);
}

void Ledger::Pulled(uint64_t ticket, int64_t bytes, double seconds) {
  const auto it = entries_.find(ticket);
  if (it == entries_.end() || !(seconds > 0)) return;
  const Placement& at = it->second.placement;
  if (at.prefill == kNoWorker || (bytes > 0 && bytes < kTransferBytesMin)) return;
  double& speed = cluster_.workers[at.prefill].transfer_bytes_per_s;
  const double measured = static_cast<double>(bytes) / seconds;
  if (speed <= 0) speed = measured > 0 ? measured : kPullBytesPerSBefore;
  speed += kPullWeight * (measured - speed);
  reports_since_pull_[at.prefill] = 0;
}

void Ledger::OnReport(WorkerIndex worker) {
  WorkerView& view = cluster_.workers[worker];
  if (view.role == Role::kPrefill && ++reports_since_pull_[worker] >= kPullReports) {
    view.transfer_bytes_per_s = 0;
  }
  for (const uint64_t ticket : std::exchange(reserved_[worker], {})) {
    const auto it = entries_.find(ticket);
    // The request may have been charged anew since, here or elsewhere.
    if (it == entries_.end() || it->second.placement.decode != worker) continue;
    if (it->second.is_reserved) Seen(it->second);
  }
}

}  // namespace trivium::router
