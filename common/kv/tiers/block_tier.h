// A place for KV blocks below the pool: slower, larger, and allowed to lose them.
//
// A tier never fails its caller: what cannot be kept is not there, what cannot be had back exactly
// is a miss, and both are counted. It is bounded, and lets go of what was used longest ago. What it
// stores and lets go is told to an EventLog.
//
// Thread-safety: all methods, any thread.
#pragma once

#include <cstdint>
#include <span>

#include "common/kv/block_key.h"

namespace trivium::kv {

struct TierCounts {
  int64_t capacity_bytes = 0;
  int64_t blocks = 0, bytes = 0;  // stored
  int64_t hits = 0, misses = 0;   // of Get; those below are misses too, but for writes
  int64_t broken = 0;             // content that was not as it was put, at the start or in Get
  int64_t failed_reads = 0, failed_writes = 0;
};

class BlockTier {
 public:
  virtual ~BlockTier() = default;
  virtual bool Contains(const BlockKey& key) const = 0;
  // Keeps a block of KV; one that is there is only marked as used. False when it is not there
  // afterwards.
  virtual bool Put(const BlockContent& block, std::span<const uint8_t> kv) = 0;
  // Fills `kv` with what was put. False: a miss, and `kv` is as it was.
  virtual bool Get(const BlockContent& block, std::span<uint8_t> kv) = 0;
  virtual TierCounts counts() const = 0;
};

}  // namespace trivium::kv
