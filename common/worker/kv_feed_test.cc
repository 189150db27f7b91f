// A receiver that knows nothing but the messages must hold what the log holds.
#include "common/worker/kv_feed.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "trivium/v1/stage.pb.h"

namespace trivium::worker {
namespace {

constexpr int32_t kBlocks = 40000;

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
      const std::string& keys = stored ? event.stored().keys() : event.removed().keys();
      ASSERT_EQ(keys.size() % 16, 0u);
      for (size_t i = 0; i < keys.size(); i += 16) {
        const kv::CutKey key = kv::CutKeyFrom(std::string_view(keys).substr(i, 16));
        EXPECT_TRUE(stored ? held_.insert(key).second : held_.erase(key) == 1);
      }
    }
    EXPECT_LE(message.ByteSizeLong(), KvFeed::kKeysMax * 24);
  }
  const std::set<kv::CutKey>& held() const { return held_; }

 private:
  std::set<kv::CutKey> held_;
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
      if (const auto held = held_.extract(block.value); !held.empty()) {
        log_.Removed(block);
        continue;
      }
      const kv::CutKey key{random_(), random_()};
      log_.Stored(block, key);
      held_[block.value] = key;
    }
  }
  void Drain(KvFeed& feed, Receiver& receiver) {
    for (v1::KvEvents message; feed.Next(&message); message.Clear()) receiver.Apply(message);
    std::set<kv::CutKey> held;
    for (const auto& [block, key] : held_) held.insert(key);
    EXPECT_EQ(receiver.held(), held);
  }

  std::mt19937_64 random_;
  kv::EventLog log_{kBlocks};
  std::map<int32_t, kv::CutKey> held_;
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
