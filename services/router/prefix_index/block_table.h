// Which holders have which blocks, in which tiers: one shard of the prefix index.
//
// Keys are chained hashes, so a key names the whole prefix that ends with its block, and a flat
// table over keys is a radix tree over prompts already: the path to a node is in its name. A tree
// of nodes would add pointers and a lock order to say the same.
//
// Open addressing with linear probing; a key's home is its rank among all keys (high * capacity /
// 2^64), deletions shift back, so there are no tombstones. Keys are hashes with secrets in them:
// nobody outside the cluster can choose where they lie. Between 0.4 and 0.75 of the slots are used,
// once there are more than kSlotsMin.
//
// A slot is 24 bytes: the key and up to four holders. More of them lie in a list of 24 (48 bytes),
// and beyond in bit masks, one a tier: a block's holders are then met in a fixed number of words,
// however many they are. The worst cases of bytes a (block, holder) pair, at load 0.4: 60 with one
// holder, 36 with three that have been more, and with 21 of 1,024 workers (two numbers each: 1 KiB
// of masks) 52.
//
// Invariants: no slot without a holder, no holder without a tier; pairs() counts the holders.
// Thread-safety: none but of Prefetch; the index's lock of this shard covers it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/kv/block_key.h"
#include "services/router/prefix_index/fixed_pool.h"

namespace trivium::router {

// A number of one incarnation of a worker, 0 … kHoldersMax - 1.
using HolderId = uint16_t;
inline constexpr size_t kHoldersMax = 2048;
inline constexpr size_t kMaskWordsMax = kHoldersMax / 64;

// Where a holder has a block, as bits; kExpected: a request that will leave it there is on its way.
enum : uint8_t { kHot = 1, kMemory = 2, kDisk = 4, kExpected = 8 };
inline constexpr size_t kTiers = 4;

// What has to be reached for a block: hot, about to be hot too, memory too, disk too.
enum Level : size_t { kLevelStored, kLevelHot, kLevelMemory, kLevelDisk, kLevels };
// Of one block: at each level the holders that have it there or above.
struct LevelMasks {
  uint64_t words[kLevels][kMaskWordsMax];
};

class BlockTable {
 public:
  enum class Change : uint8_t { kNone, kTiersAlone, kPairBegan, kPairEnded, kRefused };

  explicit BlockTable(size_t holders);

  // The holder has the block in the tiers `add` too and no longer in those of `remove`. kRefused:
  // it would be a new pair, and `may_grow` forbids that.
  Change Set(const kv::CutKey& key, HolderId holder, uint8_t add, uint8_t remove, bool may_grow);
  // 0: not there at all.
  uint8_t TiersOf(const kv::CutKey& key, HolderId holder) const;
  // Fills the words that hold `holders` bits; false, and nothing is filled, for an unknown key.
  bool Find(const kv::CutKey& key, LevelMasks* masks) const;
  // Fetches what Find will read first. Without the lock: it may be what was there a moment ago.
  void Prefetch(const kv::CutKey& key) const;
  // Takes all holders of the mask out; adds the pairs that go to `gone`, one entry a holder.
  void Purge(std::span<const uint64_t> holders, std::span<int64_t> gone);

  size_t pairs() const { return pairs_; }
  size_t bytes() const;

  static constexpr size_t kSlotsMin = 16;

 private:
  // An entry is a holder and its tiers: id * 16 + tiers, 0 is none. Entries stand without gaps.
  using Entry = uint16_t;
  static constexpr size_t kFew = 4, kMany = 24;
  // From a larger form back to a smaller one well below its limit, so that none flaps.
  static constexpr size_t kBackToFew = 2, kBackToList = 20;
  // What the first entry of a slot is where its holders lie elsewhere.
  static constexpr Entry kListForm = 0xFFFE, kMaskForm = 0xFFFF;
  struct Slot {
    kv::CutKey key;
    Entry few[kFew] = {};  // or the form, the number of holders, and the piece in two halves
    bool is_empty() const { return few[0] == 0; }
    uint32_t piece() const { return few[2] | uint32_t{few[3]} << 16; }
    void set_piece(uint32_t piece) {
      few[2] = static_cast<Entry>(piece);
      few[3] = static_cast<Entry>(piece >> 16);
    }
  };

  static size_t HomeOf(const kv::CutKey& key, size_t slots);
  size_t Next(size_t slot) const { return slot + 1 == slots_.size() ? 0 : slot + 1; }
  size_t Probe(const kv::CutKey& key) const;  // where the key is or would be
  void Resize(size_t slots);
  void ShrinkIfSparse();
  void Erase(size_t slot);

  std::span<const Entry> EntriesOf(const Slot& slot) const;  // empty in the mask form
  template <typename Pool>
  static void MovePiece(Slot& slot, const Pool& from, Pool& to);
  uint8_t TiersIn(const Slot& slot, HolderId holder) const;
  uint8_t TiersInMask(const uint64_t* mask, HolderId holder) const;
  void SetTiers(Slot& slot, HolderId holder, uint8_t tiers);  // 0 takes the holder out
  void SetInEntries(Slot& slot, HolderId holder, uint8_t tiers);
  void SetInMask(Slot& slot, HolderId holder, uint8_t tiers);
  void ChangeForm(Slot& slot, Entry form);  // 0: few. Keeps the holders, at most kMany
  template <typename Visit>
  void ForEachHolder(const Slot& slot, Visit visit) const;  // visit(holder, tiers)

  size_t words_;  // of one tier's mask
  std::vector<Slot> slots_;
  std::atomic<const Slot*> prefetch_slots_ = nullptr;  // for addresses alone
  std::atomic<size_t> prefetch_size_ = 0;
  size_t used_ = 0;  // slots
  size_t pairs_ = 0;
  using Lists = FixedPool<Entry, 32>;
  using Masks = FixedPool<uint64_t, 8>;
  Lists lists_;
  Masks masks_;
};

}  // namespace trivium::router
