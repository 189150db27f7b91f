#include "services/router/membership/worker_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

namespace trivium::router {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

constexpr char kFingerprint[] = "00112233445566778899aabbccddeeff";

v1::WorkerState State(const std::string& id, const std::string& role, uint64_t epoch) {
  v1::WorkerState state;
  state.set_worker_id(id);
  state.set_role(role);
  state.set_epoch(epoch);
  state.set_fingerprint(kFingerprint);
  state.set_numerics_class("fast/x");
  state.set_wire_format(1);
  state.set_blocks_total(10);
  state.set_blocks_free(7);
  state.set_block_tokens(16);
  state.set_requests_running(2);
  state.set_requests_waiting(1);
  state.set_requests_max(64);
  return state;
}

class WorkerTableTest : public testing::Test {
 protected:
  WorkerTableTest()
      : table_({.workers = {{"a:1", Role::kPrefill}, {"b:2", Role::kDecode}},
                .fingerprint = kFingerprint}) {
    Pass(milliseconds(1));
  }
  std::vector<LostWorker> Report(WorkerIndex worker, uint64_t epoch) {
    return table_.OnState(worker, Good(worker, epoch), clock_.Now());
  }
  static v1::WorkerState Good(WorkerIndex worker, uint64_t epoch) {
    return worker == 0 ? State("p", "prefill", epoch) : State("d", "decode", epoch);
  }
  std::vector<LostWorker> Pass(Duration time) {
    clock_.Advance(time);
    return table_.Tick(clock_.Now());
  }
  std::string StateOf(WorkerIndex worker) { return table_.Status(clock_.Now())[worker].state(); }
  std::string DetailOf(WorkerIndex worker) { return table_.Status(clock_.Now())[worker].detail(); }

  VirtualClock clock_;
  WorkerTable table_;
};

TEST_F(WorkerTableTest, AReportMakesAWorkerUsable) {
  EXPECT_EQ(StateOf(0), "unreachable");
  EXPECT_EQ(table_.IdOf(0), "a:1");
  EXPECT_TRUE(Report(0, 5).empty());
  EXPECT_EQ(StateOf(0), "ready");
  EXPECT_EQ(table_.IdOf(0), "p");
  const WorkerView& view = table_.cluster().workers[0];
  EXPECT_EQ(view.blocks_free, 7);
  EXPECT_EQ(view.requests, 3);
  EXPECT_EQ(StateOf(1), "unreachable");
}

TEST_F(WorkerTableTest, WhatDoesNotFitIsRefusedWithTheReason) {
  struct Case {
    const char* detail_has;
    std::function<void(v1::WorkerState*)> spoil;
  };
  const Case cases[] = {
      {"role", [](v1::WorkerState* s) { s->set_role("decode"); }},
      {"fingerprint", [](v1::WorkerState* s) { s->set_fingerprint("ffff"); }},
      {"wire_format", [](v1::WorkerState* s) { s->set_wire_format(4); }},
      {"cannot be", [](v1::WorkerState* s) { s->set_block_tokens(0); }},
      {"cannot be", [](v1::WorkerState* s) { s->set_blocks_free(11); }},
      {"cannot be", [](v1::WorkerState* s) { s->set_blocks_free(-1); }},
      {"cannot be", [](v1::WorkerState* s) { s->set_requests_running(-1); }},
      {"cannot be", [](v1::WorkerState* s) { s->set_epoch(0); }},
      {"cannot be", [](v1::WorkerState* s) { s->set_worker_id(""); }},
      {"also that of b:2", [](v1::WorkerState* s) { s->set_worker_id("d"); }},
  };
  Report(1, 5);
  for (const Case& one : cases) {
    v1::WorkerState state = Good(0, 5);
    one.spoil(&state);
    table_.OnState(0, state, clock_.Now());
    EXPECT_EQ(StateOf(0), "refused") << one.detail_has;
    EXPECT_THAT(DetailOf(0), HasSubstr(one.detail_has));
  }
  Report(0, 5);
  EXPECT_EQ(StateOf(0), "ready");
}

TEST_F(WorkerTableTest, StreamEndsSayWhy) {
  const std::pair<absl::Status, const char*> cases[] = {
      {absl::UnauthenticatedError("wrong token"), "refused"},
      {absl::PermissionDeniedError("no"), "refused"},
      {absl::UnimplementedError(""), "refused"},
      {Unavailable("connection refused \xff"), "unreachable"},
      {absl::OkStatus(), "unreachable"},
  };
  for (const auto& [status, state] : cases) {
    Report(0, 5);
    table_.OnStreamEnd(0, status);
    EXPECT_EQ(StateOf(0), state) << status;
    EXPECT_FALSE(DetailOf(0).empty());
    EXPECT_EQ(DetailOf(0).find('\xff'), std::string::npos);
  }
}

TEST_F(WorkerTableTest, SilenceLosesAWorkerOnceUntilItReportsAgain) {
  Report(0, 5);
  EXPECT_TRUE(Pass(milliseconds(700)).empty());
  EXPECT_TRUE(Pass(milliseconds(700)).empty());
  const std::vector<LostWorker> lost = Pass(milliseconds(100));
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_EQ(lost[0].worker, 0u);
  EXPECT_EQ(lost[0].epoch, 5u);
  EXPECT_EQ(StateOf(0), "suspect");
  EXPECT_TRUE(table_.IsGone(0, 5));
  EXPECT_TRUE(Pass(milliseconds(700)).empty());
  EXPECT_TRUE(Report(0, 5).empty());
  EXPECT_EQ(StateOf(0), "ready");
  EXPECT_FALSE(table_.IsGone(0, 5));
  EXPECT_TRUE(table_.IsGone(0, 4));
}

TEST_F(WorkerTableTest, AnOwnPauseIsNotHeldAgainstTheWorkers) {
  Report(0, 5);
  EXPECT_TRUE(Pass(std::chrono::seconds(20)).empty());
  EXPECT_EQ(StateOf(0), "ready");
}

TEST_F(WorkerTableTest, ARestartLosesTheFormerStart) {
  Report(0, 5);
  const std::vector<LostWorker> lost = Report(0, 6);
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_EQ(lost[0].epoch, 5u);
  EXPECT_EQ(StateOf(0), "ready");
}

TEST_F(WorkerTableTest, OneThatLeavesKeepsItsRequests) {
  v1::WorkerState state = Good(0, 5);
  state.set_draining(true);
  table_.OnState(0, state, clock_.Now());
  EXPECT_EQ(StateOf(0), "draining");
  table_.OnStreamEnd(0, absl::OkStatus());
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(Pass(milliseconds(700)).empty());
}

TEST_F(WorkerTableTest, WhatRequestsRunIntoLastsUntilAReportOrARestart) {
  Report(0, 5);
  table_.MarkFull(0, 5);
  EXPECT_TRUE(table_.cluster().workers[0].is_full);
  table_.MarkSuspect(0, 5, "broke");
  EXPECT_EQ(StateOf(0), "suspect");
  Report(0, 5);
  EXPECT_FALSE(table_.cluster().workers[0].is_full);
  EXPECT_EQ(StateOf(0), "ready");
  table_.Refuse(0, 5, "another model");
  Report(0, 5);
  EXPECT_EQ(StateOf(0), "refused");
  EXPECT_THAT(DetailOf(0), HasSubstr("another model"));
  table_.OnStreamEnd(0, Unavailable("connection reset"));
  Report(0, 5);
  EXPECT_THAT(DetailOf(0), HasSubstr("another model"));
  Report(0, 6);
  EXPECT_EQ(StateOf(0), "ready");
  table_.MarkSuspect(0, 5, "late news of the former start");
  table_.Refuse(0, 5, "late news of the former start");
  EXPECT_EQ(StateOf(0), "ready");
  table_.Refuse(0, 6, "");
  Report(0, 6);
  EXPECT_EQ(StateOf(0), "refused");
  EXPECT_FALSE(DetailOf(0).empty());
}

}  // namespace
}  // namespace trivium::router
