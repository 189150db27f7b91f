#include "common/kv/tiers/disk_tier.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <deque>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <thread>

#include "common/kv/chain_testing.h"

namespace trivium::kv {
namespace {

constexpr int32_t kTokens = 4;
constexpr int64_t kBytes = 100;
// Shape, header, body of tokens and KV, each seal with its salt and tag.
constexpr int64_t kShape = 4096, kSlot = 40 + 32 + kTokens * 4 + kBytes + 32;
constexpr int64_t kBody = 40 + 32;  // where it begins

using Bytes = std::vector<uint8_t>;

Bytes KvOf(int32_t seed) {
  std::mt19937 random(static_cast<uint32_t>(seed));
  Bytes kv(kBytes);
  for (uint8_t& byte : kv) byte = static_cast<uint8_t>(random());
  return kv;
}

class DiskTierTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "disk_tier_" +
              testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(folder_);
    path_ = folder_ + "/blocks";
    std::filesystem::remove(path_);
    Reopen();
  }
  void TearDown() override {
    tier_.reset();
    std::filesystem::remove_all(folder_);
  }

  DiskTierOptions Options(int64_t slots = 4, char secret = 's') const {
    return {path_, std::string(32, secret), kShape + slots * kSlot, kBytes, kTokens};
  }
  void Reopen(int64_t slots = 4, char secret = 's') {
    tier_.reset();
    auto tier = DiskTier::Open(Options(slots, secret));
    ASSERT_TRUE(tier.ok()) << tier.status();
    tier_ = *std::move(tier);
  }
  // Blocks of one chain, of which each is its own content.
  BlockContent Block(int32_t index) const {
    const KeyedBlock block = chain_.block(index);
    return {block.key, block.tokens};
  }
  bool Put(int32_t index) { return tier_->Put(Block(index), KvOf(index)); }
  // 1: found, as it was put; 0: a miss that leaves the caller's bytes; -1: anything else.
  int Get(int32_t index) {
    Bytes kv(kBytes, 0xee);
    if (tier_->Get(Block(index), kv)) return kv == KvOf(index) ? 1 : -1;
    return kv == Bytes(kBytes, 0xee) ? 0 : -1;
  }
  Bytes File() const {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void SetFile(const Bytes& bytes) const {
    std::ofstream(path_, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), std::ssize(bytes));
  }

  std::string folder_, path_;
  const BlockChain chain_ = TestChain({TestDomain("a")}, TestTokens(200 * kTokens), kTokens);
  std::unique_ptr<DiskTier> tier_;
};

TEST_F(DiskTierTest, KeepsTheLastUsedAndSurvivesARestart) {
  for (int32_t i = 0; i < 4; ++i) EXPECT_TRUE(Put(i));
  EXPECT_EQ(Get(0), 1);
  EXPECT_TRUE(Put(1)) << "there already";
  EXPECT_TRUE(Put(4));
  EXPECT_EQ(Get(2), 0) << "the longest unused";
  for (int32_t i : {0, 1, 3, 4}) EXPECT_EQ(Get(i), 1) << i;
  EXPECT_EQ(std::filesystem::file_size(path_), static_cast<size_t>(kShape + 4 * kSlot));
  Reopen();
  EXPECT_EQ(tier_->counts().blocks, 4);
  for (int32_t i : {0, 1, 3, 4}) EXPECT_EQ(Get(i), 1) << i;
  Reopen();
  EXPECT_TRUE(Put(5));
  EXPECT_EQ(Get(0), 0) << "the first that was written";
  EXPECT_EQ(Get(5), 1);
  const TierCounts counts = tier_->counts();
  EXPECT_EQ(counts.hits, 1);
  EXPECT_EQ(counts.misses, 1);
  EXPECT_EQ(counts.broken + counts.failed_reads + counts.failed_writes, 0);
}

TEST_F(DiskTierTest, AnotherShapeBeginsEmpty) {
  EXPECT_TRUE(Put(1));
  Reopen(5);
  EXPECT_EQ(tier_->counts().blocks, 0);
  EXPECT_EQ(Get(1), 0);
  EXPECT_TRUE(Put(1));
  SetFile({1, 2, 3});
  Reopen(5);
  EXPECT_EQ(Get(1), 0);
  EXPECT_TRUE(Put(1));
  EXPECT_EQ(Get(1), 1);
}

TEST_F(DiskTierTest, WithoutTheSecretNothingIsFound) {
  EXPECT_TRUE(Put(1));
  const Bytes file = File();
  const Bytes kv = KvOf(1);
  const BlockContent block = Block(1);
  const std::span<const uint8_t> tokens(reinterpret_cast<const uint8_t*>(block.tokens.data()),
                                        block.tokens.size_bytes());
  for (const std::span<const uint8_t> plain :
       {std::span<const uint8_t>(kv).first(8), tokens.first(8),
        std::span<const uint8_t>(block.key.bytes).first(8)}) {
    EXPECT_EQ(std::search(file.begin(), file.end(), plain.begin(), plain.end()), file.end());
  }
  Reopen(4, 't');
  EXPECT_EQ(Get(1), 0);
  EXPECT_EQ(tier_->counts().broken, 1);
  EXPECT_EQ(std::filesystem::status(path_).permissions(),
            std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
}

// Whichever byte of a block is changed, it is a counted miss, and its neighbours stay.
TEST_F(DiskTierTest, AFlippedByteIsACountedMiss) {
  for (int32_t i = 0; i < 3; ++i) ASSERT_TRUE(Put(i));
  const Bytes whole = File();
  for (const bool restarted : {false, true}) {
    for (int64_t at = 0; at < kSlot; ++at) {
      SetFile(whole);
      Reopen();
      Bytes file = whole;
      file[static_cast<size_t>(kShape + kSlot + at)] ^= 1u << (at % 8);
      SetFile(file);
      if (restarted) Reopen();
      ASSERT_EQ(Get(1), 0) << "byte " << at;
      ASSERT_EQ(tier_->counts().broken, 1) << "byte " << at;
      ASSERT_EQ(tier_->counts().misses, 1);
      ASSERT_EQ(Get(0) + Get(2), 2);
      ASSERT_TRUE(Put(1)) << "its room is used again";
      ASSERT_EQ(Get(1), 1);
    }
  }
}

TEST_F(DiskTierTest, PiecesOfDifferentWritesAreNoBlock) {
  ASSERT_TRUE(Put(0));
  ASSERT_TRUE(Put(1));
  const Bytes before = File();
  for (int32_t i = 2; i < 6; ++i) ASSERT_TRUE(Put(i));
  const Bytes after = File();
  const auto at = [](int64_t slot, int64_t byte) { return kShape + slot * kSlot + byte; };
  // A write that was cut short: the new header before the old body, or half of the new body.
  for (const int64_t cut : {kBody, kBody + 50}) {
    Bytes file = before;
    std::copy_n(after.begin() + at(0, 0), cut, file.begin() + at(0, 0));
    SetFile(file);
    Reopen();
    EXPECT_EQ(Get(4), 0);
    EXPECT_EQ(Get(0), 0);
    EXPECT_EQ(Get(1), 1);
    EXPECT_EQ(tier_->counts().broken, 1);
  }
  // Slots that change places.
  Bytes swapped = before;
  std::swap_ranges(swapped.begin() + at(0, 0), swapped.begin() + at(0, kSlot),
                   swapped.begin() + at(1, 0));
  SetFile(swapped);
  Reopen();
  EXPECT_EQ(Get(0) + Get(1), 0);
}

TEST_F(DiskTierTest, EqualKeysWithOtherTokensAreAMiss) {
  ASSERT_TRUE(Put(1));
  BlockContent other = Block(2);
  other.key = Block(1).key;
  Bytes kv(kBytes);
  EXPECT_FALSE(tier_->Get(other, kv));
}

TEST_F(DiskTierTest, AFailingDiskIsAMiss) {
  for (int32_t i = 0; i < 3; ++i) ASSERT_TRUE(Put(i));
  std::filesystem::resize_file(path_, static_cast<size_t>(kShape + 2 * kSlot + 10));
  EXPECT_EQ(Get(2), 0);
  EXPECT_EQ(tier_->counts().failed_reads, 1);
  EXPECT_EQ(Get(1), 1);
  signal(SIGXFSZ, SIG_IGN);
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  const rlimit full{.rlim_cur = static_cast<rlim_t>(kShape + 2 * kSlot + 20),
                    .rlim_max = limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &full), 0);
  const bool put = Put(3);  // into the last slot, which is beyond what the file may have
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  EXPECT_FALSE(put);
  EXPECT_EQ(tier_->counts().failed_writes, 1);
  EXPECT_EQ(Get(3), 0);
  EXPECT_EQ(Get(1), 1);
  EXPECT_TRUE(Put(3)) << "it may recover";
  EXPECT_EQ(Get(3), 1);
}

TEST_F(DiskTierTest, RefusesWhatCannotBe) {
  EXPECT_EQ(DiskTier::Open(Options()).status().code(), absl::StatusCode::kFailedPrecondition)
      << "one file, two owners";
  tier_.reset();
  EXPECT_EQ(DiskTier::Open(Options(0)).status().code(), absl::StatusCode::kInvalidArgument);
  DiskTierOptions options = Options();
  options.secret = std::string(31, 's');
  EXPECT_EQ(DiskTier::Open(options).status().code(), absl::StatusCode::kInvalidArgument);
  options = Options();
  options.block_bytes = 0;
  EXPECT_EQ(DiskTier::Open(options).status().code(), absl::StatusCode::kInvalidArgument);
  options = Options();
  options.path = folder_ + "/nowhere/blocks";
  EXPECT_EQ(DiskTier::Open(options).status().code(), absl::StatusCode::kUnavailable);
  options.path = "/dev/full";
  EXPECT_EQ(DiskTier::Open(options).status().code(), absl::StatusCode::kUnavailable);
}

// Puts, gets and restarts at random, against a list in order of use.
TEST_F(DiskTierTest, AgreesWithAModel) {
  constexpr uint32_t kSeed = 9;
  RecordProperty("seed", static_cast<int>(kSeed));
  std::mt19937 random(kSeed);
  std::deque<int32_t> used, written;  // the last one last
  const auto touch = [](std::deque<int32_t>& list, int32_t block) {
    std::erase(list, block);
    list.push_back(block);
  };
  for (int step = 0; step < 20000; ++step) {
    const auto block = static_cast<int32_t>(random() % 9);
    const bool known = std::ranges::count(used, block) > 0;
    ASSERT_EQ(tier_->Contains(Block(block).key), known);
    const auto action = random() % 100;
    if (action == 0) {
      Reopen();
      used = written;
    } else if (action < 50) {
      ASSERT_TRUE(Put(block));
      if (!known && used.size() == 4) {
        std::erase(written, used.front());
        used.pop_front();
      }
      if (!known) touch(written, block);
      touch(used, block);
    } else {
      ASSERT_EQ(Get(block), known ? 1 : 0) << "step " << step;
      if (known) touch(used, block);
    }
  }
  EXPECT_EQ(tier_->counts().broken, 0);
}

TEST_F(DiskTierTest, ThreadsGetWhatWasPut) {
  constexpr int kThreads = 4, kRounds = 3000;
  std::atomic<int> wrong{0}, found{0};
  std::vector<std::thread> threads;
  for (uint32_t id = 0; id < kThreads; ++id) {
    threads.emplace_back([&, id] {
      std::mt19937 random(id);
      for (int i = 0; i < kRounds; ++i) {
        const auto block = static_cast<int32_t>(random() % 10);
        if (random() % 2 == 0) {
          Put(block);
        } else {
          const int got = Get(block);
          wrong += got < 0;
          found += got > 0;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(found, 0);
  EXPECT_EQ(tier_->counts().broken, 0) << "no slot is written while it is read";
  EXPECT_EQ(tier_->counts().hits, found);
}

}  // namespace
}  // namespace trivium::kv
