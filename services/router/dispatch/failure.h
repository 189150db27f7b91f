// What to do when a stage fails: the retry rules as one pure function. Safe from any thread.
#pragma once

#include "common/base/status.h"

namespace trivium::router {

enum class FailureAction : uint8_t {
  kWaitForRoom,  // back to the queue, not counted as a failed attempt
  kMakeWay,      // the same; the worker took the room back for another request
  kRetry,        // another attempt; the worker gets no new request until it has reported again
  kElsewhere,    // another attempt; the worker is well, but has no room that is for this request
  kRefuse,       // another attempt; the worker cannot serve this cluster until it restarts
  kGiveUp,       // the request itself is wrong: no other worker would say otherwise
};
FailureAction ActionFor(const absl::Status& status);

}  // namespace trivium::router
