// A receiver that knows nothing but the messages must hold what the log holds.
#include "common/worker/kv_feed.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <utility>

#include "trivium/v1/stage.pb.h"

namespace trivium::worker {
namespace {

constexpr int32_t kBlocks = 40000;

using Block = std::pair<v1::KvTier, kv::CutKey>;

class Receiver {
 public:
  void Apply(const v1::KvEvents& message) {
    if (message.is_snapshot_begin()) {
      held_.clear();
    } else {
      EXPECT_EQ(message.first(), next_);
    }
    next_ = message.first() + static_cast<uint64_t>(message.events_size());
    for (const v1::KvEvent& event : message.events()) {
      const bool stored = event.has_stored();
      const v1::KvStored& blocks = stored ? event.stored() : event.removed();
      const std::string& keys = blocks.keys();
      ASSERT_EQ(keys.size() % 16, 0u);
      for (size_t i = 0; i < keys.size(); i += 16) {
        const Block block(blocks.tier(), kv::CutKeyFrom(std::string_view(keys).substr(i, 16)));
        EXPECT_TRUE(stored ? held_.insert(block).second : held_.erase(block) == 1);
      }
    }
    EXPECT_LE(message.ByteSizeLong(), KvFeed::kKeysMax * 26);
  }
  const std::set<Block>& held() const { return held_; }

 private:
  std::set<Block> held_;
  uint64_t next_ = 0;
};

class KvFeedTest : public testing::Test {
 protected:
  KvFeedTest() {
    const uint32_t seed = std::random_device()();
    std::printf("seed %u\n", seed);
    random_.seed(seed);
  }
  void Change(int count) {
    for (int i = 0; i < count; ++i) {
      const BlockId block{static_cast<int32_t>(random_() % kBlocks)};
      // Runs of one tier, as evictions and loads make them.
      if (random_() % 16 == 0) tier_ = static_cast<kv::Tier>(random_() % kv::kTiers);
      if (const auto held = held_.extract({tier_, block.value}); !held.empty()) {
        log_.Removed(block, tier_);
        continue;
      }
      const kv::CutKey key{random_(), random_()};
      log_.Stored(block, key, tier_);
      held_[{tier_, block.value}] = key;
    }
  }
  void Drain(KvFeed& feed, Receiver& receiver) {
    for (v1::KvEvents message; feed.Next(&message); message.Clear()) receiver.Apply(message);
    std::set<Block> held;
    for (const auto& [place, key] : held_) {
      held.emplace(static_cast<v1::KvTier>(place.first), key);
    }
    EXPECT_EQ(receiver.held(), held);
  }

  std::mt19937_64 random_;
  kv::EventLog log_{kBlocks};
  std::map<std::pair<kv::Tier, int32_t>, kv::CutKey> held_;
  kv::Tier tier_ = kv::Tier::kHot;
};

TEST_F(KvFeedTest, EveryReceiverHoldsWhatTheLogHolds) {
  KvFeed early(log_);
  Receiver first, second;
  Drain(early, first);
  Change(50000);
  KvFeed late(log_);
  for (int round = 0; round < 50; ++round) {
    Change(static_cast<int>(random_() % 2000));
    Drain(early, first);
    if (round % 7 == 0) Drain(late, second);
  }
}

TEST_F(KvFeedTest, OneThatFellBehindGetsASnapshot) {
  KvFeed feed(log_);
  Receiver receiver;
  Change(100);
  Drain(feed, receiver);
  Change(static_cast<int>(kv::EventLog::kEventsMax) + 1);
  v1::KvEvents message;
  ASSERT_TRUE(feed.Next(&message));
  EXPECT_TRUE(message.is_snapshot_begin());
  receiver.Apply(message);
  Drain(feed, receiver);
}

TEST_F(KvFeedTest, TheFirstMessageIsASnapshotEvenOfNothing) {
  KvFeed feed(log_);
  v1::KvEvents message;
  ASSERT_TRUE(feed.Next(&message));
  EXPECT_TRUE(message.is_snapshot_begin());
  EXPECT_FALSE(feed.Next(&message));
}

}  // namespace
}  // namespace trivium::worker
