// What the dispatcher makes of the KV events of its workers' Watch streams, and what requests of
// one sharing domain and of others make of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "services/router/dispatch/kv_placement_fixture.h"

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

TEST_F(KvPlacementTest, ARequestGoesToWhoHoldsItsPromptInItsDomainAlone) {
  using testing::HasSubstr;
  using testing::StartsWith;
  for (const WorkerIndex worker : {0, 1, 2, 3}) {
    ASSERT_TRUE(Send(worker, worker % 2 == 1 ? Holds(1) : Stored(1, 0, true)));
  }
  EXPECT_THAT(Place(Ids(0), DomainOf(1)), StartsWith("local: prefill there too, decode decode-3"));
  EXPECT_THAT(Place(Ids(0), DomainOf(1)), HasSubstr("holds 96 tokens"));
  ASSERT_TRUE(Send(3, Stored(1, 0, true)));
  EXPECT_THAT(Place(Ids(0), DomainOf(1)), StartsWith("cache_hit: prefill prefill-1"));
  EXPECT_THAT(Place(Ids(0), DomainOf(2)), StartsWith("least_loaded: prefill prefill-0"));
  EXPECT_THAT(Place(Ids(7), DomainOf(1)), StartsWith("least_loaded: "));
  EXPECT_THAT(Place(Ids(0), {}), StartsWith("least_loaded: "));
}

class LoadPlacementTest : public KvPlacementTest {
 protected:
  LoadPlacementTest() : KvPlacementTest({.policy = Policy::kLeastLoaded}) {}
};

TEST_F(LoadPlacementTest, WhatWorkersHoldDrawsNobody) {
  using testing::StartsWith;
  for (const WorkerIndex worker : {1, 3}) ASSERT_TRUE(Send(worker, Holds(1)));
  EXPECT_THAT(Place(Ids(0), DomainOf(1)), StartsWith("least_loaded: prefill prefill-1, decode"));
  EXPECT_THAT(Place(Ids(0), DomainOf(1)), StartsWith("least_loaded: prefill prefill-0, decode"));
}

TEST_F(KvPlacementTest, ABurstOfOneDomainFollowsItsFirst) {
  using testing::HasSubstr;
  const bool is_first = Place(Ids(0), DomainOf(1)).find("prefill prefill-0") != std::string::npos;
  const std::string there = is_first ? "prefill prefill-0" : "prefill prefill-1";
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT(Place(Ids(0), DomainOf(1)), HasSubstr("cache_hit: " + there));
  }
  EXPECT_THAT(Place(Ids(0), DomainOf(2)), testing::Not(HasSubstr(there + ",")));
}

TEST_F(KvPlacementTest, ADecodeWorkerThatPrefillsServesTheWholeAnswer) {
  ASSERT_TRUE(Send(2, Holds(1)));
  RunRequest request = DispatchFixture::Request(Ids(0), 20);
  request.kv_domains = DomainOf(1);
  const DispatchFixture::Wanted wanted = all_.Want(request);
  const auto sink = std::make_shared<RecordingSink>();
  runs_.push_back(all_.dispatcher.Submit(std::move(request), sink));
  EXPECT_EQ(all_.cluster.calls_opened(), 1);
  std::mt19937_64 random(7);
  for (int i = 0; i < 1000 && !sink->has_ended(); ++i) {
    if (!all_.cluster.StepRandomCall(random, 0)) all_.Pass(Dispatcher::kTickInterval);
  }
  const RecordingSink::Record record = sink->Get();
  ASSERT_TRUE(record.done.has_value());
  EXPECT_EQ(record.ids, wanted.ids);
  EXPECT_EQ(record.done->served_by().prefill_worker(), "");
  EXPECT_EQ(record.done->served_by().attempts(), 1);
  EXPECT_EQ(record.done->served_by().kv_bytes_moved(), 0);
}

// It dies in the middle: the others know nothing of the prompt and serve it the usual way.
TEST_F(KvPlacementTest, ADeathOfTheOneThatPrefillsIsNotSeen) {
  for (int tokens = 0; tokens < 6; ++tokens) {
    DispatchFixture all;
    const v1::KvEvents holds = Holds(1);
    ASSERT_TRUE(all.cluster.Report(2, &holds));
    RunRequest request = DispatchFixture::Request(Ids(0), 20);
    request.sampling.set_ignore_eos(true);
    request.kv_domains = DomainOf(1);
    const DispatchFixture::Wanted wanted = all.Want(request);
    const auto sink = std::make_shared<RecordingSink>();
    const auto run = all.dispatcher.Submit(std::move(request), sink);
    std::mt19937_64 random(7);
    for (int i = 0; i < tokens; ++i) all.cluster.StepRandomCall(random, 0);
    all.cluster.Kill(2);
    for (int i = 0; i < 5000 && !sink->has_ended(); ++i) {
      if (!all.cluster.StepRandomCall(random, 0)) all.Pass(Dispatcher::kTickInterval);
    }
    const RecordingSink::Record record = sink->Get();
    ASSERT_TRUE(record.done.has_value()) << "after " << tokens << " events";
    EXPECT_EQ(record.ids, wanted.ids);
    EXPECT_EQ(record.done->served_by().attempts(), 2);
    EXPECT_EQ(record.done->served_by().decode_worker(), "decode-3");
  }
}

}  // namespace
}  // namespace trivium::router
