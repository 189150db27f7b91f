// Admission on expected length: how long answers are, how much room growth needs, and who gives way
// when there is none. Decisions only; the step loop acts on them.
//
// Nobody waits for ever: a request that was preempted kv::kPreemptionsMax times holds all its
// blocks and never gives way, so it runs to its end and frees them; and among the others the one
// that stands highest never gives way while another can.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>

namespace trivium::decode {

// The mean length of the last answers. Thread-safety: Add on one thread, expected from any.
class AnswerLengths {
 public:
  static constexpr int32_t kFewest = 8;  // below, expected says nothing
  static constexpr int32_t kWindow = 64;

  // Output tokens of a request that has ended by itself, those of earlier attempts included.
  void Add(int32_t tokens);
  // 0 until kFewest answers have been seen.
  int32_t expected() const { return expected_.load(std::memory_order_relaxed); }

 private:
  std::array<int32_t, kWindow> last_{};
  int64_t seen_ = 0, sum_ = 0;
  std::atomic<int32_t> expected_{0};
};

// Blocks that admission leaves free, so that those who outgrow their room find some: one for every
// four requests that may.
int32_t SpareBlocks(int32_t requests);

// How a running request stands when blocks run out.
struct Standing {
  uint64_t number = 0;  // in order of arrival here
  int32_t priority = 0;
  int32_t preemptions = 0;
};

// Index of the one that gives its blocks back: the lowest priority, then the one preempted least
// often, then the youngest. -1: none may, all have given way often enough.
int GivesWay(std::span<const Standing> running);

}  // namespace trivium::decode
