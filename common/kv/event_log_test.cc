#include "common/kv/event_log.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <utility>

namespace trivium::kv {
namespace {

CutKey KeyOf(uint64_t number) { return {number * 0x9e3779b97f4a7c15u, number}; }

// A watcher as a router is one: it knows what it was told, in whatever pieces it read.
struct Watcher {
  std::set<CutKey> known;
  std::map<CutKey, CutKey> parents;  // of all that may ever be stored
  uint64_t next = 0;
  int snapshots = 0;

  void Read(const EventLog& log, size_t most) {
    EventLog::Reading reading = log.Read(next, most);
    if (reading.is_snapshot) {
      ++snapshots;
      known.clear();
    } else {
      ASSERT_LE(reading.changes.size(), most);
      ASSERT_EQ(reading.next, next + reading.changes.size());
    }
    next = reading.next;
    for (const KvChange& change : reading.changes) {
      if (change.stored) {
        ASSERT_TRUE(known.insert(change.key).second) << "stored twice";
        const auto parent = parents.find(change.key);
        ASSERT_TRUE(parent == parents.end() || known.contains(parent->second)) << "no parent yet";
      } else {
        ASSERT_EQ(known.erase(change.key), 1u);
      }
    }
  }
};

// A forest that grows at random and loses leaves, told to watchers that read at their own pace.
TEST(EventLogTest, WatchersOfAnyPaceKnowTheSame) {
  constexpr uint32_t kSeed = 5;
  constexpr int32_t kBlocks = 300;
  RecordProperty("seed", static_cast<int>(kSeed));
  std::mt19937 random(kSeed);
  EventLog log(kBlocks);
  std::map<int32_t, uint64_t> stored;  // block to number
  std::map<uint64_t, uint64_t> parent_of;
  std::map<uint64_t, int> children;
  Watcher eager, lazy, lagging;
  uint64_t number = 0;
  for (int step = 0; step < 200000; ++step) {
    const auto block = static_cast<int32_t>(random() % kBlocks);
    if (const auto found = stored.find(block); found == stored.end()) {
      const uint64_t mine = ++number;
      if (!stored.empty() && random() % 4 != 0) {
        auto parent = stored.lower_bound(static_cast<int32_t>(random() % kBlocks));
        if (parent == stored.end()) parent = stored.begin();
        parent_of[mine] = parent->second;
        ++children[parent->second];
        for (Watcher* watcher : {&eager, &lazy, &lagging}) {
          watcher->parents[KeyOf(mine)] = KeyOf(parent->second);
        }
      }
      stored[block] = mine;
      log.Stored(BlockId{block}, KeyOf(mine));
    } else if (children[found->second] == 0) {
      if (parent_of.contains(found->second)) --children[parent_of[found->second]];
      stored.erase(found);
      log.Removed(BlockId{block});
    }
    eager.Read(log, 3);
    if (random() % 64 == 0) lazy.Read(log, random() % 200);
    if (random() % 100000 == 0) lagging.Read(log, 1000);
    ASSERT_FALSE(HasFatalFailure());
  }
  std::set<CutKey> expected;
  for (const auto& [block, mine] : stored) expected.insert(KeyOf(mine));
  for (Watcher* watcher : {&eager, &lazy, &lagging}) {
    while (watcher->next != log.Read(0).next) {
      ASSERT_NO_FATAL_FAILURE(watcher->Read(log, 5000));
    }
    EXPECT_EQ(watcher->known, expected);
  }
  EXPECT_EQ(eager.snapshots, 1) << "only the first";
  EXPECT_EQ(lazy.snapshots, 1);
}

TEST(EventLogTest, OnlyWhoFallsBehindGetsASnapshot) {
  EventLog log(2);
  log.Stored(BlockId{0}, KeyOf(1));
  for (size_t i = 0; i < EventLog::kEventsMax - 1; ++i) {
    if (i % 2 == 0) {
      log.Stored(BlockId{1}, KeyOf(2));
    } else {
      log.Removed(BlockId{1});
    }
  }
  EventLog::Reading all = log.Read(1, EventLog::kEventsMax);
  EXPECT_FALSE(all.is_snapshot) << "the oldest is still there";
  EXPECT_EQ(all.changes.size(), EventLog::kEventsMax);
  EXPECT_EQ(all.changes.front(), (KvChange{true, KeyOf(1)}));
  EXPECT_TRUE(log.Read(all.next).changes.empty()) << "nothing is new";
  log.Removed(BlockId{1});
  all = log.Read(1);
  EXPECT_TRUE(all.is_snapshot);
  EXPECT_EQ(all.changes, (std::vector<KvChange>{{true, KeyOf(1)}}));
  EXPECT_EQ(all.next, EventLog::kEventsMax + 2);
  EXPECT_FALSE(log.Read(2, 1).is_snapshot);
  EXPECT_TRUE(log.Read(all.next + 1).is_snapshot) << "a number of another log";
}

TEST(EventLogTest, ABlockMayLieInEveryTier) {
  EventLog log(2);
  for (const Tier tier : {Tier::kHot, Tier::kDisk, Tier::kMemory}) {
    log.Stored(BlockId{1}, KeyOf(1), tier);
  }
  log.Stored(BlockId{5000}, KeyOf(2), Tier::kDisk);
  log.Removed(BlockId{1}, Tier::kDisk);
  const EventLog::Reading all = log.Read(0);
  EXPECT_EQ(all.changes, (std::vector<KvChange>{{true, KeyOf(1), Tier::kHot},
                                                {true, KeyOf(1), Tier::kMemory},
                                                {true, KeyOf(2), Tier::kDisk}}));
  EXPECT_EQ(log.Read(5).changes, (std::vector<KvChange>{{false, KeyOf(1), Tier::kDisk}}));
}

TEST(EventLogDeathTest, RemovingWhatIsNotStoredBreaksTheInvariant) {
  EventLog log(2);
  log.Stored(BlockId{1}, KeyOf(1));
  EXPECT_DEATH(log.Removed(BlockId{0}), "block 0 is removed");
}

}  // namespace
}  // namespace trivium::kv
