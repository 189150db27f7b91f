// What a placement is predicted to cost, in seconds, one worker at a time: a prefill worker for
// what waits there and what of the prompt it has to compute, a decode worker for what has to be
// moved to it and what its running requests lose. What a prefill worker spends costs a quarter more
// than its time, since somebody else may wait for it: so siblings follow each other where two ways
// take this client equally long.
//
// A prefix that another worker holds is pulled where its transfer, and what the holder loses
// meanwhile, cost less than computing it.
//
// What a worker holds of the prompt counts for what it saves, less what loading it costs; a cold
// worker is taken instead of a holder as soon as the holder's queue costs more than that.
// Pure functions; safe from any thread.
#pragma once

#include "services/router/scheduler/placement.h"
#include "services/router/scheduler/pull_sources.h"

namespace trivium::router {

// The measurements that stand in for those of a worker that has none yet, or nearly the same: of
// the fastest of its role, so that a new worker is tried, and machines that differ by noise alone
// count as equal.
struct Speeds {
  StepCost prefill, decode;
  double transfer_bytes_per_s = 0;  // into a decode worker
  double pull_bytes_per_s = 0;      // into a prefill worker
};
Speeds FastestOf(const ClusterSnapshot& cluster);

// Seconds, and what they come from.
struct Estimate {
  int32_t cached_tokens = 0;  // of the prompt, that the worker would use
  double wait_s = 0;          // for the prompts before this one
  double load_s = 0;          // of cached tokens that are not hot
  Pull pull = {};             // of tokens behind those cached
  double pull_s = 0;          // until they are there
  double compute_s = 0;       // of the others
  double transfer_s = 0;      // of what a decode worker lacks
  double harm_s = 0;          // to others
  double total_s() const { return wait_s + load_s + pull_s + compute_s + transfer_s + harm_s; }
};

// `held`: by this worker. A decode worker takes what it lacks from the prefill worker, and so has
// only what is hot.
Estimate EstimateFor(const WorkerView& worker, const RequestShape& shape, const Held& held,
                     const Speeds& speeds, int64_t kv_bytes_per_token);

// Makes a prefill worker's estimate one with a pull from `source` where that is cheaper, and by
// enough: a pull that fails costs its time, and the computation is still to be done.
void PullWhatPays(const WorkerView& worker, const RequestShape& shape, const PullSource& source,
                  const Speeds& speeds, int64_t kv_bytes_per_token, Estimate* estimate);

// Of a decode worker that prefills the prompt itself, from the tokens that it holds on: those that
// run there wait while it computes.
Estimate EstimateLocal(const WorkerView& worker, const RequestShape& shape, const Held& held,
                       const Speeds& speeds, int64_t kv_bytes_per_token);

// Prompt tokens that wait at a prefill worker, and requests in a worker's batch, as far as known.
int64_t Backlog(const WorkerView& worker);
int32_t Requests(const WorkerView& worker);
// Blocks that are neither taken nor spoken for.
int64_t FreeBlocks(const WorkerView& worker);

}  // namespace trivium::router
