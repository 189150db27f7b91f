#include "services/router/prefix_index/prefix_index.h"

#include <algorithm>
#include <bit>
#include <string_view>
#include <utility>

namespace trivium::router {
namespace {

constexpr size_t kKeyBytes = 16;
// Enough to be through with all of them before a worker that is lost again and again needs its
// other incarnation, little enough that no event waits for it.
constexpr int kShardsPurgedATick = 16;
// Whoever expects blocks waits for so many to end.
constexpr int kExpiredAtOnce = 256;
// A block's slot is fetched from memory while those before it are looked at.
constexpr size_t kKeysAhead = 8;

bool MakesSense(const v1::KvStored& blocks) {
  return blocks.keys().size() % kKeyBytes == 0 && v1::KvTier_IsValid(blocks.tier());
}

uint8_t TierBit(v1::KvTier tier) { return static_cast<uint8_t>(1 << tier); }
static_assert(kHot == 1 << v1::KV_TIER_HOT && kMemory == 1 << v1::KV_TIER_MEMORY &&
              kDisk == 1 << v1::KV_TIER_DISK);

// The holders of the first block, and after how many blocks each falls out, level by level.
class Walk {
 public:
  explicit Walk(size_t words) : words_(words) {}

  void Begin(const LevelMasks& first, const std::vector<std::atomic<uint64_t>>& live) {
    for (size_t i = 0; i < words_; ++i) {
      all_[i] = first.words[kLevelDisk][i] & live[i].load(std::memory_order_relaxed);
      for (auto& level : held_.words) level[i] = all_[i];
    }
  }

  // Those that stay hold the next block too, `blocks` before it. False: nobody does.
  bool Keep(const LevelMasks& there, int32_t blocks) {
    uint64_t left = 0;
    for (size_t level = 0; level < kLevels; ++level) {
      for (size_t i = 0; i < words_; ++i) {
        uint64_t& held = held_.words[level][i];
        FallOut(level, i, held & ~there.words[level][i], blocks);
        left |= held &= there.words[level][i];
      }
    }
    return left != 0;
  }

  void End(int32_t blocks, int32_t block_tokens, std::vector<Held>* out) {
    for (size_t level = 0; level < kLevels; ++level) {
      for (size_t i = 0; i < words_; ++i) FallOut(level, i, held_.words[level][i], blocks);
    }
    for (size_t i = 0; i < words_; ++i) {
      for (uint64_t left = all_[i]; left != 0; left &= left - 1) {
        const auto holder = i * 64 + static_cast<size_t>(std::countr_zero(left));
        const auto tokens = [&](Level level) { return depth_[level][holder] * block_tokens; };
        out->push_back({.worker = holder / 2,
                        .hot_tokens = tokens(kLevelHot),
                        .memory_tokens = tokens(kLevelMemory),
                        .disk_tokens = tokens(kLevelDisk),
                        .stored_tokens = tokens(kLevelStored)});
      }
    }
  }

 private:
  void FallOut(size_t level, size_t word, uint64_t holders, int32_t blocks) {
    for (; holders != 0; holders &= holders - 1) {
      depth_[level][word * 64 + static_cast<size_t>(std::countr_zero(holders))] = blocks;
    }
  }

  const size_t words_;
  uint64_t all_[kMaskWordsMax];
  LevelMasks held_;                      // in all blocks so far
  int32_t depth_[kLevels][kHoldersMax];  // of those that have fallen out
};

}  // namespace

PrefixIndex::PrefixIndex(const Options& options)
    : options_(options),
      words_((2 * options.workers + 63) / 64),
      live_(words_),
      holder_pairs_(2 * options.workers) {
  TRIVIUM_CHECK(2 * options.workers <= kHoldersMax, "{} workers", options.workers);
  for (size_t i = 0; i < kShards; ++i) {
    shards_.push_back(std::make_unique<Shard>(2 * options.workers));
  }
  for (size_t i = 0; i < options.workers; ++i) {
    workers_.push_back(std::make_unique<Worker>());
    workers_.back()->holder = static_cast<HolderId>(2 * i);
    live_[2 * i / 64] |= uint64_t{1} << 2 * i % 64;
  }
}

// ---- Events ----

bool PrefixIndex::Apply(WorkerIndex index, const v1::KvEvents& events) {
  Worker& worker = *workers_[index];
  std::lock_guard lock(worker.mutex);
  const bool is_good = ApplyInOrder(worker, events);
  if (!is_good) {
    BeginAnew(worker);
    ++gaps_;
  }
  PurgeNextShard();
  return is_good;
}

bool PrefixIndex::ApplyInOrder(Worker& worker, const v1::KvEvents& events) {
  if (events.is_snapshot_begin()) {
    BeginAnew(worker);
    worker.is_following = true;
    worker.next_event = events.first();
  }
  if (!worker.is_following || events.first() != worker.next_event) return false;
  worker.next_event += static_cast<uint64_t>(events.events_size());
  const HolderId holder = worker.holder;
  for (const v1::KvEvent& event : events.events()) {
    const bool is_stored = event.has_stored();
    const v1::KvStored& blocks = is_stored ? event.stored() : event.removed();
    if (!MakesSense(blocks)) return false;
    const uint8_t tier = TierBit(blocks.tier());
    for (size_t i = 0; i < blocks.keys().size() / kKeyBytes; ++i) {
      const kv::CutKey key =
          kv::CutKeyFrom(std::string_view(blocks.keys()).substr(i * kKeyBytes, kKeyBytes));
      Set(holder, key, is_stored ? tier : 0, is_stored ? kExpected : kExpected | tier);
    }
  }
  return true;
}

void PrefixIndex::Drop(WorkerIndex index) {
  Worker& worker = *workers_[index];
  std::lock_guard lock(worker.mutex);
  BeginAnew(worker);
}

void PrefixIndex::Count(BlockTable::Change change, HolderId holder) {
  if (change == BlockTable::Change::kRefused) ++refused_;
  const int pairs =
      (change == BlockTable::Change::kPairBegan) - (change == BlockTable::Change::kPairEnded);
  if (pairs == 0) return;
  pairs_ += pairs;
  holder_pairs_[holder] += pairs;
}

void PrefixIndex::Set(HolderId holder, const kv::CutKey& key, uint8_t add, uint8_t remove) {
  Shard& shard = ShardOf(key);
  std::lock_guard lock(shard.mutex);
  Count(shard.table.Set(key, holder, add, remove, pairs_ < options_.pairs_max), holder);
}

// ---- Incarnations ----

void PrefixIndex::BeginAnew(Worker& worker) {
  worker.is_following = false;
  const HolderId old = worker.holder;
  if (holder_pairs_[old] == 0) return;
  const auto next = static_cast<HolderId>(old ^ 1);
  while (holder_pairs_[next] != 0) {
    // What was expected of it while it ended may have come behind the purge.
    if (shards_to_purge_ == 0) shards_to_purge_ = kShards;
    PurgeNextShard();
  }
  std::lock_guard lock(purge_mutex_);
  live_[old / 64] ^= uint64_t{3} << (old & ~1) % 64;
  worker.holder = next;
  shards_to_purge_ = kShards;
}

void PrefixIndex::PurgeNextShard() {
  if (shards_to_purge_ == 0) return;
  std::lock_guard purge_lock(purge_mutex_);
  if (shards_to_purge_ == 0) return;
  --shards_to_purge_;
  HolderMask dead;
  for (size_t i = 0; i < words_; ++i) dead[i] = ~live_[i].load();
  Shard& shard = *shards_[purge_next_++ % kShards];
  std::vector<int64_t> gone(holder_pairs_.size());
  {
    std::lock_guard lock(shard.mutex);
    shard.table.Purge({dead.data(), words_}, gone);
  }
  for (size_t holder = 0; holder < gone.size(); ++holder) {
    pairs_ -= gone[holder];
    holder_pairs_[holder] -= gone[holder];
  }
}

// ---- Look-ups ----

void PrefixIndex::LookUp(std::span<const kv::CutKey> keys, int32_t block_tokens,
                         std::vector<Held>* out) const {
  LevelMasks there;
  Walk walk(words_);
  int32_t blocks = 0;
  for (size_t i = 0; i < keys.size(); ++i) {
    const size_t ahead = i + kKeysAhead;
    if (ahead < keys.size()) ShardOf(keys[ahead]).table.Prefetch(keys[ahead]);
    const Shard& shard = ShardOf(keys[i]);
    {
      std::shared_lock lock(shard.mutex);
      if (!shard.table.Find(keys[i], &there)) break;
    }
    if (blocks == 0) walk.Begin(there, live_);
    if (!walk.Keep(there, blocks)) break;
    ++blocks;
  }
  if (blocks > 0) walk.End(blocks, block_tokens, out);
}

// ---- Expected blocks ----

void PrefixIndex::Expect(WorkerIndex worker, std::span<const kv::CutKey> keys, TimePoint now) {
  std::lock_guard lock(expected_mutex_);
  const HolderId holder = workers_[worker]->holder;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (expected_.size() >= options_.expected_max) {
      refused_ += static_cast<int64_t>(keys.size() - i);
      return;
    }
    Shard& shard = ShardOf(keys[i]);
    std::lock_guard shard_lock(shard.mutex);
    if ((shard.table.TiersOf(keys[i], holder) & (kHot | kExpected)) != 0) continue;
    const bool may_grow = pairs_ < options_.pairs_max;
    const BlockTable::Change change = shard.table.Set(keys[i], holder, kExpected, 0, may_grow);
    Count(change, holder);
    if (change == BlockTable::Change::kRefused) return;
    expected_.push_back({keys[i], holder, now + options_.expected_for});
  }
}

bool PrefixIndex::ExpireSome(TimePoint now) {
  std::lock_guard lock(expected_mutex_);
  for (int i = 0; i < kExpiredAtOnce; ++i) {
    if (expected_.empty() || expected_.front().until > now) return false;
    Set(expected_.front().holder, expected_.front().key, 0, kExpected);
    expected_.pop_front();
  }
  return true;
}

void PrefixIndex::Tick(TimePoint now) {
  while (ExpireSome(now)) {
  }
  for (int i = 0; i < kShardsPurgedATick; ++i) PurgeNextShard();
}

PrefixIndex::Counts PrefixIndex::counts() const {
  Counts counts{.pairs = pairs_, .refused_total = refused_, .gaps_total = gaps_};
  for (const auto& shard : shards_) {
    std::shared_lock lock(shard->mutex);
    counts.bytes += static_cast<int64_t>(sizeof(Shard) + shard->table.bytes());
  }
  std::lock_guard lock(expected_mutex_);
  counts.expected = static_cast<int64_t>(expected_.size());
  counts.bytes += static_cast<int64_t>(expected_.size() * sizeof(Expected));
  return counts;
}

}  // namespace trivium::router
