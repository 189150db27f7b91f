// Moves KV blocks between a worker's storage and the tiers below it, memory first, then disk: what
// the pool evicts goes out, what a request wants comes in ahead of its computing.
//
// Both happen on one thread of its own, loads first; callers hand over and go on. Save copies a
// block's bytes; beyond queue_max() copies, blocks are dropped. Beyond kLoadsMax loads, a load ends
// at once with nothing. Both are counted.
//
// Thread-safety: all methods, any thread; who may touch which block is decided by the pool.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "common/base/clock.h"
#include "common/kv/block_key.h"
#include "common/kv/block_pool.h"
#include "common/kv/event_log.h"
#include "common/kv/kv_storage.h"
#include "common/kv/tiers/block_tier.h"

namespace trivium::kv {

struct OffloadOptions {
  int64_t memory_bytes = 0;  // 0: no such tier
  std::string disk_path;     // empty: no such tier
  int64_t disk_bytes = 0;
  std::string disk_secret;
  EventLog* events = nullptr;  // as the tiers'
};

class Offload {
 public:
  static constexpr size_t kLoadsMax = 1024;

  // Bytes of one block in all layers.
  static int64_t BlockBytes(const KvStorage& storage);

  // Errors as DiskTier's and MemoryTier's; INVALID_ARGUMENT without any tier.
  static absl::StatusOr<std::unique_ptr<Offload>> Open(std::shared_ptr<KvStorage> storage,
                                                       OffloadOptions options);
  ~Offload();  // what is still queued is lost, and loads end without a word
  Offload(const Offload&) = delete;
  Offload& operator=(const Offload&) = delete;

  // What a BlockPool's saver calls.
  void Save(BlockId block, const BlockContent& content);

  // Where the blocks [begin, end) of a chain lie, for as many in a row as are found.
  std::vector<Tier> Find(const BlockChain& chain, int32_t begin, int32_t end) const;

  // Blocks that somebody reserved, to be filled.
  struct Wanted {
    std::vector<BlockKey> keys;
    std::vector<int32_t> tokens;      // of all of them
    std::vector<BlockId> into;        // as many as there are keys
    BlockLease lease;                 // ends with the load
    std::weak_ptr<const void> asker;  // gone: nobody waits for it any more
    // How many of them, in a row, hold their KV now; the caller publishes them. Once, from any
    // thread, unless the asker or the Offload is gone.
    std::function<void(int32_t blocks)> done;
  };
  void Load(Wanted wanted);
  // Waits until nothing is left to be moved.
  void Flush();

  // A block's load as lately measured, in seconds; 0: not known.
  double load_s(Tier tier) const;
  // Somebody did without a load because of that time: it is believed a little less, so that a tier
  // that was slow once is tried again.
  void Doubt(Tier tier);
  // Of all that are waiting to be loaded.
  int64_t blocks_waiting() const;
  size_t queue_max() const { return queue_max_; }
  int64_t block_bytes() const { return BlockBytes(*storage_); }

  struct Counts {
    std::array<TierCounts, kTiers> tiers;  // those that there are
    std::array<double, kTiers> load_s{};   // spent on the hits
    int64_t dropped_saves = 0, dropped_loads = 0;
  };
  Counts counts() const;

 private:
  struct Copy {
    BlockKey key;
    std::vector<int32_t> tokens;
    std::vector<uint8_t> kv;
  };
  // Forgets old loads, so that it follows what the machine does now.
  struct Speed {
    double seconds = 0, blocks = 0;
    double total_s = 0;  // of all that there ever were
    void Observe(double taken_s);
  };

  explicit Offload(std::shared_ptr<KvStorage> storage);
  void Run();
  void LoadNow(Wanted& wanted);
  bool LoadBlock(const BlockContent& content, BlockId into);
  void Write(BlockId block, std::span<const uint8_t> kv);

  const std::shared_ptr<KvStorage> storage_;
  const size_t queue_max_;
  std::array<std::unique_ptr<BlockTier>, kTiers> tiers_;  // null: not there; never a hot one
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Copy> saves_;    // the first is being written
  std::deque<Wanted> loads_;  // the first is being loaded
  size_t pending_ = 0;        // saves, and those that are being copied
  int64_t blocks_waiting_ = 0;
  std::array<Speed, kTiers> speeds_;
  bool stopping_ = false;
  int64_t dropped_saves_ = 0, dropped_loads_ = 0;
  std::vector<uint8_t> staging_;  // a block; the thread's own
  std::thread thread_;
};

}  // namespace trivium::kv
