#include "services/router/scheduler/encode_placement.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

namespace trivium::router {
namespace {

// What decoding a picture once more takes, in slices: a little, so that few slices are not spread.
constexpr double kDecodeSlices = 0.1;
// What a slice costs that is pulled from its holder, likewise.
constexpr double kPullSlices = 0.2;

bool MayEncode(const WorkerView& worker, const SlicesShape& shape) {
  if (!worker.encodes || worker.condition != WorkerCondition::kReady) return false;
  return worker.numerics_class == shape.numerics_class ||
         (IsFast(worker.numerics_class) && IsFast(shape.numerics_class));
}

// When the worker would have done what it has, and what it gets here.
struct Queue {
  WorkerIndex worker = kNoWorker;
  double ready_s = 0, slice_s = 0;
  std::set<int32_t> pictures;

  double With(int32_t picture, bool is_pulled) const {
    return ready_s + slice_s * ((is_pulled ? kPullSlices : 1) +
                                (pictures.contains(picture) ? 0 : kDecodeSlices));
  }
};

std::vector<Queue> QueuesOf(const ClusterSnapshot& cluster, const SlicesShape& shape) {
  double fastest = 0;
  for (const WorkerView& worker : cluster.workers) {
    const double speed = worker.seconds_per_slice;
    if (speed > 0 && (fastest == 0 || speed < fastest)) fastest = speed;
  }
  if (fastest == 0) fastest = kSecondsPerSliceBefore;
  std::vector<Queue> queues, failed;
  for (WorkerIndex i = 0; i < cluster.workers.size(); ++i) {
    const WorkerView& worker = cluster.workers[i];
    if (!MayEncode(worker, shape)) continue;
    Queue queue{.worker = i,
                .slice_s = worker.seconds_per_slice > 0 ? worker.seconds_per_slice : fastest,
                .pictures = {}};
    queue.ready_s = SliceBacklog(worker) * queue.slice_s;
    const bool has_failed = std::ranges::count(shape.failed, i) > 0;
    (has_failed ? failed : queues).push_back(std::move(queue));
  }
  return queues.empty() ? failed : queues;
}

}  // namespace

double SecondsPerSlice(const WorkerView& worker) {
  return worker.seconds_per_slice > 0 ? worker.seconds_per_slice : kSecondsPerSliceBefore;
}

int32_t SliceBacklog(const WorkerView& worker) {
  return std::max(worker.slices_waiting, worker.own_slices);
}

bool TakesMoreSlices(const WorkerView& worker) {
  return worker.encodes && worker.condition == WorkerCondition::kReady &&
         SliceBacklog(worker) < std::min(kSliceBacklog, worker.slices_max);
}

absl::StatusOr<std::vector<SlicePlace>> SpreadSlices(const ClusterSnapshot& cluster,
                                                     const SlicesShape& shape) {
  std::vector<Queue> queues = QueuesOf(cluster, shape);
  if (queues.empty()) {
    const bool has_encoder = std::ranges::any_of(cluster.workers, [](const WorkerView& worker) {
      return worker.encodes && worker.condition == WorkerCondition::kReady;
    });
    if (!has_encoder) return Unavailable("no encode worker is reachable");
    return Unavailable("no encode worker fits the prefill worker's numerics class, {}",
                       shape.numerics_class);
  }
  std::vector<SlicePlace> places;
  for (const SliceToPlace& slice : shape.slices) {
    const auto holder = std::ranges::find(queues, slice.holder, &Queue::worker);
    const bool is_held = slice.holder != kNoWorker && holder != queues.end();
    if (is_held && TakesMoreSlices(cluster.workers[slice.holder])) {
      places.push_back({slice.holder});
      continue;
    }
    // Each names its tokens by its own numerics class too.
    const auto pulls = [&](const Queue& queue) {
      return is_held && queue.worker != slice.holder &&
             cluster.workers[queue.worker].numerics_class ==
                 cluster.workers[slice.holder].numerics_class;
    };
    Queue& first = *std::ranges::min_element(queues, {}, [&](const Queue& queue) {
      return std::tuple(queue.With(slice.picture, pulls(queue)), queue.worker);
    });
    first.ready_s = first.With(slice.picture, pulls(first));
    first.pictures.insert(slice.picture);
    places.push_back({first.worker, pulls(first) ? slice.holder : kNoWorker});
  }
  return places;
}

}  // namespace trivium::router
