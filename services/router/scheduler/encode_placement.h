// Spreads the slices of pictures over the workers that encode: a pure function of a snapshot of the
// cluster, as placement.h. Stateless; safe from any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "services/router/scheduler/placement.h"

namespace trivium::router {

// Slices that may wait at a worker before requests with pictures stay in the router: enough for the
// next batches, little enough that blocks reserved downstream wait for one request's encoding and
// not for a queue.
inline constexpr int32_t kSliceBacklog = 24;
// What one takes, until it has been measured.
inline constexpr double kSecondsPerSliceBefore = 0.1;

struct SliceToPlace {
  int32_t picture = 0;  // those of one picture are best encoded where it is decoded anyway
  uint64_t key = 0;     // by which its former encoder is remembered; 0: by none
  WorkerIndex holder = kNoWorker;  // seems to have it encoded already
};

struct SlicePlace {
  WorkerIndex worker = kNoWorker;
  WorkerIndex pull_from = kNoWorker;  // who holds it and has no room; none: nobody
  bool operator==(const SlicePlace&) const = default;
};

struct SlicesShape {
  std::vector<SliceToPlace> slices;  // in the order in which they are needed
  std::string numerics_class;        // of the prefill worker
  std::vector<WorkerIndex> failed;   // are asked only where nobody else is left
};

int32_t SliceBacklog(const WorkerView& worker);
bool TakesMoreSlices(const WorkerView& worker);

// For each slice its worker, so that the last one is ready as soon as possible: each goes where it
// would be ready first, in turn, by backlog and measured speed; to its holder, at no cost, where
// that has room; else another one may pull it from there, at little cost. UNAVAILABLE: no worker
// that encodes is ready, or none of the numerics class.
absl::StatusOr<std::vector<SlicePlace>> SpreadSlices(const ClusterSnapshot& cluster,
                                                     const SlicesShape& shape);
// What the worker takes for a slice, as far as is known.
double SecondsPerSlice(const WorkerView& worker);

}  // namespace trivium::router
