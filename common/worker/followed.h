// A counter that follows a sum kept elsewhere. Thread-safety: none; scrapes share a lock.
#pragma once

#include "common/telemetry/metrics.h"

namespace trivium::worker {

struct Followed {
  telemetry::Counter* counter = nullptr;
  double seen = 0;
  void Follow(double sum) {
    if (sum > seen) counter->Add(sum - seen);
    seen = sum;
  }
};

}  // namespace trivium::worker
