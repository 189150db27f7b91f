// Test support: prompts as chains of keys, events as a worker sends them, and the index that tries
// every worker and block. Thread-safety: none.
#pragma once

#include <map>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "services/router/prefix_index/prefix_index.h"

namespace trivium::router {

inline uint64_t Mix(uint64_t x) {
  x = (x ^ x >> 31) * 0x7fb5d329728ea185;
  x = (x ^ x >> 27) * 0x81dadef4bc2dd44d;
  return x ^ x >> 33;
}

// The key of the block `name` behind `parent`.
inline kv::CutKey ChildOf(const kv::CutKey& parent, uint64_t name) {
  const uint64_t high = Mix(parent.high ^ Mix(name + 1));
  return {high, Mix(high ^ parent.low)};
}

// `blocks` keys; chains of one family share a beginning, whose length depends on both members.
inline std::vector<kv::CutKey> Chain(uint64_t family, uint64_t member, size_t blocks) {
  std::vector<kv::CutKey> keys;
  kv::CutKey key{Mix(family + 77), 0};
  const size_t shared = Mix(family) % 5 + member % 3 * 4;
  for (size_t i = 0; i < blocks; ++i) {
    keys.push_back(key = ChildOf(key, i < shared ? 0 : member));
  }
  return keys;
}

inline void AddKeys(std::span<const kv::CutKey> keys, v1::KvTier tier, v1::KvStored* blocks) {
  blocks->set_tier(tier);
  for (const kv::CutKey& key : keys) kv::AppendBytes(key, blocks->mutable_keys());
}

// One worker's end of a Watch stream, and what it holds in truth.
class EventSource {
 public:
  void Store(std::span<const kv::CutKey> keys, v1::KvTier tier = v1::KV_TIER_HOT) {
    for (const kv::CutKey& key : keys) held_[key] |= 1 << tier;
    AddKeys(keys, tier, pending_.add_events()->mutable_stored());
  }
  void Remove(std::span<const kv::CutKey> keys, v1::KvTier tier = v1::KV_TIER_HOT) {
    for (const kv::CutKey& key : keys) {
      if (const auto it = held_.find(key); it != held_.end() && (it->second &= ~(1 << tier)) == 0) {
        held_.erase(it);
      }
    }
    AddKeys(keys, tier, pending_.add_events()->mutable_removed());
  }
  // All that is held, in place of what is pending.
  void Snapshot(uint64_t first) {
    pending_.Clear();
    pending_.set_is_snapshot_begin(true);
    pending_.set_is_snapshot(true);
    next_ = first;
    for (const auto& [key, tiers] : held_) {
      for (const v1::KvTier tier : {v1::KV_TIER_HOT, v1::KV_TIER_MEMORY, v1::KV_TIER_DISK}) {
        if (tiers >> tier & 1) {
          AddKeys({&key, 1}, tier, pending_.add_events()->mutable_stored());
        }
      }
    }
  }
  v1::KvEvents Take() {
    v1::KvEvents events;
    events.Swap(&pending_);
    events.set_first(next_);
    next_ += static_cast<uint64_t>(events.events_size());
    return events;
  }
  void Forget() { held_.clear(); }
  bool empty() const { return held_.empty(); }

  // Leading blocks of the chain that are held in a tier of the mask.
  int32_t Leading(std::span<const kv::CutKey> keys, int tiers) const {
    int32_t count = 0;
    for (const kv::CutKey& key : keys) {
      const auto it = held_.find(key);
      if (it == held_.end() || (it->second & tiers) == 0) break;
      ++count;
    }
    return count;
  }

 private:
  std::map<kv::CutKey, int> held_;
  v1::KvEvents pending_;
  uint64_t next_ = 1;
};

inline std::vector<Held> LookUpIn(const PrefixIndex& index, std::span<const kv::CutKey> keys) {
  std::vector<Held> held;
  index.LookUp(keys, 1, &held);
  return held;
}

inline std::vector<Held> LookUpIn(const std::vector<EventSource>& workers,
                                  std::span<const kv::CutKey> keys) {
  std::vector<Held> held;
  for (size_t i = 0; i < workers.size(); ++i) {
    const Held one{.worker = i,
                   .hot_tokens = workers[i].Leading(keys, kHot),
                   .memory_tokens = workers[i].Leading(keys, kHot | kMemory),
                   .disk_tokens = workers[i].Leading(keys, kHot | kMemory | kDisk),
                   .stored_tokens = workers[i].Leading(keys, kHot)};
    if (one.disk_tokens > 0) held.push_back(one);
  }
  return held;
}

}  // namespace trivium::router
