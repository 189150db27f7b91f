// Which worker was last asked to encode a picture, and so may still have its multimedia tokens. A
// guess: the worker knows. Bounded; of pictures beyond the bound, those longest not asked for are
// forgotten. Thread-safety: none; the dispatcher's lock covers it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <unordered_map>

#include "services/router/scheduler/placement.h"

namespace trivium::router {

class EncoderMemory {
 public:
  static constexpr size_t kPicturesMax = 16384;

  WorkerIndex Find(uint64_t key) const {
    const auto it = places_.find(key);
    return it == places_.end() ? kNoWorker : it->second->worker;
  }
  void Remember(uint64_t key, WorkerIndex worker) {
    if (key == 0) return;
    if (const auto it = places_.find(key); it != places_.end()) order_.erase(it->second);
    order_.push_front({key, worker});
    places_[key] = order_.begin();
    if (order_.size() <= kPicturesMax) return;
    places_.erase(order_.back().key);
    order_.pop_back();
  }
  size_t size() const { return order_.size(); }

 private:
  struct Entry {
    uint64_t key;
    WorkerIndex worker;
  };
  std::list<Entry> order_;  // the newest first
  std::unordered_map<uint64_t, std::list<Entry>::iterator> places_;
};

}  // namespace trivium::router
