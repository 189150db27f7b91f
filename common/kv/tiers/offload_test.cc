#include "common/kv/tiers/offload.h"

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <future>
#include <random>
#include <thread>

#include "common/kv/block_pool.h"
#include "common/kv/chain_testing.h"

namespace trivium::kv {
namespace {

constexpr kernels::KvLayout kLayout{.block_tokens = 4, .kv_heads = 2, .head_dim = 8};
constexpr int kLayers = 3;
constexpr int32_t kBlocks = 8;

// A worker's KV, from the pool to the disk.
class OffloadTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = testing::TempDir() + "offload_" +
            testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove(path_);
    Start(kernels::KvType::kF16);
  }
  void Start(kernels::KvType type) {
    offload_.reset();
    pool_.reset();
    std::filesystem::remove(path_);
    kernels::KvLayout layout = kLayout;
    layout.type = type;
    storage_ = *KvStorage::Create(layout, kLayers, kBlocks);
    Restart(1000);
  }
  void TearDown() override {
    offload_.reset();
    pool_.reset();
    std::filesystem::remove(path_);
  }

  // Another process: nothing is left but the file.
  void Restart(int64_t slots, int64_t memory_bytes = 0) {
    offload_.reset();
    pool_.reset();
    for (int32_t i = 0; i < kBlocks; ++i) storage_->Scrub(BlockId{i});
    const int64_t bytes = Offload::BlockBytes(*storage_);
    const bool integers = storage_->layout().type == kernels::KvType::kInt8;
    ASSERT_EQ(bytes, kLayers * 2 * 4 * 2 * (integers ? 8 + 2 : 8 * 2));
    pool_ = std::make_unique<BlockPool>(
        kBlocks, [this](BlockId block) { storage_->Scrub(block); }, Clock::Real(),
        [this](BlockId block, const BlockContent& content) { offload_->Save(block, content); });
    auto offload = Offload::Open(storage_, {.memory_bytes = memory_bytes,
                                            .disk_path = slots == 0 ? "" : path_,
                                            .disk_bytes = 4096 + slots * (bytes + 200),
                                            .disk_secret = std::string(32, 's'),
                                            .events = &pool_->events()});
    ASSERT_TRUE(offload.ok()) << offload.status();
    offload_ = *std::move(offload);
  }

  // The numbers that computing a block would give.
  std::vector<uint16_t> PageOf(const BlockKey& key, int layer) const {
    std::mt19937_64 random(Cut(key).high + static_cast<uint64_t>(layer));
    std::vector<uint16_t> page(static_cast<size_t>(storage_->layout().PageWords()));
    for (uint16_t& value : page) value = static_cast<uint16_t>(random());
    return page;
  }
  bool Holds(BlockId block, const BlockKey& key) const {
    for (int layer = 0; layer < kLayers; ++layer) {
      const std::vector<uint16_t> page = PageOf(key, layer);
      if (!std::equal(page.begin(), page.end(), storage_->page(layer, block))) return false;
    }
    return true;
  }
  struct Found {
    int32_t hot = 0, loaded = 0, computed = 0;
    friend bool operator==(const Found&, const Found&) = default;
  };
  int32_t Load(const BlockChain& chain, const Reservation& reservation) {
    const int32_t hot = reservation.cached_blocks();
    const size_t found = offload_->Find(chain, hot, chain.size()).size();
    Offload::Wanted wanted;
    for (int32_t i = hot; i < hot + static_cast<int32_t>(found); ++i) {
      const KeyedBlock block = chain.block(i);
      wanted.keys.push_back(block.key);
      wanted.tokens.insert(wanted.tokens.end(), block.tokens.begin(), block.tokens.end());
      wanted.into.push_back(reservation.blocks()[static_cast<size_t>(i)]);
    }
    const auto asker = std::make_shared<int>();
    wanted.lease = reservation.Lease();
    wanted.asker = asker;
    std::promise<int32_t> loaded;
    wanted.done = [&loaded](int32_t count) { loaded.set_value(count); };
    offload_->Load(std::move(wanted));
    const int32_t count = loaded.get_future().get();
    offload_->Flush();  // and with it the lease
    return count;
  }
  // Serves a prompt: takes what is hot, loads what is on disk, computes the rest. -1 where there is
  // anything but the right numbers.
  Found Serve(const BlockChain& chain) {
    auto reserved = pool_->Reserve(chain.size(), {&chain, chain.size()});
    while (absl::IsResourceExhausted(reserved.status())) {
      std::this_thread::yield();
      reserved = pool_->Reserve(chain.size(), {&chain, chain.size()});
    }
    Reservation reservation = *std::move(reserved);
    const std::span<const BlockId> blocks = reservation.blocks();
    Found found{.hot = reservation.cached_blocks()};
    found.loaded = Load(chain, reservation);
    for (int32_t i = 0; i < chain.size(); ++i) {
      const BlockKey key = chain.block(i).key;
      const BlockId block = blocks[static_cast<size_t>(i)];
      if (i < found.hot + found.loaded) {
        if (!Holds(block, key)) return {-1, -1, -1};
        continue;
      }
      ++found.computed;
      for (int layer = 0; layer < kLayers; ++layer) {
        const std::vector<uint16_t> page = PageOf(key, layer);
        std::copy(page.begin(), page.end(), storage_->page(layer, block));
      }
    }
    pool_->Publish(reservation, chain, chain.size());
    return found;
  }
  // Makes the pool evict all that it keeps.
  void EvictAll() {
    ASSERT_TRUE(pool_->Reserve(kBlocks).ok());
    offload_->Flush();
  }
  static BlockChain ChainOf(int32_t blocks, int32_t first = 1, std::string_view tenant = "a") {
    return TestChain({TestDomain(tenant)}, TestTokens(4 * blocks, first), 4);
  }

  std::string path_;
  std::shared_ptr<KvStorage> storage_;
  std::unique_ptr<Offload> offload_;
  std::unique_ptr<BlockPool> pool_;
};

TEST_F(OffloadTest, PagesOfIntegersComeBackAsTheyWere) {
  Start(kernels::KvType::kInt8);
  const BlockChain chain = ChainOf(6);
  EXPECT_EQ(Serve(chain), (Found{0, 0, 6}));
  EvictAll();
  EXPECT_EQ(Serve(chain), (Found{0, 6, 0}));
  EvictAll();
  Restart(1000);
  EXPECT_EQ(Serve(chain), (Found{0, 6, 0})) << "after a restart";
}

TEST_F(OffloadTest, WhatIsEvictedComesBackAsItWas) {
  const BlockChain chain = ChainOf(6);
  EXPECT_EQ(Serve(chain), (Found{0, 0, 6}));
  EXPECT_EQ(Serve(chain), (Found{6, 0, 0}));
  EvictAll();
  EXPECT_EQ(Serve(chain), (Found{0, 6, 0}));
  EXPECT_EQ(Serve(ChainOf(6, 1, "b")), (Found{0, 0, 6})) << "another tenant's";
  offload_->Flush();
  // Of the first chain the tail was evicted for the second.
  EXPECT_EQ(Serve(chain), (Found{2, 4, 0}));
  EvictAll();
  Restart(1000);
  EXPECT_EQ(Serve(chain), (Found{0, 6, 0})) << "after a restart";
  EXPECT_EQ(Serve(ChainOf(8)), (Found{6, 0, 2})) << "published again";
}

TEST_F(OffloadTest, WhatDoesNotOpenIsComputed) {
  const BlockChain chain = ChainOf(6);
  Serve(chain);
  EvictAll();
  Restart(1000);
  {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    // Evicted from its end, so the chain's third block is the fourth in the file.
    const auto slot = static_cast<std::streamoff>(72 + 16 + Offload::BlockBytes(*storage_) + 32);
    file.seekg(4096 + 3 * slot + 200);
    const int byte = file.get();
    file.seekp(4096 + 3 * slot + 200);
    file.put(static_cast<char>(byte ^ 1));
  }
  EXPECT_EQ(Serve(chain), (Found{0, 2, 4}));
  EXPECT_EQ(offload_->counts().tiers[2].broken, 1);
}

TEST_F(OffloadTest, MemoryComesFirstAndTheDiskTakesWhatItHasNoRoomFor) {
  Restart(1000, 6 * 4096);  // a page each
  const BlockChain chain = ChainOf(6), other = ChainOf(8, 100);
  EXPECT_EQ(Serve(chain), (Found{0, 0, 6}));
  EvictAll();
  EXPECT_EQ(Serve(other), (Found{0, 0, 8}));
  EvictAll();
  const Offload::Counts counts = offload_->counts();
  EXPECT_EQ(counts.tiers[1].blocks, 6);
  EXPECT_EQ(counts.tiers[2].blocks, 8);
  EXPECT_EQ(Serve(other), (Found{0, 8, 0}));
  EXPECT_GT(offload_->load_s(Tier::kMemory), 0);
  EXPECT_GT(offload_->load_s(Tier::kDisk), 0) << "some of them";
  EvictAll();
  EXPECT_EQ(Serve(chain), (Found{0, 6, 0}));
  EXPECT_EQ(Serve(ChainOf(6, 1, "b")), (Found{0, 0, 6})) << "another tenant's";
}

// Pools far too small for what goes through them, by several hands.
TEST_F(OffloadTest, WhateverComesBackIsRight) {
  Restart(20, 10 * 4096);
  const uint32_t seed = std::random_device()();
  std::printf("seed %u\n", seed);
  std::vector<std::thread> threads;
  std::atomic<int64_t> loaded = 0;
  for (uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([this, &loaded, random = std::mt19937(seed + t)]() mutable {
      for (int round = 0; round < 100; ++round) {
        const auto blocks = static_cast<int32_t>(1 + random() % 4);
        const Found found = Serve(ChainOf(blocks, 1 + 100 * static_cast<int32_t>(random() % 4),
                                          random() % 2 == 0 ? "a" : "b"));
        EXPECT_EQ(found.hot + found.loaded + found.computed, blocks);
        loaded += found.loaded;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(loaded, 0);
  EvictAll();
}

TEST_F(OffloadTest, TooManyAtOnceAreDroppedAndCounted) {
  constexpr int32_t kMany = 20000;
  Restart(kMany);
  const BlockChain chain = ChainOf(kMany);
  for (int32_t i = 0; i < kMany; ++i) {
    const KeyedBlock block = chain.block(i);
    offload_->Save(BlockId{i % kBlocks}, {block.key, block.tokens});
  }
  offload_->Flush();
  const Offload::Counts counts = offload_->counts();
  EXPECT_EQ(counts.tiers[2].blocks + counts.dropped_saves, kMany);
  EXPECT_GE(counts.tiers[2].blocks, static_cast<int64_t>(offload_->queue_max()));
}

}  // namespace
}  // namespace trivium::kv
