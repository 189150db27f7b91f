// The model that block_pool_model_test plays histories against: it keeps nothing but lists and
// reckons everything anew, by the definitions in block_pool.h and eviction.h, after each action.
// Below the pool lies a tier, which takes what is evicted; a disk outlives a crash. One thread.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/kv/block_pool.h"
#include "common/kv/block_pool_chains.h"
#include "common/kv/eviction.h"
#include "common/kv/tiers/disk_tier.h"
#include "common/kv/tiers/memory_tier.h"

namespace trivium::kv {

struct Entry {
  int32_t block = 0;
  DomainTag domain;
  BlockKey parent;
  uint64_t value = 0;
  TimePoint pinned_until{};
  uint64_t position = 0;
};

// What one reservation and its leases hold.
struct Hold {
  std::vector<int32_t> blocks;
  bool owned = true;
};
struct Owner {
  Reservation reservation;
  std::shared_ptr<Hold> hold;
  size_t chain = 0;
  int32_t published = 0;
};

class Model {
 public:
  // `disk`: of the tier below the pool; empty: it is in memory.
  Model(int32_t total, std::string disk)
      : total_(total),
        disk_(std::move(disk)),
        bytes_(static_cast<size_t>(total)),
        generations_(bytes_.size()) {
    Start();
  }
  ~Model() { DropAll(); }

  void Reserve(size_t chain, const GroupNeed& need, int32_t blocks_max, bool may_take_kept) {
    const BlockChain& content = Chains()[chain];
    const int32_t most = std::min(
        {blocks_max, kChainBlocks, need.members == 1 ? need.shared + need.own : need.shared});
    std::vector<int32_t> hits;
    while (static_cast<int32_t>(hits.size()) < most) {
      const auto found = entries_.find(content.keys()[hits.size()]);
      if (found == entries_.end()) break;
      hits.push_back(found->second.block);
    }
    const auto trial = std::make_shared<Hold>(Hold{hits});
    holds_.push_back(trial);
    const int64_t fresh = need.Blocks() - static_cast<int64_t>(hits.size());
    const absl::StatusCode expected =
        need.Blocks() > total_
            ? absl::StatusCode::kInvalidArgument
            : Take(fresh, need.spare, content.owner(), may_take_kept, hits.size());
    std::erase(holds_, trial);
    auto group = pool_->ReserveGroup(
        need, {.chain = &content, .blocks_max = blocks_max, .may_take_kept = may_take_kept});
    ASSERT_EQ(group.status().code(), expected) << group.status();
    if (!group.ok()) return;
    std::set<int32_t> seen;
    for (size_t member = 0; member < group->size(); ++member) {
      Reservation& reservation = (*group)[member];
      ASSERT_EQ(reservation.cached_blocks(), static_cast<int32_t>(hits.size()));
      hits_ += static_cast<int64_t>(hits.size());
      auto hold = std::make_shared<Hold>();
      for (size_t i = 0; i < reservation.blocks().size(); ++i) {
        const int32_t block = reservation.blocks()[i].value;
        ASSERT_EQ(block, reservation.block_table()[i]);
        if (i < hits.size()) {
          ASSERT_EQ(block, hits[i]);
          ASSERT_EQ(bytes_[static_cast<size_t>(block)], WordOf(content.keys()[i]))
              << "not the KV of these tokens in this domain";
        } else if (seen.insert(block).second) {
          CheckNew(block);
        }
        hold->blocks.push_back(block);
      }
      holds_.push_back(hold);
      owners_.push_back({std::move(reservation), hold, member % 2 == 0 ? chain : Sibling(chain),
                         static_cast<int32_t>(hits.size())});
    }
    ASSERT_EQ(seen.size(), static_cast<size_t>(fresh));
  }

  void Extend(size_t pick, int32_t count) {
    if (owners_.empty()) return;
    Owner& owner = owners_[pick % owners_.size()];
    const size_t before = owner.reservation.blocks().size();
    const absl::StatusCode expected =
        Take(count, 0, Chains()[owner.chain].owner(), true, owner.hold->blocks.size());
    const absl::Status status = owner.reservation.Extend(count);
    ASSERT_EQ(status.code(), expected) << status;
    if (!status.ok()) return;
    for (BlockId block : owner.reservation.blocks().subspan(before)) {
      CheckNew(block.value);
      owner.hold->blocks.push_back(block.value);
    }
  }

  void Publish(size_t pick, int32_t complete) {
    if (owners_.empty()) return;
    Owner& owner = owners_[pick % owners_.size()];
    const BlockChain& chain = Chains()[owner.chain];
    const std::span<const BlockId> blocks = owner.reservation.blocks();
    const int32_t most = std::min({complete, kChainBlocks, static_cast<int32_t>(blocks.size())});
    while (owner.published < most) {
      const int32_t at = owner.published;
      const int32_t block = blocks[static_cast<size_t>(at)].value;
      // As a step that computes it would; what is published already is not computed again.
      if (!IsPublished(block)) {
        bytes_[static_cast<size_t>(block)] = WordOf(chain.keys()[static_cast<size_t>(at)]);
      }
      if (!PublishOne(owner, chain.block(at), chain.domain(at), at, block)) break;
      ++owner.published;
    }
    ASSERT_EQ(pool_->Publish(owner.reservation, chain, complete), owner.published);
  }

  // As a step loop does: what lies behind the hit and in the tier is put into the reserved blocks,
  // and published.
  void Reload(size_t pick) {
    if (owners_.empty()) return;
    Owner& owner = owners_[pick % owners_.size()];
    const BlockChain& chain = Chains()[owner.chain];
    const std::span<const BlockId> blocks = owner.reservation.blocks();
    int32_t at = owner.published;
    for (; at < std::min(kChainBlocks, static_cast<int32_t>(blocks.size())); ++at) {
      const KeyedBlock wanted = chain.block(at);
      const auto block = static_cast<size_t>(blocks[static_cast<size_t>(at)].value);
      if (IsPublished(static_cast<int32_t>(block))) break;
      Word word{};
      if (!tier_->Get({wanted.key, wanted.tokens}, word)) break;
      std::memcpy(&bytes_[block], word.data(), word.size());
      ASSERT_EQ(bytes_[block], WordOf(wanted.key)) << "not the KV that was saved";
      ++reloads_;
    }
    Publish(pick, at);
  }

  // The process is no more; what a disk held is there for the next one.
  void Crash() {
    DropAll();
    entries_.clear();
    shares_.clear();
    told_.clear();
    tier_told_.clear();
    std::fill(bytes_.begin(), bytes_.end(), 0);
    std::fill(generations_.begin(), generations_.end(), 0);
    last_evicted_.reset();
    next_event_ = 1;
    uses_ = 0;
    const int64_t before = disk_.empty() ? 0 : tier_->counts().blocks;
    tier_.reset();
    pool_.reset();
    Start();
    ASSERT_EQ(tier_->counts().blocks, before);
  }

  void TakeLease(size_t pick) {
    if (owners_.empty()) return;
    const Owner& owner = owners_[pick % owners_.size()];
    leases_.emplace_back(owner.reservation.Lease(), owner.hold);
  }
  void EndLease(size_t pick) {
    if (leases_.empty()) return;
    const auto at = leases_.begin() + static_cast<std::ptrdiff_t>(pick % leases_.size());
    const std::shared_ptr<Hold> hold = at->second;
    leases_.erase(at);
    EndIfUnheld(hold);
  }
  void Release(size_t pick) {
    if (owners_.empty()) return;
    const auto at = owners_.begin() + static_cast<std::ptrdiff_t>(pick % owners_.size());
    const std::shared_ptr<Hold> hold = at->hold;
    owners_.erase(at);
    hold->owned = false;
    EndIfUnheld(hold);
  }
  void DropAll() {
    while (!owners_.empty()) Release(0);
    while (!leases_.empty()) EndLease(0);
  }
  void Advance(int seconds) { clock_.Advance(std::chrono::seconds(seconds)); }

  void Check() {
    const BlockPool::Counts counts = pool_->counts();
    ASSERT_EQ(counts.free + counts.used + counts.leased, counts.total);
    std::set<int32_t> owned, held;
    for (const auto& hold : holds_) {
      held.insert(hold->blocks.begin(), hold->blocks.end());
      if (hold->owned) owned.insert(hold->blocks.begin(), hold->blocks.end());
    }
    ASSERT_EQ(counts.used, static_cast<int32_t>(owned.size()));
    ASSERT_EQ(counts.leased, static_cast<int32_t>(held.size() - owned.size()));
    ASSERT_EQ(counts.cached, Cached());
    ASSERT_EQ(counts.kept, Cached() - Reachable(std::nullopt));
    for (const auto& [key, entry] : entries_) {
      ASSERT_EQ(bytes_[static_cast<size_t>(entry.block)], WordOf(key)) << "published bytes changed";
    }
    for (int32_t block = 0; block < total_; ++block) {
      if (!held.contains(block) && !IsPublished(block)) {
        ASSERT_EQ(bytes_[static_cast<size_t>(block)], 0u) << "an empty block that is not scrubbed";
      }
    }
    CheckShares();
    CheckEvents();
    CheckTier();
  }
  int64_t hits() const { return hits_; }
  int64_t evictions() const { return evictions_; }
  int64_t reloads() const { return reloads_; }
  size_t owners() const { return owners_.size(); }
  int64_t last_resorts() const { return last_resorts_; }

 private:
  using Word = std::array<uint8_t, sizeof(uint64_t)>;  // a block's bytes
  static constexpr int64_t kTierBlocks = 24;

  void Start() {
    pool_ = std::make_unique<BlockPool>(
        total_, [this](BlockId block) { bytes_[static_cast<size_t>(block.value)] = 0; }, clock_,
        [this](BlockId block, const BlockContent& content) {
          Word word;
          std::memcpy(word.data(), &bytes_[static_cast<size_t>(block.value)], word.size());
          EXPECT_TRUE(tier_->Put(content, word));
          saved_.insert(content.key);
          last_evicted_ = content.key;
        });
    if (disk_.empty()) {
      tier_ = *MemoryTier::Create({.bytes_max = kTierBlocks * 4096,
                                   .block_bytes = sizeof(Word),
                                   .events = &pool_->events()});
    } else {
      tier_ = *DiskTier::Open({.path = disk_,
                               .secret = std::string(32, 's'),
                               .bytes_max = 4096 + kTierBlocks * (kBlockTokens * 4 + 112),
                               .block_bytes = sizeof(Word),
                               .block_tokens = kBlockTokens,
                               .events = &pool_->events()});
    }
  }

  static uint64_t WordOf(const BlockKey& key) { return Cut(key).high | 1; }

  bool IsHeld(int32_t block) const {
    return std::any_of(holds_.begin(), holds_.end(), [block](const auto& hold) {
      return std::find(hold->blocks.begin(), hold->blocks.end(), block) != hold->blocks.end();
    });
  }
  bool IsPublished(int32_t block) const {
    return std::any_of(entries_.begin(), entries_.end(),
                       [block](const auto& entry) { return entry.second.block == block; });
  }
  bool IsPinned(const Entry& entry) const { return entry.pinned_until > clock_.Now(); }
  int32_t Cached() const {
    return static_cast<int32_t>(
        std::count_if(entries_.begin(), entries_.end(),
                      [this](auto& entry) { return !IsHeld(entry.second.block); }));
  }
  int32_t HeldBy(DomainTag domain) const {
    return static_cast<int32_t>(std::count_if(entries_.begin(), entries_.end(), [&](auto& entry) {
      return entry.second.domain == domain;
    }));
  }
  int32_t Floor(DomainTag domain) const {
    const auto found = shares_.find(domain);
    return found == shares_.end() ? 0 : static_cast<int32_t>(float(total_) * found->second.floor);
  }
  int32_t Quota(DomainTag domain) const {
    return static_cast<int32_t>(std::ceil(float(total_) * shares_.at(domain).quota));
  }
  int32_t Reachable(std::optional<DomainTag> asker) const {
    int32_t sum = 0;
    for (const auto& [domain, share] : shares_) {
      int32_t unpinned = 0;
      for (const auto& [key, entry] : entries_) {
        unpinned += entry.domain == domain && !IsPinned(entry) && !IsHeld(entry.block);
      }
      sum += domain == asker ? unpinned
                             : std::min(unpinned, std::max(0, HeldBy(domain) - Floor(domain)));
    }
    return sum;
  }
  enum class Whose { kReachable, kOwn, kAny };
  // The block of least value that may go; floors keep only what is not the asker's own.
  const BlockKey* Victim(std::optional<DomainTag> asker, Whose whose) const {
    const std::pair<const BlockKey, Entry>* best = nullptr;
    for (const auto& candidate : entries_) {
      const Entry& entry = candidate.second;
      const bool is_parent = std::any_of(entries_.begin(), entries_.end(), [&](const auto& other) {
        return other.second.parent == candidate.first;
      });
      const bool own = entry.domain == asker;
      if (is_parent || IsHeld(entry.block) || IsPinned(entry)) continue;
      if (!own && whose == Whose::kOwn) continue;
      if (!own && whose == Whose::kReachable && HeldBy(entry.domain) <= Floor(entry.domain)) {
        continue;
      }
      if (best == nullptr ||
          std::pair(entry.value, entry.block) < std::pair(best->second.value, best->second.block)) {
        best = &candidate;
      }
    }
    return best == nullptr ? nullptr : &best->first;
  }

  // For the last resort: without floors, and in the end without pins.
  const BlockKey* KeptVictim() {
    if (const BlockKey* victim = Victim(std::nullopt, Whose::kAny)) return victim;
    for (auto& [key, entry] : entries_) {
      if (!IsHeld(entry.block)) entry.pinned_until = {};
    }
    return Victim(std::nullopt, Whose::kAny);
  }
  // To wait until nobody else has any block would not help.
  bool IsHopeless(int64_t count, size_t owned, std::optional<DomainTag> asker) const {
    std::set<int32_t> held;
    for (const auto& hold : holds_) held.insert(hold->blocks.begin(), hold->blocks.end());
    const int32_t kept = Cached() - Reachable(asker);
    const int64_t left = int64_t{total_} - static_cast<int64_t>(owned) - kept;
    return kept > 0 && (count > left || held.size() <= owned);
  }

  absl::StatusCode Take(int64_t count, int32_t spare, std::optional<DomainTag> asker,
                        bool may_take_kept, size_t owned) {
    const auto shortage = [&] {
      return !may_take_kept && IsHopeless(count, owned, asker)
                 ? absl::StatusCode::kFailedPrecondition
                 : absl::StatusCode::kResourceExhausted;
    };
    std::set<int32_t> taken;
    for (const auto& hold : holds_) taken.insert(hold->blocks.begin(), hold->blocks.end());
    for (const auto& [key, entry] : entries_) taken.insert(entry.block);
    int64_t empty = total_ - static_cast<int64_t>(taken.size());
    bool takes_kept = may_take_kept && IsHopeless(count, owned, asker);
    if (count + spare > empty + (takes_kept ? Cached() : Reachable(asker))) return shortage();
    std::map<DomainTag, int32_t> before;
    for (const auto& [domain, share] : shares_) before[domain] = HeldBy(domain);
    const BlockKey* victim = nullptr;
    while (empty < count) {
      victim = Victim(asker, Whose::kReachable);
      takes_kept |= victim == nullptr && may_take_kept && IsHopeless(count, owned, asker);
      if (victim == nullptr && takes_kept) {
        victim = KeptVictim();
        ++last_resorts_;
      }
      if (victim == nullptr) break;
      entries_.erase(BlockKey(*victim));
      ++evictions_;
      ++empty;
    }
    for (const auto& [domain, share] : shares_) {
      EXPECT_TRUE(takes_kept || domain == asker ||
                  HeldBy(domain) >= std::min(before[domain], Floor(domain)))
          << "below its floor";
    }
    return empty < count ? shortage() : absl::StatusCode::kOk;
  }

  bool PublishOne(Owner& owner, const KeyedBlock& content, const Domain& domain, int32_t at,
                  int32_t block) {
    if (const auto older = entries_.find(content.key); older != entries_.end()) {
      if (older->second.block != block) owner.hold->blocks.push_back(older->second.block);
      return true;
    }
    shares_[content.domain] = domain;
    while (HeldBy(content.domain) >= Quota(content.domain)) {
      const BlockKey* victim = Victim(content.domain, Whose::kOwn);
      if (victim == nullptr) return false;
      entries_.erase(BlockKey(*victim));
      ++evictions_;
    }
    entries_[content.key] = {.block = block,
                             .domain = content.domain,
                             .parent = content.parent,
                             .position = static_cast<uint64_t>(at) * kBlockTokens};
    return true;
  }

  void EndIfUnheld(const std::shared_ptr<Hold>& hold) {
    const bool leased = std::any_of(leases_.begin(), leases_.end(),
                                    [&](const auto& lease) { return lease.second == hold; });
    if (hold->owned || leased) return;
    std::erase(holds_, hold);
    for (auto& [key, entry] : entries_) {
      if (std::ranges::count(hold->blocks, entry.block) > 0) entry.pinned_until = {};
    }
    for (int32_t block : hold->blocks) {
      if (!IsHeld(block)) Cache(block);
    }
  }
  void Cache(int32_t block) {
    int32_t pinned = 0;
    for (const auto& [key, entry] : entries_) {
      pinned += entry.block != block && !IsHeld(entry.block) && IsPinned(entry);
    }
    for (auto& [key, entry] : entries_) {
      if (entry.block != block) continue;
      entry.value =
          ++uses_ + static_cast<uint64_t>(total_) * entry.position / Eviction::kDoubleCostTokens;
      const bool may = pinned < total_ / 2;
      entry.pinned_until =
          clock_.Now() + std::chrono::seconds(may ? shares_.at(entry.domain).pin_s : 0);
    }
  }

  void CheckNew(int32_t block) {
    uint64_t& word = bytes_[static_cast<size_t>(block)];
    ASSERT_FALSE(IsHeld(block)) << "given out while somebody holds it";
    ASSERT_FALSE(IsPublished(block)) << "given out while it can be found";
    ASSERT_EQ(word, 0u) << "handed out unscrubbed";
    word = 2;  // private bytes
    ASSERT_EQ(pool_->generation(BlockId{block}), ++generations_[static_cast<size_t>(block)]);
  }

  void CheckShares() {
    for (const auto& [domain, share] : shares_) {
      ASSERT_LE(HeldBy(domain), Quota(domain)) << "above its quota";
    }
  }

  // What was evicted last is there, and nothing that never was.
  void CheckTier() {
    ASSERT_TRUE(!last_evicted_ || tier_->Contains(*last_evicted_));
    std::set<CutKey> stored;
    for (const BlockKey& key : saved_) {
      if (tier_->Contains(key)) stored.insert(Cut(key));
    }
    ASSERT_EQ(tier_told_, stored);
    const TierCounts counts = tier_->counts();
    ASSERT_EQ(counts.blocks, static_cast<int64_t>(stored.size()));
    ASSERT_EQ(counts.broken, 0);
  }

  // Whoever follows the events knows what can be found, and never a block without its parent.
  void CheckEvents() {
    EventLog::Reading reading = pool_->events().Read(next_event_);
    next_event_ = reading.next;
    for (const KvChange& change : reading.changes) {
      std::set<CutKey>& told = change.tier == Tier::kHot ? told_ : tier_told_;
      if (change.stored) {
        ASSERT_TRUE(told.insert(change.key).second);
      } else {
        ASSERT_EQ(told.erase(change.key), 1u);
      }
    }
    std::set<CutKey> expected;
    for (const auto& [key, entry] : entries_) expected.insert(Cut(key));
    ASSERT_EQ(told_, expected);
    for (const auto& [key, entry] : entries_) {
      ASSERT_TRUE(entry.position == 0 || entries_.contains(entry.parent)) << "an orphan";
    }
  }

  const int32_t total_;
  const std::string disk_;
  VirtualClock clock_;
  std::vector<uint64_t> bytes_;  // a word for each block's bytes; 0: scrubbed
  std::vector<uint32_t> generations_;
  std::unique_ptr<BlockPool> pool_;
  std::unique_ptr<BlockTier> tier_;
  std::deque<Owner> owners_;
  std::deque<std::pair<BlockLease, std::shared_ptr<Hold>>> leases_;
  std::vector<std::shared_ptr<Hold>> holds_;
  std::map<BlockKey, Entry> entries_;
  std::map<DomainTag, Domain> shares_;
  std::set<CutKey> told_, tier_told_;
  std::set<BlockKey> saved_;
  std::optional<BlockKey> last_evicted_;
  int64_t reloads_ = 0;
  uint64_t next_event_ = 1, uses_ = 0;
  int64_t hits_ = 0, evictions_ = 0, last_resorts_ = 0;
};

}  // namespace trivium::kv
