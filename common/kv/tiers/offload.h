// Moves KV blocks between a worker's storage and the tier on its disk: what the pool evicts goes
// out behind the caller's back, what a request wants comes in before it computes.
//
// Save copies a block's bytes and leaves the writing to a thread of its own; when that is kQueueMax
// blocks behind, the block is dropped, and counted. Load reads on the caller's thread, to
// whom a disk read costs less than computing the block.
//
// Thread-safety: all methods, any thread; who may touch which block is decided by the pool.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "common/kv/block_key.h"
#include "common/kv/kv_storage.h"
#include "common/kv/tiers/disk_tier.h"

namespace trivium::kv {

class Offload {
 public:
  static constexpr size_t kQueueMax = 64;

  // Bytes of one block in all layers: what the tier's block_bytes must be.
  static int64_t BlockBytes(const KvStorage& storage);

  // Both not null.
  Offload(std::shared_ptr<KvStorage> storage, std::unique_ptr<DiskTier> tier);
  ~Offload();  // what is still queued is lost
  Offload(const Offload&) = delete;
  Offload& operator=(const Offload&) = delete;

  // What a BlockPool's saver calls.
  void Save(BlockId block, const BlockContent& content);
  // Fills blocks[i] with block begin + i of the chain, for as many in a row as are found. The
  // caller owns the blocks and publishes them. Returns how many; the others are as they were.
  int32_t Load(const BlockChain& chain, int32_t begin, std::span<const BlockId> blocks);
  // Waits until nothing is left to be written.
  void Flush();

  DiskTier::Counts tier_counts() const { return tier_->counts(); }
  int64_t dropped() const;

 private:
  struct Copy {
    BlockKey key;
    std::vector<int32_t> tokens;
    std::vector<uint8_t> kv;
  };
  void Run();

  const std::shared_ptr<KvStorage> storage_;
  const std::unique_ptr<DiskTier> tier_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Copy> queue_;  // the first is being written
  size_t pending_ = 0;      // of these, and those that are being copied
  bool stopping_ = false;
  int64_t dropped_ = 0;
  std::thread writer_;
};

}  // namespace trivium::kv
