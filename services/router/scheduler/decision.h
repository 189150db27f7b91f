// Why a request went where it went: what each candidate was predicted to cost, which was taken, and
// the reason in one word. Plain values; safe from any thread.
#pragma once

#include <vector>

#include "services/router/scheduler/cost.h"
#include "services/router/scheduler/placement.h"

namespace trivium::router {

// kRetry: an attempt before has set preferences. kOnlyFit: one pair of workers had room. kCacheHit:
// a worker that holds some of the prompt. kHolderBusy: some did, but it was not worth their queue.
// kLocal: the decode worker computes what it does not hold. kInTurn: round robin.
// kPull: the prefill worker takes what it lacks from another worker.
enum class PlacementReason : uint8_t {
  kRetry,
  kOnlyFit,
  kCacheHit,
  kHolderBusy,
  kLeastLoaded,
  kLocal,
  kInTurn,
  kPull,
  kCount
};
const char* ReasonName(PlacementReason reason);

struct Candidate {
  WorkerIndex worker = kNoWorker;
  int blame = 0;  // points; fewer win over any cost
  Estimate estimate;
};

struct Decision {
  // Of each role, those shown: the one taken first, then the cheapest others.
  static constexpr size_t kShownMax = 8;

  Placement placement;
  PlacementReason reason = PlacementReason::kLeastLoaded;
  int32_t prompt_tokens = 0;
  std::vector<Candidate> prefill, decode;
  int32_t prefill_fitting = 0, decode_fitting = 0;  // workers with room, shown or not
};

}  // namespace trivium::router
