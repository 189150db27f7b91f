// What a pool keeps of published blocks: scenarios, and threads.
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "common/kv/block_pool.h"
#include "common/kv/chain_testing.h"

namespace trivium::kv {
namespace {

constexpr int32_t kBlockTokens = 16;

BlockChain ChainOf(std::vector<Domain> domains, int32_t blocks, int32_t first = 1) {
  return TestChain(std::move(domains), TestTokens(blocks * kBlockTokens, first));
}

class CacheTest : public testing::Test {
 protected:
  // Reserves, publishes all and goes. How many blocks were found; -1 where there was no room.
  int32_t Run(const BlockChain& chain) {
    auto reservation = pool_.Reserve(chain.size(), {&chain, chain.size()});
    if (!reservation.ok()) return -1;
    pool_.Publish(*reservation, chain, chain.size());
    return reservation->cached_blocks();
  }
  // How many blocks a request would find, leaving ranks as they are.
  int32_t Found(const BlockChain& chain) {
    std::set<CutKey> held;
    for (const KvChange& change : pool_.events().Read(0).changes) held.insert(change.key);
    int32_t found = 0;
    while (found < chain.size() && held.contains(Cut(chain.block(found).key))) ++found;
    return found;
  }

  VirtualClock clock_;
  int scrubs_ = 0;
  BlockPool pool_{20, [this](BlockId) { ++scrubs_; }, clock_};
  const Domain alice_ = TestDomain("alice"), bob_ = TestDomain("bob");
};

// Of another worker, that wants to read it.
TEST_F(CacheTest, WhatIsFoundCanBeHeldAloneAndCannotBeEvictedMeanwhile) {
  const BlockChain chain = ChainOf({alice_}, 12), foreign = ChainOf({bob_}, 12);
  EXPECT_TRUE(pool_.ReserveFound({&chain, 12}).empty());
  EXPECT_EQ(Run(chain), 0);
  EXPECT_TRUE(pool_.ReserveFound({&foreign, 12}).empty());
  Reservation held = pool_.ReserveFound({&chain, 8});
  EXPECT_EQ(held.blocks().size(), 8u);
  EXPECT_EQ(held.cached_blocks(), 8);
  EXPECT_EQ(pool_.counts().used, 8) << "and none besides";
  EXPECT_EQ(Run(ChainOf({bob_}, 12, 5000)), 0) << "takes the other four too";
  EXPECT_EQ(Found(chain), 8);
  EXPECT_EQ(Run(ChainOf({bob_}, 13, 9000)), -1);
  const BlockLease lease = held.Lease();
  held = Reservation();
  EXPECT_EQ(pool_.counts().leased, 8);
}

TEST_F(CacheTest, ABlockIsSharedWhileItIsUsedAndFoundAfterwards) {
  const BlockChain chain = ChainOf({alice_}, 6);
  auto first = *pool_.Reserve(6, {&chain, 5});
  EXPECT_EQ(first.cached_blocks(), 0);
  EXPECT_EQ(pool_.Publish(first, chain, 4), 4);
  auto second = *pool_.Reserve(6, {&chain, 5});
  EXPECT_EQ(second.cached_blocks(), 4) << "as many as are complete";
  EXPECT_EQ(pool_.counts().used, 8);
  EXPECT_TRUE(
      std::equal(first.blocks().begin(), first.blocks().begin() + 4, second.blocks().begin()));
  const uint32_t generation = pool_.generation(first.blocks()[0]);
  first = Reservation();
  EXPECT_EQ(scrubs_, 2) << "what nobody can find";
  EXPECT_EQ(pool_.counts().cached, 0) << "in use";
  second = Reservation();
  EXPECT_EQ(pool_.counts().cached, 4);
  EXPECT_EQ(pool_.counts().free, 20);
  auto third = *pool_.Reserve(6, {&chain, 3});
  EXPECT_EQ(third.cached_blocks(), 3) << "no more than asked for";
  EXPECT_EQ(pool_.counts().used, 6);
  EXPECT_EQ(pool_.counts().cached, 1);
  EXPECT_EQ(pool_.generation(third.blocks()[0]), generation) << "the same KV";
}

TEST_F(CacheTest, ALeaseKeepsAPublishedBlockFromEviction) {
  const BlockChain chain = ChainOf({alice_}, 4);
  auto reservation = *pool_.Reserve(4);
  EXPECT_EQ(pool_.Publish(reservation, chain, 4), 4);
  BlockLease lease = reservation.Lease();
  reservation = Reservation();
  EXPECT_EQ(pool_.counts().leased, 4);
  EXPECT_FALSE(pool_.Reserve(17).ok());
  EXPECT_EQ(Found(chain), 4);
  EXPECT_EQ((*pool_.Reserve(16, {&chain, 4})).cached_blocks(), 4) << "found while leased";
  lease.reset();
  EXPECT_EQ(pool_.counts().cached, 4);
  EXPECT_TRUE(pool_.Reserve(17).ok());
  EXPECT_EQ(Found(chain), 3) << "the last goes first";
  EXPECT_EQ(scrubs_, 12 + 17 + 1);
}

TEST_F(CacheTest, TheOlderOfTwoEqualBlocksStays) {
  const BlockChain chain = ChainOf({alice_}, 3);
  auto older = *pool_.Reserve(2, {&chain, 2});
  auto newer = *pool_.Reserve(3, {&chain, 2});
  EXPECT_EQ(pool_.Publish(older, chain, 2), 2);
  EXPECT_EQ(pool_.Publish(newer, chain, 3), 3);
  EXPECT_EQ(pool_.events().Read(0).changes.size(), 3u) << "no key twice";
  auto third = *pool_.Reserve(4, {&chain, 3});
  EXPECT_EQ(third.blocks()[0], older.blocks()[0]);
  EXPECT_EQ(third.blocks()[2], newer.blocks()[2]);
  older = Reservation();
  third = Reservation();
  EXPECT_EQ(pool_.counts().used, 5) << "who owns a block owns those before it";
  newer = Reservation();
  EXPECT_EQ(pool_.counts().cached, 3);
  EXPECT_EQ(pool_.counts().free, 20);
}

TEST_F(CacheTest, MembersOfAGroupFindWhatTheyShare) {
  const BlockChain chain = ChainOf({alice_}, 4);
  EXPECT_EQ(Run(chain), 0);
  auto group = *pool_.ReserveGroup({.shared = 3, .own = 2, .members = 3}, {&chain, 4});
  EXPECT_EQ(group[0].cached_blocks(), 3);
  EXPECT_EQ(group[2].cached_blocks(), 3);
  EXPECT_EQ(pool_.counts().used, 9);
  const BlockChain other = TestChain({alice_}, [] {
    std::vector<int32_t> tokens = TestTokens(3 * kBlockTokens);
    tokens.resize(4 * kBlockTokens, 7);
    return tokens;
  }());
  EXPECT_EQ(pool_.Publish(group[0], chain, 4), 4);
  EXPECT_EQ(pool_.Publish(group[1], other, 4), 4) << "another answer to the same prompt";
  group.clear();
  EXPECT_EQ(pool_.counts().cached, 5);
  EXPECT_EQ(Found(other), 4);
}

TEST_F(CacheTest, DomainsFindOnlyTheirOwn) {
  const Domain common = TestDomain("public", {}, 2 * kBlockTokens);
  EXPECT_EQ(Run(ChainOf({common, alice_}, 4)), 0);
  EXPECT_EQ(Run(ChainOf({common, alice_}, 4)), 4);
  EXPECT_EQ(Run(ChainOf({common, bob_}, 4)), 2);
  EXPECT_EQ(Run(ChainOf({alice_}, 4)), 0);
  const BlockChain nobodys = ChainOf({}, 4);
  auto reservation = *pool_.Reserve(4, {&nobodys, 4});
  EXPECT_EQ(reservation.cached_blocks(), 0);
  EXPECT_EQ(pool_.Publish(reservation, nobodys, 4), 0) << "without a domain nothing is kept";
  EXPECT_EQ(pool_.counts().cached, 4 + 2 + 4);
}

// One tenant asks for ever new prompts: what another keeps is its floor, block for block.
TEST_F(CacheTest, AFloodLeavesTheFloorsOfOthers) {
  const Domain keeper = TestDomain("keeper", {.floor = 0.25f});
  const BlockChain kept = ChainOf({keeper}, 8);
  EXPECT_EQ(Run(kept), 0);
  int32_t evicted = 0;
  for (int32_t i = 0; i < 200; ++i) {
    if (Run(ChainOf({bob_}, 6, 1000 * (i + 1))) == 0) ++evicted;
  }
  EXPECT_EQ(evicted, 200) << "the flood itself is served";
  EXPECT_EQ(Found(kept), 5) << "a quarter of 20";
  const BlockPool::Counts counts = pool_.counts();
  EXPECT_EQ(counts.kept, 5);
  EXPECT_EQ(pool_.Reserve(16).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Message(pool_.Reserve(16).status()),
            "16 KV blocks are needed, 20 of 20 are free, 5 of them kept by floors and pins");
  const BlockChain own = ChainOf({keeper}, 16, 50000);
  EXPECT_EQ(Run(own), 0) << "the floor is not kept from its owner";
}

TEST_F(CacheTest, WhoHasBegunWaitsWhereThatHelpsAndElseTakesWhatIsKept) {
  const BlockChain floor = ChainOf({TestDomain("keeper", {.floor = 0.25f})}, 5);
  const BlockChain pinned = ChainOf({TestDomain("public", {.pin_s = 60})}, 3, 1000);
  EXPECT_EQ(Run(floor), 0);
  EXPECT_EQ(Run(pinned), 0);
  EXPECT_EQ(pool_.counts().kept, 8);
  const PrefixUse begun{.may_take_kept = true};
  auto other = *pool_.Reserve(2);
  EXPECT_TRUE(absl::IsResourceExhausted(pool_.Reserve(11, begun).status())) << "there will be 12";
  EXPECT_TRUE(absl::IsFailedPrecondition(pool_.Reserve(13).status()));
  EXPECT_TRUE(absl::IsResourceExhausted(pool_.Reserve(19, begun).status())) << "there will be 20";
  EXPECT_EQ(Found(floor) + Found(pinned), 8) << "nothing goes for nothing";
  {
    auto reservation = pool_.Reserve(13, begun);
    ASSERT_TRUE(reservation.ok()) << reservation.status();
    EXPECT_EQ(Found(floor), 2) << "no more than is needed";
    EXPECT_EQ(Found(pinned), 3) << "the floors go first";
    ASSERT_TRUE(reservation->Extend(5).ok()) << "who grows has begun";
    EXPECT_EQ(Found(floor) + Found(pinned), 0);
    EXPECT_TRUE(absl::IsResourceExhausted(reservation->Extend(1)));
  }
  other = Reservation();
  EXPECT_EQ(pool_.counts().free, 20);
}

// The floor's blocks stand behind others, which count as reachable and are not.
TEST_F(CacheTest, WhatFollowsOtherBlocksKeepsThemToo) {
  const Domain common = TestDomain("public", {}, 10 * kBlockTokens);
  const BlockChain chain = ChainOf({common, TestDomain("keeper", {.floor = 0.25f})}, 15);
  EXPECT_EQ(Run(chain), 0);
  EXPECT_EQ(pool_.counts().kept, 5);
  auto other = *pool_.Reserve(1);
  EXPECT_TRUE(absl::IsResourceExhausted(pool_.Reserve(5).status()));
  other = Reservation();
  EXPECT_TRUE(pool_.Reserve(5).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(pool_.Reserve(6).status())) << "to wait would not help";
  EXPECT_TRUE(pool_.Reserve(6, {.may_take_kept = true}).ok());
  EXPECT_EQ(Found(chain), 14);
}

TEST_F(CacheTest, AQuotaCostsOnlyItsOwnDomain) {
  const Domain small = TestDomain("small", {.quota = 0.2f});
  const BlockChain others = ChainOf({alice_}, 5);
  EXPECT_EQ(Run(others), 0);
  const BlockChain first = ChainOf({small}, 3, 100), second = ChainOf({small}, 3, 200);
  EXPECT_EQ(Run(first), 0);
  EXPECT_EQ(Run(second), 0);
  EXPECT_EQ(Found(second), 3);
  EXPECT_EQ(Found(first), 1) << "its own oldest went";
  EXPECT_EQ(Found(others), 5);
  const BlockChain large = ChainOf({small}, 9, 300);
  auto reservation = *pool_.Reserve(9);
  EXPECT_EQ(pool_.Publish(reservation, large, 9), 4) << "all that it may have";
  EXPECT_EQ(Found(large), 4);
  EXPECT_EQ(Found(second), 0);
  // An operator lowers the quota: the next block that is published pays.
  const Domain smaller = TestDomain("small", {.quota = 0.1f});
  reservation = Reservation();
  EXPECT_EQ(Run(ChainOf({smaller}, 1, 400)), 0);
  EXPECT_EQ(Found(large), 1);
}

TEST_F(CacheTest, PinsHoldAsLongAsTheySay) {
  const Domain common = TestDomain("public", {.pin_s = 60}, 4 * kBlockTokens);
  const BlockChain pinned = ChainOf({common, alice_}, 6);
  EXPECT_EQ(Run(pinned), 0);
  EXPECT_EQ(pool_.counts().kept, 4);
  EXPECT_EQ(pool_.Reserve(17).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(pool_.Reserve(16).ok());
  EXPECT_EQ(Found(pinned), 4) << "what follows is not pinned";
  clock_.Advance(std::chrono::seconds(59));
  EXPECT_EQ(Run(pinned), 4) << "a use renews it";
  clock_.Advance(std::chrono::seconds(59));
  EXPECT_FALSE(pool_.Reserve(17).ok());
  clock_.Advance(std::chrono::seconds(1));
  EXPECT_EQ(pool_.counts().kept, 0);
  EXPECT_TRUE(pool_.Reserve(20).ok());
  EXPECT_EQ(Found(pinned), 0);
}

TEST_F(CacheTest, NoMoreThanHalfOfThePoolIsPinned) {
  const Domain common = TestDomain("public", {.pin_s = 60});
  EXPECT_EQ(Run(ChainOf({common}, 16)), 0);
  EXPECT_EQ(pool_.counts().kept, 10);
  EXPECT_TRUE(pool_.Reserve(10).ok());
}

TEST_F(CacheTest, TheOldestGoesFirstUnlessItIsDear) {
  const BlockChain first = ChainOf({alice_}, 2, 100), second = ChainOf({bob_}, 2, 200);
  EXPECT_EQ(Run(first), 0);
  EXPECT_EQ(Run(second), 0);
  EXPECT_EQ(Run(first), 2) << "used again";
  EXPECT_TRUE(pool_.Reserve(18).ok());
  EXPECT_EQ(Found(first), 2);
  EXPECT_EQ(Found(second), 0);
  // A row behind 3584 tokens costs more than twice the first: another turn of the pool.
  constexpr int32_t kWide = 512;
  const BlockChain deep = TestChain({alice_}, TestTokens(8 * kWide), kWide);
  EXPECT_EQ(Run(deep), 0);
  for (int32_t i = 0; i < 18; ++i) EXPECT_EQ(Run(ChainOf({bob_}, 1, 300 + i)), 0);
  EXPECT_EQ(Found(deep), 8) << "older, but dearer";
  for (int32_t i = 0; i < 24; ++i) EXPECT_EQ(Run(ChainOf({bob_}, 1, 400 + i)), 0);
  EXPECT_LT(Found(deep), 8) << "not for ever";
}

TEST_F(CacheTest, SpareBlocksStayForThoseThatGrow) {
  const BlockChain chain = ChainOf({alice_}, 6);
  EXPECT_EQ(Run(chain), 0);
  EXPECT_FALSE(pool_.ReserveGroup({.own = 18, .spare = 3}).ok());
  EXPECT_TRUE(pool_.ReserveGroup({.own = 18, .spare = 2}).ok()) << "cached ones count";
  EXPECT_EQ(Message(pool_.ReserveGroup({.own = 18, .spare = 3}).status()),
            "18 KV blocks are needed, 20 of 20 are free, 3 of them spare");
  EXPECT_EQ(pool_.ReserveGroup({.own = 1, .spare = -1}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// A word stands for each block's bytes, written and read without any lock: what is found must be
// what was published under the key, what is new must be scrubbed, and nobody writes what others
// read.
class Worker {
 public:
  Worker(BlockPool* pool, std::vector<uint64_t>* bytes, const std::vector<BlockChain>* chains,
         uint32_t seed)
      : pool_(*pool), bytes_(*bytes), chains_(*chains), random_(seed) {}

  void Run(int rounds) {
    for (int i = 0; i < rounds; ++i) Round();
    lease_.reset();
  }
  int64_t hits = 0, served = 0, wrong = 0;

 private:
  uint64_t& Word(BlockId block) { return bytes_[static_cast<size_t>(block.value)]; }
  static uint64_t WordOf(const BlockKey& key) { return Cut(key).low | 1; }

  void Round() {
    const BlockChain& chain = chains_[random_() % chains_.size()];
    const auto blocks = static_cast<int32_t>(random_() % static_cast<uint32_t>(chain.size()) + 1);
    auto reservation = pool_.Reserve(blocks, {&chain, blocks});
    if (!reservation.ok()) return;
    ++served;
    hits += reservation->cached_blocks();
    if (random_() % 4 == 0) lease_ = reservation->Lease();  // outlives it
    if (blocks < chain.size() && random_() % 2 == 0) (void)reservation->Extend(1).ok();
    const auto all = static_cast<int32_t>(reservation->blocks().size());
    const int32_t complete = all - static_cast<int32_t>(random_() % 2);
    for (int32_t i = 0; i < all; ++i) {
      uint64_t& word = Word(reservation->blocks()[static_cast<size_t>(i)]);
      const uint64_t content = WordOf(chain.block(i).key);
      if (i < reservation->cached_blocks()) {
        if (word != content) ++wrong;
      } else if (std::exchange(word, content) != 0) {
        ++wrong;
      }
      if (i % 3 == 2) pool_.Publish(*reservation, chain, std::min(i, complete));
    }
    pool_.Publish(*reservation, chain, complete);
    for (int32_t i = 0; i < all; ++i) {
      if (Word(reservation->blocks()[static_cast<size_t>(i)]) != WordOf(chain.block(i).key))
        ++wrong;
    }
    const BlockPool::Counts counts = pool_.counts();
    if (counts.free + counts.used + counts.leased != counts.total) ++wrong;
  }

  BlockPool& pool_;
  std::vector<uint64_t>& bytes_;
  const std::vector<BlockChain>& chains_;
  std::mt19937 random_;
  BlockLease lease_;
};

TEST(CacheThreadsTest, WhatIsFoundIsWhatWasPublished) {
  constexpr int kThreads = 6, kRounds = 4000;
  constexpr int32_t kBlocks = 40;
  std::vector<uint64_t> bytes(kBlocks);
  BlockPool pool(kBlocks, [&](BlockId block) { bytes[static_cast<size_t>(block.value)] = 0; });
  const Domain common = TestDomain("public", {.pin_s = 1}, 2 * kBlockTokens);
  std::vector<BlockChain> chains;
  for (const char* tenant : {"a", "b", "c"}) {
    for (int32_t first : {1, 500, 1000, 1500}) {
      chains.push_back(
          ChainOf({common, TestDomain(tenant, {.quota = 0.4f, .floor = 0.1f})}, 8, first));
    }
  }
  std::vector<Worker> workers;
  for (uint32_t i = 0; i < kThreads; ++i) workers.emplace_back(&pool, &bytes, &chains, i + 1);
  std::vector<std::thread> threads;
  for (Worker& worker : workers) threads.emplace_back([&worker] { worker.Run(kRounds); });
  std::atomic<bool> done{false};
  std::set<CutKey> known;
  int64_t misled = 0;
  std::thread watcher([&] {
    for (uint64_t next = 0, stop = 0; !stop || next != pool.events().Read(0).next;) {
      stop = done.load();
      EventLog::Reading reading = pool.events().Read(next, 100);
      if (reading.is_snapshot) known.clear();
      next = reading.next;
      for (const KvChange& change : reading.changes) {
        misled += change.stored ? !known.insert(change.key).second : known.erase(change.key) != 1;
      }
    }
  });
  for (std::thread& thread : threads) thread.join();
  done = true;
  watcher.join();
  int64_t hits = 0, served = 0;
  for (const Worker& worker : workers) {
    EXPECT_EQ(worker.wrong, 0);
    hits += worker.hits;
    served += worker.served;
  }
  EXPECT_GT(served, kRounds);
  EXPECT_GT(hits, kRounds);
  EXPECT_EQ(misled, 0);
  EXPECT_EQ(known.size(), static_cast<size_t>(pool.counts().cached));
  EXPECT_EQ(pool.counts().free, kBlocks);
}

}  // namespace
}  // namespace trivium::kv
