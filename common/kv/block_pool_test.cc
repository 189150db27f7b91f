#include "common/kv/block_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <map>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

namespace trivium::kv {
namespace {

// What the pool should hold, kept by the simplest means: for each block the list of its holders.
class Model {
 public:
  explicit Model(int32_t total) : pool_(total, [this](BlockId b) { ++scrubs_[Index(b)]; }) {
    scrubs_.resize(static_cast<size_t>(total));
    expected_scrubs_.resize(static_cast<size_t>(total));
    generations_.resize(static_cast<size_t>(total));
  }

  void Reserve(const GroupNeed& need) {
    const BlockPool::Counts before = pool_.counts();
    auto group = pool_.ReserveGroup(need);
    ASSERT_EQ(group.ok(), need.Blocks() <= before.free) << group.status();
    if (!group.ok()) {
      ASSERT_EQ(group.status().code(), need.Blocks() > before.total
                                           ? absl::StatusCode::kInvalidArgument
                                           : absl::StatusCode::kResourceExhausted);
      return;
    }
    ASSERT_EQ(group->size(), static_cast<size_t>(need.members));
    const auto shared = group->front().blocks().first(static_cast<size_t>(need.shared));
    for (BlockId block : shared) CheckNew(block);
    for (Reservation& member : *group) {
      const auto blocks = member.blocks();
      ASSERT_EQ(blocks.size(), static_cast<size_t>(need.shared + need.own));
      ASSERT_TRUE(std::equal(shared.begin(), shared.end(), blocks.begin()));
      for (BlockId block : blocks.subspan(shared.size())) CheckNew(block);
      auto ids = std::make_shared<std::vector<int32_t>>();
      for (size_t i = 0; i < blocks.size(); ++i) {
        ASSERT_EQ(blocks[i].value, member.block_table()[i]);
        ids->push_back(blocks[i].value);
      }
      Hold(*ids);
      owners_.push_back({std::move(member), ids});
    }
  }

  void Extend(size_t pick, int32_t count) {
    if (owners_.empty()) return;
    Owner& owner = owners_[pick % owners_.size()];
    const int32_t free = pool_.counts().free;
    const absl::Status status = owner.reservation.Extend(count);
    ASSERT_EQ(status.ok(), count <= free) << status;
    ASSERT_EQ(absl::IsResourceExhausted(status), count > free) << status;
    const auto blocks = owner.reservation.blocks();
    ASSERT_EQ(blocks.size(), owner.blocks->size() + static_cast<size_t>(status.ok() ? count : 0));
    for (size_t i = 0; i < blocks.size(); ++i) {
      ASSERT_EQ(blocks[i].value, owner.reservation.block_table()[i]);
      if (i < owner.blocks->size()) {
        ASSERT_EQ(blocks[i].value, (*owner.blocks)[i]) << "an owned block moved";
      } else {
        CheckNew(blocks[i]);
      }
    }
    // Leases of this owner hold the new blocks too.
    for (size_t i = owner.blocks->size(); i < blocks.size(); ++i) {
      const int32_t block = blocks[i].value;
      holders_[block] = 1 + static_cast<int>(std::count_if(
                                leases_.begin(), leases_.end(),
                                [&](const auto& lease) { return lease.second == owner.blocks; }));
      owner.blocks->push_back(block);
    }
    drawn_.clear();
  }

  void TakeLease(size_t pick) {
    if (owners_.empty()) return;
    const Owner& owner = owners_[pick % owners_.size()];
    leases_.push_back({owner.reservation.Lease(), owner.blocks});
    Hold(*owner.blocks);
  }

  void Release(size_t pick) {
    if (owners_.empty()) return;
    const size_t i = pick % owners_.size();
    const auto blocks = owners_[i].blocks;
    owners_.erase(owners_.begin() + static_cast<std::ptrdiff_t>(i));
    LetGo(*blocks);
  }

  void EndLease(size_t pick) {
    if (leases_.empty()) return;
    const size_t i = pick % leases_.size();
    const auto blocks = leases_[i].second;
    leases_.erase(leases_.begin() + static_cast<std::ptrdiff_t>(i));
    LetGo(*blocks);
  }

  void Check() {
    std::set<int32_t> used;
    for (const Owner& owner : owners_) used.insert(owner.blocks->begin(), owner.blocks->end());
    const auto taken = static_cast<int32_t>(holders_.size());
    const BlockPool::Counts counts = pool_.counts();
    ASSERT_EQ(counts.used, static_cast<int32_t>(used.size()));
    ASSERT_EQ(counts.leased, taken - counts.used);
    ASSERT_EQ(counts.free, counts.total - taken);
    ASSERT_EQ(scrubs_, expected_scrubs_);
  }

  void ReleaseAll() {
    while (!owners_.empty()) Release(0);
    while (!leases_.empty()) EndLease(0);
  }

 private:
  using Blocks = std::shared_ptr<std::vector<int32_t>>;
  struct Owner {
    Reservation reservation;
    Blocks blocks;
  };

  static size_t Index(BlockId block) { return static_cast<size_t>(block.value); }
  void CheckNew(BlockId block) {
    ASSERT_FALSE(holders_.contains(block.value)) << "given out while somebody holds it";
    ASSERT_TRUE(drawn_.insert(block.value).second) << "twice in one group";
    ASSERT_EQ(pool_.generation(block), ++generations_[Index(block)]);
    ASSERT_EQ(scrubs_[Index(block)], expected_scrubs_[Index(block)]) << "handed out unscrubbed";
  }
  void Hold(const std::vector<int32_t>& blocks) {
    for (int32_t block : blocks) ++holders_[block];
    drawn_.clear();
  }
  void LetGo(const std::vector<int32_t>& blocks) {
    for (int32_t block : blocks) {
      if (--holders_[block] > 0) continue;
      holders_.erase(block);
      ++expected_scrubs_[static_cast<size_t>(block)];
    }
  }

  std::vector<int> scrubs_, expected_scrubs_;
  std::vector<uint32_t> generations_;
  BlockPool pool_;
  std::deque<Owner> owners_;
  std::deque<std::pair<BlockLease, Blocks>> leases_;
  std::map<int32_t, int> holders_;
  std::set<int32_t> drawn_;  // since the last Hold
};

TEST(BlockPoolTest, TenThousandRandomHistoriesAgreeWithTheModel) {
  constexpr int kHistories = 10000;
  constexpr uint32_t kSeed = 20240611;
  RecordProperty("seed", static_cast<int>(kSeed));
  for (int history = 0; history < kHistories; ++history) {
    std::mt19937 random(kSeed + static_cast<uint32_t>(history));
    const auto total = static_cast<int32_t>(random() % 24 + 1);
    Model model(total);
    const int length = static_cast<int>(random() % 40 + 1);
    for (int i = 0; i < length; ++i) {
      SCOPED_TRACE(testing::Message() << "history " << history << ", action " << i);
      const size_t pick = random();
      switch (random() % 6) {
        case 0:
          model.Reserve({.own = static_cast<int32_t>(random() % (total + 2) + 1)});
          break;
        case 1:
          model.Reserve({.shared = static_cast<int32_t>(random() % 5),
                         .own = static_cast<int32_t>(random() % 3 + 1),
                         .members = static_cast<int32_t>(random() % 4 + 1)});
          break;
        case 2:
          model.TakeLease(pick);
          break;
        case 3:
          model.Extend(pick, static_cast<int32_t>(random() % 4 + 1));
          break;
        case 4:
          model.Release(pick);
          break;
        default:
          model.EndLease(pick);
          break;
      }
      ASSERT_NO_FATAL_FAILURE(model.Check());
    }
    ASSERT_NO_FATAL_FAILURE(model.ReleaseAll());
    ASSERT_NO_FATAL_FAILURE(model.Check());
  }
}

// A word for each block stands for its bytes: the owner writes it without any lock of its own, so
// that a block handed to two owners, or before its scrubbing ended, is a data race as well as a
// wrong value.
struct Arena {
  explicit Arena(int32_t blocks) : bytes(static_cast<size_t>(blocks)) {}
  void Scrub(BlockId block) { bytes[static_cast<size_t>(block.value)] = 0; }
  std::vector<uint64_t> bytes;
};

class Worker {
 public:
  Worker(BlockPool* pool, Arena* arena, uint64_t id) : pool_(*pool), arena_(*arena), id_(id) {}

  void Run(int rounds) {
    std::mt19937 random(static_cast<uint32_t>(id_) * 7919u);
    for (int i = 0; i < rounds; ++i) Round(random);
  }
  int64_t granted = 0;
  int64_t wrong = 0;

 private:
  void Round(std::mt19937& random) {
    auto reservation = pool_.Reserve(static_cast<int32_t>(random() % 6 + 1));
    const BlockPool::Counts counts = pool_.counts();
    if (counts.free + counts.used + counts.leased != counts.total) ++wrong;
    if (!reservation.ok()) return;
    ++granted;
    std::vector<uint32_t> generations;
    for (BlockId block : reservation->blocks()) {
      uint64_t& word = arena_.bytes[static_cast<size_t>(block.value)];
      if (word != 0) ++wrong;
      word = id_;
      generations.push_back(pool_.generation(block));
    }
    BlockLease lease;
    const std::vector<BlockId> blocks(reservation->blocks().begin(), reservation->blocks().end());
    if (random() % 2 == 0) lease = reservation->Lease();
    Grow(*reservation, random);
    if (random() % 2 == 0) std::this_thread::yield();
    const bool owner_goes_first = lease != nullptr && random() % 2 == 0;
    if (owner_goes_first) *reservation = Reservation();
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (arena_.bytes[static_cast<size_t>(blocks[i].value)] != id_) ++wrong;
      if (pool_.generation(blocks[i]) != generations[i]) ++wrong;
    }
  }

  // A block that is added is as clean, and as much its owner's, as the first ones.
  void Grow(Reservation& reservation, std::mt19937& random) {
    const size_t before = reservation.blocks().size();
    if (!reservation.Extend(static_cast<int32_t>(random() % 3 + 1)).ok()) return;
    for (BlockId block : reservation.blocks().subspan(before)) {
      uint64_t& word = arena_.bytes[static_cast<size_t>(block.value)];
      if (std::exchange(word, id_) != 0) ++wrong;
    }
  }

  BlockPool& pool_;
  Arena& arena_;
  const uint64_t id_;
};

TEST(BlockPoolTest, ThreadsNeverShareABlock) {
  constexpr int kThreads = 6;
  constexpr int kRounds = 4000;
  Arena arena(16);
  BlockPool pool(16, [&arena](BlockId block) { arena.Scrub(block); });
  std::vector<Worker> workers;
  for (int i = 0; i < kThreads; ++i) workers.emplace_back(&pool, &arena, i + 1);
  std::vector<std::thread> threads;
  for (Worker& worker : workers) threads.emplace_back([&worker] { worker.Run(kRounds); });
  for (std::thread& thread : threads) thread.join();
  int64_t granted = 0;
  for (const Worker& worker : workers) {
    EXPECT_EQ(worker.wrong, 0);
    granted += worker.granted;
  }
  EXPECT_GT(granted, kRounds);
  EXPECT_EQ(pool.counts().free, 16);
}

TEST(BlockPoolTest, LeasesEndOnAnotherThread) {
  constexpr int kRounds = 2000;
  Arena arena(8);
  BlockPool pool(8, [&arena](BlockId block) { arena.Scrub(block); });
  int granted = 0;
  while (granted < kRounds) {
    auto reservation = pool.Reserve(4);
    if (!reservation.ok()) {
      std::this_thread::yield();
      continue;
    }
    ++granted;
    for (BlockId block : reservation->blocks()) {
      ASSERT_EQ(std::exchange(arena.bytes[static_cast<size_t>(block.value)], 7u), 0u);
    }
    std::thread([lease = reservation->Lease()]() mutable { lease.reset(); }).detach();
  }
  while (pool.counts().free != 8) std::this_thread::yield();
}

// Each member sees the shared block untouched until it goes, whichever goes first.
TEST(BlockPoolTest, MembersOfAGroupEndOnDifferentThreads) {
  constexpr uint64_t kRounds = 500;
  Arena arena(8);
  BlockPool pool(8, [&arena](BlockId block) { arena.Scrub(block); });
  std::atomic<int> wrong{0};
  for (uint64_t round = 1; round <= kRounds; ++round) {
    auto group = pool.ReserveGroup({.shared = 2, .own = 2, .members = 3});
    ASSERT_TRUE(group.ok()) << group.status();
    EXPECT_EQ(pool.counts().used, 8);
    for (int32_t block = 0; block < 8; ++block) {
      ASSERT_EQ(std::exchange(arena.bytes[static_cast<size_t>(block)], round), 0u);
    }
    std::vector<std::thread> threads;
    for (Reservation& member : *group) {
      threads.emplace_back([&, mine = std::move(member)]() mutable {
        for (int32_t block : mine.block_table()) {
          if (arena.bytes[static_cast<size_t>(block)] != round) ++wrong;
        }
        mine = Reservation();
      });
    }
    for (std::thread& thread : threads) thread.join();
    ASSERT_EQ(pool.counts().free, 8);
  }
  EXPECT_EQ(wrong, 0);
}

TEST(BlockPoolTest, ErrorsNameTheCounts) {
  BlockPool pool(4);
  auto held = pool.Reserve(3);
  ASSERT_TRUE(held.ok());
  EXPECT_EQ(Message(pool.Reserve(2).status()), "2 KV blocks are needed, 1 of 4 are free");
  EXPECT_EQ(Message(pool.Reserve(5).status()), "5 KV blocks are needed, the pool has 4");
  EXPECT_EQ(pool.Reserve(0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(pool.Reserve(-1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Message(held->Extend(2)), "2 KV blocks are needed, 1 of 4 are free");
  EXPECT_EQ(held->Extend(0).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Reservation().Extend(1).code(), absl::StatusCode::kFailedPrecondition);
  for (const GroupNeed& need : {GroupNeed{-1, 1, 1}, GroupNeed{1, 0, 2}, GroupNeed{1, 1, 0},
                                GroupNeed{1, 1 << 30, 1 << 30}}) {
    EXPECT_EQ(pool.ReserveGroup(need).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(BlockPoolTest, MovedFromAndEmptyReservationsOwnNothing) {
  BlockPool pool(4);
  EXPECT_EQ(Reservation().Lease(), nullptr);
  auto first = pool.Reserve(2);
  Reservation second = std::move(*first);
  EXPECT_TRUE(first->empty());
  EXPECT_TRUE(first->block_table().empty());
  *first = Reservation();
  EXPECT_EQ(pool.counts().used, 2);
  second = std::move(*pool.Reserve(1));
  EXPECT_EQ(pool.counts().used, 1);
}

TEST(BlockPoolDeathTest, AnEndWithBlocksOutBreaksTheInvariant) {
  EXPECT_DEATH(
      {
        Reservation kept;
        BlockPool pool(4);
        kept = std::move(*pool.Reserve(1));
      },
      "1 blocks used");
}

}  // namespace
}  // namespace trivium::kv
