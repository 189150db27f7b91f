// The index against one that tries every worker and block, its protocol, its bounds and its
// threads.
#include "services/router/prefix_index/prefix_index.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "services/router/prefix_index/index_fixture.h"

namespace trivium::router {
namespace {

using std::chrono::seconds;

PrefixIndex::Options ForWorkers(size_t workers) { return {.workers = workers}; }

// ---- Exactness ----

// Random events of all workers, and now and then a restart, a gap or a snapshot.
class RandomCluster {
 public:
  RandomCluster(uint64_t seed, size_t count)
      : random_(seed), index_(ForWorkers(count)), workers_(count) {
    for (size_t i = 0; i < count; ++i) Begin(i);
  }

  void Step() {
    const size_t worker = random_() % workers_.size();
    switch (random_() % 40) {
      case 0:
        index_.Drop(worker);
        workers_[worker].Forget();
        return Begin(worker);
      case 1:  // a message is lost; the stream begins anew
        Change(worker);
        workers_[worker].Take();
        Change(worker);
        EXPECT_FALSE(index_.Apply(worker, workers_[worker].Take()));
        return Begin(worker);
      case 2:
        return Begin(worker);
      default:
        Change(worker);
        EXPECT_TRUE(index_.Apply(worker, workers_[worker].Take()));
    }
  }

  void ExpectEqual() {
    const std::vector<kv::CutKey> keys = Chain(random_() % 6, random_() % 6, random_() % 24);
    ASSERT_EQ(LookUpIn(index_, keys), LookUpIn(workers_, keys));
  }
  const PrefixIndex& index() const { return index_; }

 private:
  void Begin(size_t worker) {
    workers_[worker].Snapshot(random_());
    EXPECT_TRUE(index_.Apply(worker, workers_[worker].Take()));
  }
  void Change(size_t worker) {
    for (size_t i = 1 + random_() % 3; i > 0; --i) {
      std::vector<kv::CutKey> keys = Chain(random_() % 6, random_() % 6, random_() % 24);
      const auto tier = static_cast<v1::KvTier>(random_() % 8 < 5 ? 0 : random_() % 3);
      const std::span tail = std::span(keys).subspan(random_() % (keys.size() + 1));
      if (random_() % 5 < 3) {
        workers_[worker].Store(random_() % 2 == 0 ? tail : std::span(keys), tier);
      } else {
        workers_[worker].Remove(tail, tier);
      }
    }
  }

  std::mt19937_64 random_;
  PrefixIndex index_;
  std::vector<EventSource> workers_;
};

TEST(PrefixIndexTest, EqualsTryingEveryWorkerAndBlock) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  for (const size_t workers : {3, 30, 150}) {  // holders beside the key, in a list, in masks
    RandomCluster cluster(seed, workers);
    for (int step = 0; step < 20000; ++step) {
      cluster.Step();
      if (step % 4 == 0) cluster.ExpectEqual();
      if (testing::Test::HasFailure()) return;
    }
    EXPECT_GT(cluster.index().counts().gaps_total, 100);
  }
}

// ---- Protocol ----

class ProtocolTest : public testing::Test {
 protected:
  ProtocolTest() { source_.Snapshot(7); }
  bool Send() { return index_.Apply(1, source_.Take()); }
  int32_t HeldBlocks(const PrefixIndex& index) {
    const std::vector<Held> held = LookUpIn(index, keys_);
    return held.empty() ? 0 : held.front().hot_tokens;
  }
  int32_t HeldBlocks() { return HeldBlocks(index_); }

  const std::vector<kv::CutKey> keys_ = Chain(1, 1, 10);
  PrefixIndex index_{ForWorkers(4)};
  EventSource source_;
};

TEST_F(ProtocolTest, NothingIsTakenBeforeASnapshot) {
  source_.Take();
  source_.Store(keys_);
  EXPECT_FALSE(Send());
  EXPECT_EQ(HeldBlocks(), 0);
  source_.Snapshot(1);
  EXPECT_TRUE(Send());
  EXPECT_EQ(HeldBlocks(), 10);
}

TEST_F(ProtocolTest, AGapDropsTheWorkerAloneAndASnapshotHeals) {
  ASSERT_TRUE(Send());
  source_.Store(keys_);
  ASSERT_TRUE(Send());
  EventSource other;
  other.Store(keys_);
  other.Snapshot(3);
  ASSERT_TRUE(index_.Apply(2, other.Take()));
  source_.Remove(std::span(keys_).last(2));
  source_.Take();
  source_.Remove(std::span(keys_).last(4));
  EXPECT_FALSE(Send());
  EXPECT_EQ(LookUpIn(index_, keys_), (std::vector<Held>{{2, 10, 10, 10, 10}}));
  source_.Snapshot(100);
  EXPECT_TRUE(Send());
  EXPECT_EQ(LookUpIn(index_, keys_), (std::vector<Held>{{1, 6, 6, 6, 6}, {2, 10, 10, 10, 10}}));
}

TEST_F(ProtocolTest, ASnapshotMayTakeSeveralMessages) {
  ASSERT_TRUE(Send());
  source_.Store(Chain(2, 2, 5));
  ASSERT_TRUE(Send());
  v1::KvEvents first, second;
  first.set_first(50);
  first.set_is_snapshot_begin(true);
  AddKeys(std::span(keys_).first(4), v1::KV_TIER_HOT, first.add_events()->mutable_stored());
  second.set_first(51);
  second.set_is_snapshot(true);
  AddKeys(std::span(keys_).last(6), v1::KV_TIER_HOT, second.add_events()->mutable_stored());
  EXPECT_TRUE(index_.Apply(1, first));
  EXPECT_EQ(HeldBlocks(), 4);
  EXPECT_TRUE(LookUpIn(index_, Chain(2, 2, 5)).empty());
  EXPECT_TRUE(index_.Apply(1, second));
  EXPECT_EQ(HeldBlocks(), 10);
}

TEST_F(ProtocolTest, WhatMakesNoSenseIsAGap) {
  for (const bool is_cut : {true, false}) {
    source_.Snapshot(1);
    ASSERT_TRUE(Send());
    source_.Store(keys_);
    v1::KvEvents events = source_.Take();
    if (is_cut) events.mutable_events(0)->mutable_stored()->mutable_keys()->pop_back();
    if (!is_cut) events.mutable_events(0)->mutable_stored()->set_tier(static_cast<v1::KvTier>(3));
    EXPECT_FALSE(index_.Apply(1, events));
    EXPECT_EQ(HeldBlocks(), 0);
    source_.Forget();
  }
  EXPECT_EQ(index_.counts().gaps_total, 2);
}

TEST_F(ProtocolTest, LostWorkersLeaveNothingBehind) {
  for (int round = 0; round < 5; ++round) {  // faster than the purge
    source_.Store(keys_);
    source_.Snapshot(1);
    ASSERT_TRUE(Send());
    ASSERT_EQ(HeldBlocks(), 10);
    index_.Drop(1);
    ASSERT_EQ(HeldBlocks(), 0);
  }
  for (size_t i = 0; i < PrefixIndex::kShards; ++i) index_.Tick(TimePoint());
  EXPECT_EQ(index_.counts().pairs, 0);
}

// ---- Expected blocks ----

TEST_F(ProtocolTest, ExpectedBlocksCountUntilTheirTimeIsUpOrNewsComes) {
  ASSERT_TRUE(Send());
  const TimePoint now(seconds(100));
  index_.Expect(1, keys_, now);
  EXPECT_EQ(LookUpIn(index_, keys_), (std::vector<Held>{{1, 10, 10, 10, 0}}));
  index_.Tick(now + seconds(4));
  index_.Expect(1, keys_, now + seconds(4));  // known already: no second life
  EXPECT_EQ(HeldBlocks(), 10);
  source_.Store(std::span(keys_).first(6));
  source_.Remove(std::span(keys_).subspan(4, 2));
  ASSERT_TRUE(Send());
  EXPECT_EQ(HeldBlocks(), 4);
  index_.Tick(now + seconds(5));
  EXPECT_EQ(HeldBlocks(), 4);
  EXPECT_EQ(index_.counts().expected, 0);
  EXPECT_EQ(index_.counts().pairs, 4);
}

TEST_F(ProtocolTest, ExpectedBlocksGoWithTheirWorker) {
  ASSERT_TRUE(Send());
  index_.Expect(1, keys_, TimePoint());
  index_.Drop(1);
  EXPECT_EQ(HeldBlocks(), 0);
  index_.Tick(TimePoint(seconds(5)));
  EXPECT_EQ(index_.counts().expected, 0);
  for (int i = 0; i < 300; ++i) index_.Tick(TimePoint(seconds(5)));
  EXPECT_EQ(index_.counts().pairs, 0);
}

TEST_F(ProtocolTest, BoundsRefuseAndCount) {
  PrefixIndex index({.workers = 4, .pairs_max = 7, .expected_max = 5});
  EventSource source;
  source.Store(keys_);
  source.Snapshot(1);
  EXPECT_TRUE(index.Apply(1, source.Take()));
  EXPECT_EQ(index.counts().pairs, 7);
  EXPECT_EQ(index.counts().refused_total, 3);
  index.Expect(2, Chain(3, 3, 4), TimePoint());  // no room
  EXPECT_EQ(index.counts().expected, 0);
  index.Drop(1);
  for (int i = 0; i < 300; ++i) index.Tick(TimePoint());
  index.Expect(2, keys_, TimePoint());
  EXPECT_EQ(index.counts().expected, 5);
  EXPECT_EQ(HeldBlocks(index), 5);
}

// ---- Threads ----

// Worker 0 holds a prompt throughout; the others come, go, restart and are dropped.
TEST(PrefixIndexTest, ReadersSeeWhatNobodyTouchesWhileEventsComeIn) {
  constexpr size_t kWorkers = 40;
  PrefixIndex index(ForWorkers(kWorkers));
  const std::vector<kv::CutKey> keys = Chain(1, 1, 40);
  EventSource steady;
  steady.Store(keys);
  steady.Snapshot(1);
  ASSERT_TRUE(index.Apply(0, steady.Take()));
  std::atomic<int> writing{4};
  std::vector<std::vector<EventSource>> sources(4, std::vector<EventSource>(kWorkers));
  std::vector<std::thread> threads;
  for (uint64_t writer = 0; writer < 4; ++writer) {
    threads.emplace_back([&, writer] {
      std::mt19937_64 random(writer);
      for (int step = 0; step < 1000; ++step) {
        // Each worker belongs to one writer.
        const size_t worker = 1 + random() % ((kWorkers - 1) / 4) * 4 + writer;
        EventSource& source = sources[writer][worker];
        if (random() % 4 == 0) {
          if (random() % 2 == 0) index.Drop(worker);
          source.Snapshot(random());
        } else {
          index.Expect(worker, Chain(2, random() % 8, 20), TimePoint(Duration(step)));
          source.Snapshot(random());
          source.Store(Chain(1, 1, random() % 41));
          source.Remove(std::span(keys).subspan(random() % 40));
        }
        EXPECT_TRUE(index.Apply(worker, source.Take()));
        index.Tick(TimePoint(Duration(step)));
      }
      --writing;
    });
  }
  for (int reader = 0; reader < 3; ++reader) {
    threads.emplace_back([&] {
      while (writing > 0) {
        const std::vector<Held> held = LookUpIn(index, keys);
        ASSERT_FALSE(held.empty());
        ASSERT_EQ(held.front(), (Held{0, 40, 40, 40, 40}));
        for (const Held& one : held) ASSERT_LE(one.disk_tokens, 40);
        EXPECT_GE(index.counts().pairs, 40);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  index.Tick(TimePoint(seconds(100)));
  for (const Held& one : LookUpIn(index, keys)) {
    if (one.worker == 0) continue;
    EXPECT_EQ(one.hot_tokens, sources[(one.worker - 1) % 4][one.worker].Leading(keys, kHot));
  }
}

}  // namespace
}  // namespace trivium::router
