#include "services/router/scheduler/encode_placement.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "services/router/scheduler/scheduler_fixture.h"

namespace trivium::router {
namespace {

WorkerView Encoder(int32_t waiting = 0, double seconds_per_slice = 0.1) {
  return {.role = Role::kEncode,
          .condition = WorkerCondition::kReady,
          .epoch = 1,
          .numerics_class = "fast/amx",
          .encodes = true,
          .slices_waiting = waiting,
          .slices_max = 1024,
          .seconds_per_slice = seconds_per_slice};
}

SlicesShape Shape(int32_t pictures, int32_t slices_each) {
  SlicesShape shape{.slices = {}, .numerics_class = "fast/avx2", .failed = {}};
  for (int32_t i = 0; i < pictures * slices_each; ++i) {
    shape.slices.push_back({.picture = i / slices_each});
  }
  return shape;
}

std::vector<int64_t> CountsOf(const ClusterSnapshot& cluster, const SlicesShape& shape) {
  const auto places = SpreadSlices(cluster, shape);
  TRIVIUM_CHECK(places.ok(), "{}", Message(places.status()));
  TRIVIUM_CHECK(places->size() == shape.slices.size(), "not every slice has a worker");
  std::vector<int64_t> counts;
  for (WorkerIndex i = 0; i < cluster.workers.size(); ++i) {
    counts.push_back(std::ranges::count(*places, i, &SlicePlace::worker));
  }
  return counts;
}

TEST(EncodePlacementTest, SlicesSpreadOverAllSoThatTheLastIsReadySoonest) {
  EXPECT_EQ(CountsOf({.workers = {Encoder(), Encoder()}}, Shape(1, 4)),
            (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(CountsOf({.workers = {Encoder(), Encoder()}}, Shape(4, 1)),
            (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(CountsOf({.workers = {Encoder(), Encoder(4)}}, Shape(1, 4)),
            (std::vector<int64_t>{4, 0}))
      << "one has work already";
  EXPECT_EQ(CountsOf({.workers = {Encoder(0, 0.1), Encoder(0, 0.3)}}, Shape(1, 8)),
            (std::vector<int64_t>{6, 2}))
      << "one is slow";
}

TEST(EncodePlacementTest, WhatWasSentCountsBeforeItIsReported) {
  WorkerView busy = Encoder();
  busy.own_slices = 3;
  EXPECT_EQ(CountsOf({.workers = {busy, Encoder()}}, Shape(1, 3)), (std::vector<int64_t>{0, 3}));
}

TEST(EncodePlacementTest, AHolderIsAskedWhileItHasRoom) {
  SlicesShape shape = Shape(1, 3);
  for (SliceToPlace& slice : shape.slices) slice.holder = 1;
  EXPECT_EQ(CountsOf({.workers = {Encoder(), Encoder(5)}}, shape), (std::vector<int64_t>{0, 3}));
  EXPECT_EQ(CountsOf({.workers = {Encoder(), Encoder(kSliceBacklog)}}, shape),
            (std::vector<int64_t>{3, 0}));
}

TEST(EncodePlacementTest, WhoHasRoomPullsFromAHolderThatHasNone) {
  SlicesShape shape = Shape(1, 2);
  for (SliceToPlace& slice : shape.slices) slice.holder = 1;
  const auto places = [&](const ClusterSnapshot& cluster) { return *SpreadSlices(cluster, shape); };
  using Places = std::vector<SlicePlace>;
  EXPECT_EQ(places({.workers = {Encoder(), Encoder(kSliceBacklog)}}), (Places{{0, 1}, {0, 1}}));
  EXPECT_EQ(places({.workers = {Encoder(), Encoder(kSliceBacklog - 1)}}), (Places{{1}, {1}}));
  EXPECT_EQ(places({.workers = {Encoder(kSliceBacklog), Encoder(kSliceBacklog)}}),
            (Places{{0, 1}, {0, 1}}))
      << "it costs less there";
  EXPECT_EQ(places({.workers = {Encoder(99), Encoder(kSliceBacklog)}}), (Places{{1}, {1}}));
  WorkerView other = Encoder();
  other.numerics_class = "fast/avx2";
  EXPECT_EQ(places({.workers = {other, Encoder(kSliceBacklog)}}), (Places{{0}, {0}}))
      << "what it calls them is another name";
  shape.failed = {1};
  EXPECT_EQ(places({.workers = {Encoder(), Encoder(kSliceBacklog)}}), (Places{{0}, {0}}));
}

TEST(EncodePlacementTest, WhoHasFailedIsAskedLast) {
  SlicesShape shape = Shape(1, 2);
  shape.failed = {0};
  EXPECT_EQ(CountsOf({.workers = {Encoder(), Encoder(9)}}, shape), (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(CountsOf({.workers = {Encoder()}}, shape), (std::vector<int64_t>{2}));
}

TEST(EncodePlacementTest, NumericsClassesPairUnderFastAlone) {
  SlicesShape shape = Shape(1, 1);
  shape.numerics_class = "batch_invariant/amx";
  const ClusterSnapshot cluster{.workers = {Encoder()}};
  const absl::Status status = SpreadSlices(cluster, shape).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(Message(status).find("encode"), std::string::npos);
}

WorkerView PrefillWithPictures() {
  WorkerView worker = Worker(Role::kPrefill);
  worker.picture_blocks_total = 8;
  return worker;
}

TEST(EncodePlacementTest, WhoHoldsThePicturesNeedsNoEncoder) {
  const WorkerView prefill = PrefillWithPictures();
  WorkerView decode = prefill;
  decode.role = Role::kDecode;
  ClusterSnapshot cluster{.workers = {prefill, prefill, decode, Encoder(kSliceBacklog)}};
  RequestShape shape{.prompt_tokens = 100, .output_tokens = 8, .picture_blocks = 4};
  shape.pictures_end = 70;
  shape.held = {{.worker = 1, .hot_tokens = 64, .memory_tokens = 64, .disk_tokens = 64}};
  EXPECT_EQ(Choose(cluster, shape).status().code(), absl::StatusCode::kAborted)
      << "a part of them is not enough, and nobody waits behind it";
  shape.held = {{.worker = 1, .hot_tokens = 80, .memory_tokens = 80, .disk_tokens = 80}};
  for (const bool is_there : {true, false}) {
    if (!is_there) cluster.workers.pop_back();
    const auto placement = Choose(cluster, shape);
    ASSERT_TRUE(placement.ok()) << placement.status();
    EXPECT_EQ(placement->prefill, 1u);
  }
  cluster.workers[1].is_full = true;
  EXPECT_EQ(Choose(cluster, shape).status().code(), absl::StatusCode::kAborted)
      << "it may have room soon";
}

TEST(EncodePlacementTest, ADecodeWorkerThatHoldsThePicturesMayPrefillTheRest) {
  const StepCost cost{.per_row_s = 1e-3, .base_s = 2e-3, .per_key_s = 1e-8};
  WorkerView prefill = PrefillWithPictures();
  prefill.step_cost = cost;
  WorkerView decode = prefill;
  decode.role = Role::kDecode;
  const ClusterSnapshot cluster{.workers = {prefill, decode, Encoder()},
                                .kv_bytes_per_token = 23040};
  RequestShape shape{.prompt_tokens = 100, .output_tokens = 8, .picture_blocks = 4};
  const auto prefill_of = [&](int32_t pictures_end) {
    shape.pictures_end = pictures_end;
    return Choose(cluster, shape)->prefill;
  };
  shape.held = {{.worker = 1, .hot_tokens = 96, .memory_tokens = 96, .disk_tokens = 96}};
  EXPECT_EQ(prefill_of(96), kNoWorker);
  EXPECT_EQ(prefill_of(97), 0u) << "it has no multimedia tokens to compute the last picture from";
}

TEST(EncodePlacementTest, AMissingStageIsNamedAndTextNeedsNone) {
  const WorkerView prefill = PrefillWithPictures();
  WorkerView decode = prefill;
  decode.role = Role::kDecode;
  ClusterSnapshot cluster{.workers = {prefill, decode}};
  RequestShape shape{.prompt_tokens = 40, .output_tokens = 8};
  EXPECT_TRUE(Choose(cluster, shape).ok());
  shape.picture_blocks = 4;
  shape.pictures_end = 20;
  EXPECT_EQ(Choose(cluster, shape).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(Message(CheckPictureStages(cluster)).find("no encode worker"), std::string::npos);
  cluster.workers.push_back(Encoder());
  EXPECT_TRUE(CheckPictureStages(cluster).ok());
  EXPECT_TRUE(Choose(cluster, shape).ok());
  cluster.workers[2].slices_waiting = kSliceBacklog;
  EXPECT_EQ(Choose(cluster, shape).status().code(), absl::StatusCode::kAborted)
      << "nobody waits behind it";
  cluster.workers[2].slices_waiting = 0;
  shape.picture_blocks = 9;
  EXPECT_EQ(Choose(cluster, shape).status().code(), absl::StatusCode::kInvalidArgument);
  cluster.workers[0].picture_blocks_total = 0;
  EXPECT_NE(Message(CheckPictureStages(cluster)).find("no reachable prefill worker"),
            std::string::npos);
}

}  // namespace
}  // namespace trivium::router
