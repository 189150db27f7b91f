// The simulator's caches: which blocks a prefill worker holds, told to the prefix index by the same
// events as a real one tells. Thread-safety: none.
#pragma once

#include <algorithm>
#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "services/router/planner/trace.h"
#include "services/router/prefix_index/prefix_index.h"

namespace trivium::router {

struct CutKeyHash {
  size_t operator()(const kv::CutKey& key) const { return key.high; }
};

// Of the leading whole blocks of a request's prompt, the last token left over. Chained, but by a
// mixing function in place of a hash: nobody attacks a simulation.
std::vector<kv::CutKey> KeysOfPrompt(const SimRequest& request, uint64_t name,
                                     int32_t block_tokens);

// Holds at most `blocks`; the least recently used go first, and of a prompt its last ones.
class SimPool {
 public:
  SimPool(WorkerIndex worker, int32_t blocks, PrefixIndex* index);

  // How many leading blocks are held; these now count as used.
  int32_t Use(std::span<const kv::CutKey> keys);
  void Store(std::span<const kv::CutKey> keys);

 private:
  const WorkerIndex worker_;
  const size_t blocks_;
  PrefixIndex& index_;
  std::list<kv::CutKey> recent_;  // last used first
  std::unordered_map<kv::CutKey, std::list<kv::CutKey>::iterator, CutKeyHash> held_;
  uint64_t next_event_ = 0;
};

// One that forgets nothing: what any policy could reach at most.
class BoundlessPool {
 public:
  // How many leading blocks are held: no two requests have more in common than their prefix.
  int32_t Use(const SimRequest& request, int32_t block_tokens) const {
    if (!held_.contains(request.prefix)) return 0;
    return std::min(request.prefix_tokens, request.prompt_tokens - 1) / block_tokens;
  }
  void Store(const SimRequest& request) { held_.insert(request.prefix); }

 private:
  std::unordered_set<uint64_t> held_;
};

}  // namespace trivium::router
