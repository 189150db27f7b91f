#include "services/decode/growth.h"

#include <algorithm>
#include <tuple>

#include "common/kv/answer_room.h"

namespace trivium::decode {

void AnswerLengths::Add(int32_t tokens) {
  int32_t& slot = last_[static_cast<size_t>(seen_ % kWindow)];
  sum_ += tokens - slot;
  slot = tokens;
  ++seen_;
  if (seen_ < kFewest) return;
  const int64_t count = std::min<int64_t>(seen_, kWindow);
  expected_.store(static_cast<int32_t>((sum_ + count - 1) / count), std::memory_order_relaxed);
}

int32_t SpareBlocks(int32_t requests) { return (requests + 3) / 4; }

int GivesWay(std::span<const Standing> running) {
  const auto key = [](const Standing& one) {
    return std::tuple(one.priority, one.preemptions, ~one.number);
  };
  int chosen = -1;
  for (size_t i = 0; i < running.size(); ++i) {
    if (running[i].preemptions >= kv::kPreemptionsMax) continue;
    if (chosen < 0 || key(running[i]) < key(running[static_cast<size_t>(chosen)])) {
      chosen = static_cast<int>(i);
    }
  }
  return chosen;
}

}  // namespace trivium::decode
