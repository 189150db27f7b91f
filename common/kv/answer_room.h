// How much KV room a decode worker sets aside for an answer whose length nobody knows yet. Worker
// and router reckon by this one rule, so that the router may count what the worker has not yet
// reported. Plain values; safe from any thread.
//
// A request admitted on less than it may need grows block by block, and is preempted where no block
// is left: it ends, and comes back with its tokens so far as part of the prompt. Invariant: that
// happens to one request at most kPreemptionsMax times; then it gets all its room at once and is
// left alone.
#pragma once

#include <algorithm>
#include <cstdint>

namespace trivium::kv {

inline constexpr int32_t kPreemptionsMax = 3;
inline constexpr int32_t kPriorityMax = 100;  // and -100 the lowest

struct AnswerBounds {
  int32_t remaining = 0;  // output tokens still to come, at most
  // All of it is set aside: nothing else can end the answer, or several choices share blocks.
  bool in_full = false;
  int32_t preemptions = 0;  // so far
};

// Output tokens to set aside. `expected` is the worker's mean answer, 0: unknown.
inline int32_t TokensToReserve(const AnswerBounds& bounds, int32_t expected) {
  if (expected <= 0 || bounds.in_full || bounds.preemptions >= kPreemptionsMax) {
    return bounds.remaining;
  }
  return std::min(bounds.remaining, expected);
}

}  // namespace trivium::kv
