// Who could send the beginning of a prompt to a prefill worker that lacks it: of the workers that
// hold KV which is the same as the asker's own would be, the one with most of it, and of equals the
// one with fewer requests. Made once for a placement, asked for each candidate: O(workers), then
// O(kinds of workers). Plain values; safe from any thread.
#pragma once

#include <vector>

#include "services/router/scheduler/placement.h"

namespace trivium::router {

struct PullSource {
  WorkerIndex holder = kNoWorker;  // none
  int32_t tokens = 0;              // that it has said it holds; some of the prompt is left
  int32_t requests = 0;            // there
};

class PullSources {
 public:
  // Workers that have failed this request are left out. The snapshot outlives this.
  PullSources(const ClusterSnapshot& cluster, const RequestShape& shape);
  PullSource BestFor(WorkerIndex asker) const;

 private:
  // Of workers that may stand in for each other; the second is for when the first asks.
  struct Kind {
    const WorkerView* example;
    PullSource best, second;
  };
  void Add(const WorkerView& worker, const PullSource& source);

  const ClusterSnapshot& cluster_;
  std::vector<Kind> kinds_;
};

}  // namespace trivium::router
