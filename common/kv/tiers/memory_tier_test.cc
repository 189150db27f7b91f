#include "common/kv/tiers/memory_tier.h"

#include <gtest/gtest.h>

#include <random>

#include "common/kv/chain_testing.h"
#include "common/kv/tiers/plane_codec.h"

namespace trivium::kv {
namespace {

constexpr int32_t kTokens = 4;
constexpr int64_t kBytes = 12288;  // three pages of an arena
using Bytes = std::vector<uint8_t>;

// Like KV: 16-bit floats of which the upper byte takes few values. `noise`: takes all of them.
Bytes KvOf(uint32_t seed, bool noise = false, size_t bytes = kBytes) {
  std::mt19937 random(seed);
  Bytes kv(bytes);
  for (size_t i = 0; i < kv.size(); ++i) {
    const auto drawn = static_cast<uint8_t>(random());
    kv[i] = noise || i % 2 == 0 ? drawn : static_cast<uint8_t>(0x30 + drawn % 8);
  }
  return kv;
}

TEST(PlaneCodecTest, GivesBackWhatItWasGiven) {
  for (const size_t bytes : {size_t{0}, size_t{2}, size_t{100}, size_t{12288}, size_t{400000}}) {
    for (const bool noise : {false, true}) {
      const Bytes words = KvOf(static_cast<uint32_t>(bytes), noise, bytes);
      const Bytes packed = PackPlanes(words);
      Bytes back(bytes, 0xee);
      ASSERT_TRUE(UnpackPlanes(packed, back));
      ASSERT_EQ(back, words);
      if (noise || bytes < 12288) continue;
      EXPECT_LT(packed.size(), bytes * 3 / 4) << "upper bytes of 3 bits of information: 11 of 16";
    }
  }
}

TEST(PlaneCodecTest, WhateverIsChangedIsRefused) {
  const Bytes words = KvOf(1, false, 600);
  const Bytes packed = PackPlanes(words);
  for (size_t at = 0; at < packed.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      Bytes changed = packed;
      changed[at] ^= static_cast<uint8_t>(1 << bit);
      Bytes back(words.size(), 0xee);
      // Some bits of a frame say nothing: then nothing is different either.
      if (UnpackPlanes(changed, back)) {
        ASSERT_EQ(back, words) << "byte " << at << ", bit " << bit;
      } else {
        ASSERT_EQ(back, Bytes(words.size(), 0xee));
      }
    }
  }
  Bytes shorter(words.size() - 2), longer(words.size() + 2);
  EXPECT_FALSE(UnpackPlanes(packed, shorter));
  EXPECT_FALSE(UnpackPlanes(packed, longer));
  EXPECT_FALSE(UnpackPlanes(std::span(packed).first(packed.size() - 1), shorter));
}

class MemoryTierTest : public testing::Test {
 protected:
  void Make(int64_t pages) {
    auto tier = MemoryTier::Create(
        {.bytes_max = pages * 4096,
         .block_bytes = kBytes,
         .overflow =
             [this](const BlockContent& block, std::span<const uint8_t> kv) {
               for (int32_t i = 0; i < chain_.size(); ++i) {
                 if (chain_.block(i).key != block.key) continue;
                 EXPECT_EQ(Bytes(kv.begin(), kv.end()), KvOf(static_cast<uint32_t>(i)));
                 EXPECT_TRUE(std::ranges::equal(block.tokens, chain_.block(i).tokens));
                 overflown_.push_back(i);
               }
             },
         .events = &events_});
    ASSERT_TRUE(tier.ok()) << tier.status();
    tier_ = *std::move(tier);
  }
  BlockContent Block(int32_t index) const {
    const KeyedBlock block = chain_.block(index);
    return {block.key, block.tokens};
  }
  bool Put(int32_t index, bool noise = false) {
    return tier_->Put(Block(index), KvOf(static_cast<uint32_t>(index), noise));
  }
  int Get(int32_t index, bool noise = false) {
    Bytes kv(kBytes, 0xee);
    if (!tier_->Get(Block(index), kv)) return kv == Bytes(kBytes, 0xee) ? 0 : -1;
    return kv == KvOf(static_cast<uint32_t>(index), noise) ? 1 : -1;
  }

  const BlockChain chain_ = TestChain({TestDomain("a")}, TestTokens(50 * kTokens), kTokens);
  std::vector<int32_t> overflown_;
  EventLog events_{0};
  std::unique_ptr<MemoryTier> tier_;
};

TEST_F(MemoryTierTest, WhatWasUsedLongestAgoGoesToTheNextTier) {
  Make(9);  // a block of 8.5 KiB takes three pages
  for (int32_t i = 0; i < 3; ++i) EXPECT_TRUE(Put(i));
  EXPECT_EQ(Get(0), 1);
  EXPECT_TRUE(Put(1)) << "there already";
  EXPECT_TRUE(Put(3));
  EXPECT_EQ(overflown_, std::vector<int32_t>{2});
  EXPECT_EQ(Get(2), 0);
  for (int32_t i : {0, 1, 3}) EXPECT_EQ(Get(i), 1) << i;
  const TierCounts counts = tier_->counts();
  EXPECT_EQ(counts.blocks, 3);
  EXPECT_EQ(counts.bytes, 9 * 4096);
  EXPECT_EQ(counts.hits, 4);
  EXPECT_EQ(counts.misses, 1);
}

TEST_F(MemoryTierTest, EqualKeysWithOtherTokensAreAMiss) {
  Make(9);
  ASSERT_TRUE(Put(1));
  BlockContent other = Block(2);
  other.key = Block(1).key;
  Bytes kv(kBytes);
  EXPECT_FALSE(tier_->Get(other, kv));
}

// Sizes differ from block to block; the arena is never exceeded, and whoever follows the events
// knows what is there.
TEST_F(MemoryTierTest, AnyHistoryStaysInBounds) {
  constexpr uint32_t kSeed = 3;
  RecordProperty("seed", static_cast<int>(kSeed));
  std::mt19937 random(kSeed);
  Make(40);
  std::set<CutKey> told;
  uint64_t next = 1;
  for (int step = 0; step < 3000; ++step) {
    const auto index = static_cast<int32_t>(random() % 50);
    const bool noise = index % 3 == 0;
    if (noise) {
      overflown_.clear();
      EXPECT_EQ(Get(index, true) == -1, false);
    } else if (step % 2 == 0) {
      ASSERT_TRUE(Put(index));
    } else {
      ASSERT_NE(Get(index), -1);
    }
    EventLog::Reading reading = events_.Read(next);
    next = reading.next;
    for (const KvChange& change : reading.changes) {
      ASSERT_EQ(change.tier, Tier::kMemory);
      ASSERT_TRUE(change.stored ? told.insert(change.key).second : told.erase(change.key) == 1);
    }
    const TierCounts counts = tier_->counts();
    ASSERT_LE(counts.bytes, counts.capacity_bytes);
    ASSERT_EQ(counts.blocks, static_cast<int64_t>(told.size()));
    for (int32_t i = 0; i < 50; ++i) {
      ASSERT_EQ(tier_->Contains(Block(i).key), told.contains(Cut(Block(i).key)));
    }
  }
  EXPECT_FALSE(told.empty());
}

TEST_F(MemoryTierTest, WhatNeverFitsIsNotKept) {
  Make(3);
  EXPECT_TRUE(Put(1));
  EXPECT_FALSE(Put(2, true)) << "noise and its frame take four pages";
  EXPECT_EQ(tier_->counts().failed_writes, 1);
  EXPECT_EQ(Get(1), 1);
}

}  // namespace
}  // namespace trivium::kv
