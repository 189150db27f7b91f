// Which worker holds which KV blocks, in which tiers: what the router knows from the events of all
// Watch streams, and what it may expect of the requests that it has just sent.
//
// Workers' events are numbered and each stream begins with a snapshot
// (proto/trivium/v1/stage.proto). A snapshot replaces what was known of its worker, and so does the
// loss of the worker, in constant time: entries name an incarnation of a worker (a HolderId, two
// for each worker), look-ups see the present ones alone, and those of the past are purged one shard
// at a time while events come in. Before a worker takes an incarnation again, it is free of
// entries.
//
// An expected block is one that a request just placed will leave at its worker: siblings of a burst
// find it before the first event does, and follow. It counts as hot until its time is up or an
// event about that very block has come.
//
// Bounds: kShards tables (block_table.h) with at most `pairs_max` (block, holder) pairs, each at
// most 64 bytes; beyond it new pairs are refused and counted, which makes misses, never errors. At
// most `expected_max` expected blocks.
//
// Thread-safety: all methods, any thread. A look-up takes one shard's lock after another, shared,
// so it sees each block at one moment and the prompt at several: a worker may be told to hold one
// block more or less than at any single moment. Apply of one worker runs one at a time.
#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <vector>

#include "common/base/clock.h"
#include "services/router/prefix_index/block_table.h"
#include "services/router/scheduler/placement.h"
#include "trivium/v1/stage.pb.h"

namespace trivium::router {

class PrefixIndex {
 public:
  struct Options {
    size_t workers = 0;  // at most kHoldersMax / 2
    int64_t pairs_max = 16 << 20;
    size_t expected_max = 64 << 10;
    Duration expected_for = std::chrono::seconds(5);
  };
  explicit PrefixIndex(const Options& options);

  // False: events are missing, or make no sense. What was known of the worker is dropped, and
  // nothing is taken from it before the next snapshot: its stream has to begin anew.
  bool Apply(WorkerIndex worker, const v1::KvEvents& events);
  // The worker is lost.
  void Drop(WorkerIndex worker);

  // `keys`: of a prompt's blocks in order, `block_tokens` tokens each. Adds the workers that hold
  // some of its first blocks, in rising order; O(keys + workers added).
  void LookUp(std::span<const kv::CutKey> keys, int32_t block_tokens, std::vector<Held>* out) const;

  // The worker will soon hold these blocks.
  void Expect(WorkerIndex worker, std::span<const kv::CutKey> keys, TimePoint now);
  // Ends what has been expected for too long, and goes on with the purge.
  void Tick(TimePoint now);

  struct Counts {
    int64_t pairs = 0;          // those still to be purged included
    int64_t bytes = 0;          // of all tables, counted anew
    int64_t expected = 0;       // blocks
    int64_t refused_total = 0;  // pairs beyond pairs_max, and expected blocks beyond theirs
    int64_t gaps_total = 0;     // messages to which Apply said no
  };
  Counts counts() const;

  static constexpr size_t kShards = 256;

 private:
  using HolderMask = std::array<uint64_t, kMaskWordsMax>;
  struct Shard {
    explicit Shard(size_t holders) : table(holders) {}
    mutable std::shared_mutex mutex;
    BlockTable table;
  };
  struct Worker {
    std::mutex mutex;  // of Apply and Drop
    bool is_following = false;
    uint64_t next_event = 0;
    std::atomic<HolderId> holder{0};
  };
  struct Expected {
    kv::CutKey key;
    HolderId holder;
    TimePoint until;
  };

  Shard& ShardOf(const kv::CutKey& key) const { return *shards_[key.low % kShards]; }
  bool ApplyInOrder(Worker& worker, const v1::KvEvents& events);
  void Set(HolderId holder, const kv::CutKey& key, uint8_t add, uint8_t remove);
  void Count(BlockTable::Change change, HolderId holder);
  void BeginAnew(Worker& worker);  // with an incarnation that has no entries
  void PurgeNextShard();
  bool ExpireSome(TimePoint now);  // there may be more

  const Options options_;
  const size_t words_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::vector<std::atomic<uint64_t>> live_;         // a bit for each holder
  std::vector<std::atomic<int64_t>> holder_pairs_;  // by holder
  std::atomic<int64_t> pairs_{0}, refused_{0}, gaps_{0};

  std::mutex purge_mutex_;  // taken after a worker's, before a shard's
  std::atomic<size_t> shards_to_purge_{0};
  size_t purge_next_ = 0;

  mutable std::mutex expected_mutex_;  // taken before a shard's
  std::deque<Expected> expected_;      // by `until`
};

}  // namespace trivium::router
