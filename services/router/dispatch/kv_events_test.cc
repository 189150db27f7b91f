// What the dispatcher makes of the KV events of its workers' Watch streams.
#include <gtest/gtest.h>

#include "services/router/dispatch/dispatch_fixture.h"

namespace trivium::router {
namespace {

v1::KvEvents Stored(uint64_t first, int blocks, bool is_snapshot) {
  v1::KvEvents events;
  events.set_first(first);
  events.set_is_snapshot_begin(is_snapshot);
  std::string& keys = *events.add_events()->mutable_stored()->mutable_keys();
  for (int i = 0; i < blocks; ++i) keys += fmt::format("{:016}", first * 1000 + i);
  return events;
}

class KvEventsTest : public testing::Test {
 protected:
  bool Send(WorkerIndex worker, const v1::KvEvents& events) {
    return all_.cluster.Report(worker, &events);
  }
  int64_t Pairs() { return all_.dispatcher.IndexCounts().pairs; }

  DispatchFixture all_;
};

TEST_F(KvEventsTest, TheIndexFollowsTheStreamsAndAsksForAnewOneAtAGap) {
  EXPECT_TRUE(Send(0, Stored(1, 10, true)));
  EXPECT_TRUE(Send(2, Stored(1, 5, true)));
  EXPECT_TRUE(Send(0, Stored(2, 3, false)));
  EXPECT_EQ(Pairs(), 18);
  EXPECT_FALSE(Send(0, Stored(4, 3, false)));
  all_.Pass(std::chrono::seconds(1));
  EXPECT_EQ(Pairs(), 5);
  EXPECT_TRUE(Send(0, Stored(9, 7, true)));
  EXPECT_EQ(Pairs(), 12);
}

TEST_F(KvEventsTest, ALostWorkerIsForgottenAndComesBackWithASnapshotOnly) {
  ASSERT_TRUE(Send(0, Stored(1, 10, true)));
  all_.cluster.SetStopped(0, true);
  all_.Pass(std::chrono::seconds(3));
  EXPECT_EQ(Pairs(), 0);
  all_.cluster.SetStopped(0, false);
  EXPECT_FALSE(Send(0, Stored(2, 4, false)));
  EXPECT_TRUE(Send(0, Stored(1, 4, true)));
  EXPECT_EQ(Pairs(), 4);
}

TEST_F(KvEventsTest, ARestartReplacesWhatWasHeld) {
  ASSERT_TRUE(Send(0, Stored(1, 10, true)));
  all_.cluster.Kill(0);
  all_.cluster.Restart(0);
  ASSERT_TRUE(Send(0, Stored(1, 2, true)));
  all_.Pass(std::chrono::seconds(1));
  EXPECT_EQ(Pairs(), 2);
}

}  // namespace
}  // namespace trivium::router
