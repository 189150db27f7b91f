#include "services/router/planner/sim_pool.h"

namespace trivium::router {
namespace {

uint64_t Mix(uint64_t x) {
  x = (x ^ x >> 31) * 0x7fb5d329728ea185;
  x = (x ^ x >> 27) * 0x81dadef4bc2dd44d;
  return x ^ x >> 33;
}

}  // namespace

std::vector<kv::CutKey> KeysOfPrompt(const SimRequest& request, uint64_t name,
                                     int32_t block_tokens) {
  const int32_t shared = request.prefix_tokens / block_tokens;
  std::vector<kv::CutKey> keys;
  kv::CutKey key{Mix(request.prefix + 1), request.prefix};
  for (int32_t i = 0; i < (request.prompt_tokens - 1) / block_tokens; ++i) {
    const uint64_t content = i < shared ? 0 : name + 1;
    key.high = Mix(key.high ^ Mix(content));
    key.low = Mix(key.low ^ key.high);
    keys.push_back(key);
  }
  return keys;
}

SimPool::SimPool(WorkerIndex worker, int32_t blocks, PrefixIndex* index)
    : worker_(worker), blocks_(static_cast<size_t>(blocks)), index_(*index) {
  v1::KvEvents events;
  events.set_is_snapshot_begin(true);
  TRIVIUM_CHECK(index_.Apply(worker_, events), "an empty snapshot is refused");
}

int32_t SimPool::Use(std::span<const kv::CutKey> keys) {
  size_t count = 0;
  while (count < keys.size() && held_.contains(keys[count])) ++count;
  for (size_t i = count; i > 0; --i) {
    recent_.splice(recent_.begin(), recent_, held_.at(keys[i - 1]));
  }
  return static_cast<int32_t>(count);
}

void SimPool::Store(std::span<const kv::CutKey> keys) {
  v1::KvEvents events;
  events.set_first(next_event_);
  v1::KvStored* const stored = events.add_events()->mutable_stored();
  for (const kv::CutKey& key : keys) {
    if (held_.contains(key)) continue;
    recent_.push_front(key);
    held_.emplace(key, recent_.begin());
    kv::AppendBytes(key, stored->mutable_keys());
  }
  Use(keys);
  v1::KvStored* removed = nullptr;
  while (held_.size() > blocks_) {
    if (removed == nullptr) removed = events.add_events()->mutable_removed();
    kv::AppendBytes(recent_.back(), removed->mutable_keys());
    held_.erase(recent_.back());
    recent_.pop_back();
  }
  next_event_ += static_cast<uint64_t>(events.events_size());
  TRIVIUM_CHECK(index_.Apply(worker_, events), "events in order are refused");
}

}  // namespace trivium::router
