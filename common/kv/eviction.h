// Which cached block goes when room is needed: the order, and the shares of the domains.
//
// A candidate is a published block that nobody owns, that no published block follows, and whose pin
// has ended. Among candidates the one goes first that was used longest ago, on a clock that counts
// the blocks that went into the cache; what it would cost to compute a block again counts as later
// use: a row costs twice as much behind kDoubleCostTokens tokens as at the beginning, and a block
// that costs so much more stays for one more turnover of the whole pool. (A GreedyDual order, its
// inflation linear, so that ranks never change while a block waits.)
//
// A domain's candidates are out of reach of other domains while it holds no more published blocks
// than its floor, used ones included; and it may never hold more than its quota. Domains without a
// published block are forgotten. No more than half of the pool is pinned: what is released beyond
// that is not.
//
// O(log blocks) a change; `reachable` is O(1). Guarded by the pool's lock.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/kv/block_key.h"

namespace trivium::kv {

class Eviction {
 public:
  static constexpr int32_t kDoubleCostTokens = 3000;

  explicit Eviction(int32_t blocks);

  // A block is published, in use; `position`: of its first token in its sequence. False, and
  // nothing changes but the domain's shares, when the domain is at its quota.
  bool Publish(BlockId block, DomainTag tag, const Domain& domain, int64_t position);
  // A cached block leaves the cache for good; it must be a leaf.
  void Drop(BlockId block);
  // Whether another published block follows it. One that is published is a leaf.
  void SetLeaf(BlockId block, bool is_leaf);
  // Its last owner and lease have gone.
  void Cache(BlockId block, TimePoint now);
  // It is used again. A use that came to nothing leaves its rank as it was, when PutBack follows.
  void Use(BlockId block);
  void PutBack(BlockId block);
  void EndPins(TimePoint now);

  // The next to go for whoever asks; none for a domain that nobody is in.
  std::optional<BlockId> Next(std::optional<DomainTag> asker) const;
  std::optional<BlockId> NextOf(DomainTag tag) const;
  // The next where floors do not count, and pins, which it ends, only while nothing else is there;
  // none when nothing is cached. O(domains).
  std::optional<BlockId> NextKept();
  int32_t cached() const { return cached_; }
  // At most so many of the cached blocks can be had by whoever asks; fewer only where blocks that
  // are kept follow ones of other domains.
  int32_t reachable(std::optional<DomainTag> asker) const;

 private:
  struct Rank {
    uint64_t value = 0;
    int32_t block = 0;
    friend auto operator<=>(const Rank&, const Rank&) = default;
  };
  struct Account {
    DomainTag tag;
    int32_t quota = 0, floor = 0;  // blocks
    Duration pin{};
    int32_t held = 0;    // published
    int32_t cached = 0;  // of these, without the pinned ones
    std::set<Rank> candidates;
    int32_t reachable = 0;      // by others
    std::optional<Rank> first;  // as it stands in heads_
  };
  struct Block {
    Account* account = nullptr;  // null: not published
    uint64_t value = 0;
    TimePoint pinned_until{};
    int64_t position = 0;
    bool leaf = true, cached = false, pinned = false;
  };

  Block& At(BlockId block) { return blocks_[static_cast<size_t>(block.value)]; }
  // Cached again, as `value` and `pinned` say.
  void Enter(BlockId block);
  // After any change to an account: what others can reach of it.
  void Refresh(Account& account);
  // Puts a block among the candidates, or takes it out, as its state says.
  void Place(BlockId block);

  std::vector<Block> blocks_;
  std::unordered_map<DomainTag, std::unique_ptr<Account>> accounts_;
  std::set<Rank> heads_;  // the first candidate of each domain that others can reach
  std::set<std::pair<TimePoint, int32_t>> pins_;
  uint64_t clock_ = 0;     // blocks that went into the cache
  int32_t cached_ = 0;     // pinned ones included
  int32_t reachable_ = 0;  // by others, over all domains
};

}  // namespace trivium::kv
