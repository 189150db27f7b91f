#include "services/router/scheduler/pull_sources.h"

#include <algorithm>
#include <tuple>

#include "services/router/scheduler/cost.h"

namespace trivium::router {
namespace {

// Blocks of both have the same keys: see kv::KeySpace.
bool HasSameKv(const WorkerView& a, const WorkerView& b) {
  return a.wire_format == b.wire_format && a.block_tokens == b.block_tokens &&
         a.numerics_class == b.numerics_class;
}

bool IsBetter(const PullSource& a, const PullSource& b) {
  return std::tuple(-a.tokens, a.requests, a.holder) < std::tuple(-b.tokens, b.requests, b.holder);
}

bool HasFailed(const RequestShape& shape, WorkerIndex worker) {
  return std::any_of(shape.blame.begin(), shape.blame.end(),
                     [worker](const WorkerBlame& blame) { return blame.worker == worker; });
}

}  // namespace

PullSources::PullSources(const ClusterSnapshot& cluster, const RequestShape& shape)
    : cluster_(cluster) {
  for (const Held& held : shape.held) {
    const WorkerView& worker = cluster.workers[held.worker];
    const int32_t size = std::max(1, worker.block_tokens);
    const int32_t tokens = std::min(held.stored_tokens, (shape.prompt_tokens - 1) / size * size);
    if (tokens == 0 || worker.condition != WorkerCondition::kReady) continue;
    if (!HasFailed(shape, held.worker)) Add(worker, {held.worker, tokens, Requests(worker)});
  }
}

void PullSources::Add(const WorkerView& worker, const PullSource& source) {
  auto kind = std::find_if(kinds_.begin(), kinds_.end(),
                           [&worker](const Kind& one) { return HasSameKv(*one.example, worker); });
  if (kind == kinds_.end()) {
    kinds_.push_back({&worker, source, {}});
  } else if (IsBetter(source, kind->best)) {
    kind->second = kind->best;
    kind->best = source;
  } else if (IsBetter(source, kind->second)) {
    kind->second = source;
  }
}

PullSource PullSources::BestFor(WorkerIndex asker) const {
  for (const Kind& kind : kinds_) {
    if (!HasSameKv(*kind.example, cluster_.workers[asker])) continue;
    return kind.best.holder == asker ? kind.second : kind.best;
  }
  return {};
}

}  // namespace trivium::router
