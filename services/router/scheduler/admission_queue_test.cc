#include "services/router/scheduler/admission_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace trivium::router {
namespace {

using std::chrono::seconds;
using testing::ElementsAre;

std::vector<uint64_t> Tickets(const std::vector<AdmissionQueue::Expired>& expired) {
  std::vector<uint64_t> tickets;
  for (const auto& one : expired) tickets.push_back(one.ticket);
  return tickets;
}

// With room for 160 tokens, all of it taken.
WorkerView Ready(Role role) {
  WorkerView worker;
  worker.role = role;
  worker.condition = WorkerCondition::kReady;
  worker.blocks_total = 10;
  worker.block_tokens = 16;
  worker.requests_max = 8;
  return worker;
}
const ClusterSnapshot kBoth = {{Ready(Role::kPrefill), Ready(Role::kDecode)}};

// The one worker that could hold them is away, and may never come back.
ClusterSnapshot Away() {
  ClusterSnapshot cluster = kBoth;
  cluster.workers[1].condition = WorkerCondition::kUnreachable;
  cluster.workers.push_back(Ready(Role::kDecode));
  cluster.workers[2].blocks_total = 5;
  return cluster;
}
const ClusterSnapshot kAway = Away();

class AdmissionQueueTest : public testing::Test {
 protected:
  void Add(uint64_t ticket, bool has_begun = false, bool comes_back = false,
           bool has_pictures = false) {
    RequestShape shape;
    shape.prompt_tokens = shape.output_tokens = 60;
    shape.has_begun = has_begun;
    if (has_pictures) shape.picture_blocks = 2, shape.pictures_end = 32;
    queue_.Add(
        {.ticket = ticket, .shape = shape, .waiting_since = clock_.Now(), .comes_back = comes_back},
        clock_.Now());
  }
  // In which they are tried, where each waits for a worker that is away.
  std::vector<uint64_t> Order() {
    std::vector<uint64_t> order;
    clock_.Advance(AdmissionQueue::kHeldFor);
    queue_.Pump(kAway, clock_.Now(),
                {.look_up =
                     [&](uint64_t ticket) {
                       order.push_back(ticket);
                       return std::vector<Held>();
                     },
                 .place = {},
                 .refuse = {}});
    return order;
  }

  VirtualClock clock_;
  AdmissionQueue queue_{
      {.requests_max = 3, .timeout = seconds(10), .stage_missing_timeout = seconds(3)}};
};

TEST_F(AdmissionQueueTest, WhoComesBackStandsInFront) {
  for (const uint64_t ticket : {1, 2, 3}) Add(ticket);
  EXPECT_TRUE(queue_.Remove(2));
  EXPECT_FALSE(queue_.Remove(2));
  EXPECT_THAT(Order(), ElementsAre(1, 3));
  Add(2, false, true);
  EXPECT_THAT(Order(), ElementsAre(2, 1, 3));
}

TEST_F(AdmissionQueueTest, BoundTakesOutTheOneThatIsOver) {
  for (const uint64_t ticket : {1, 2, 3}) {
    Add(ticket);
    EXPECT_FALSE(queue_.EnforceBound().has_value());
  }
  Add(4);
  const auto over = queue_.EnforceBound();
  ASSERT_TRUE(over.has_value());
  EXPECT_EQ(over->ticket, 4);
  EXPECT_EQ(over->status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Order(), ElementsAre(1, 2, 3));
  // Those that come back are as many as workers admit, and stay.
  for (const uint64_t ticket : {5, 6}) Add(ticket, true, true);
  EXPECT_EQ(queue_.EnforceBound()->ticket, 3);
}

TEST_F(AdmissionQueueTest, EachWaitsItsOwnTime) {
  Add(1);
  clock_.Advance(seconds(6));
  Add(2);
  clock_.Advance(seconds(3));
  EXPECT_TRUE(queue_.Expire(clock_.Now(), kBoth).empty());
  clock_.Advance(seconds(1));
  const auto expired = queue_.Expire(clock_.Now(), kBoth);
  EXPECT_THAT(Tickets(expired), ElementsAre(1));
  EXPECT_EQ(expired[0].status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Order(), ElementsAre(2));
}

TEST_F(AdmissionQueueTest, WhoHasBegunWaitsAsLongAsThereMayBeRoom) {
  Add(1, true);
  Add(2);
  Add(3, true);
  clock_.Advance(seconds(1000));
  EXPECT_THAT(Tickets(queue_.Expire(clock_.Now(), kBoth)), ElementsAre(2));
  EXPECT_THAT(Tickets(queue_.Expire(clock_.Now(), kAway)), ElementsAre(1, 3));
}

TEST_F(AdmissionQueueTest, WhoNeedsAnEncoderWaitsAsLongAsThereMayBeOne) {
  ClusterSnapshot cluster = kBoth;
  cluster.workers[0].picture_blocks_total = 8;
  cluster.workers.push_back(Ready(Role::kEncode));  // its queue is full
  cluster.workers[2].encodes = true;
  Add(1, true, true, true);
  Add(2, false, false, true);
  clock_.Advance(seconds(1000));
  EXPECT_THAT(Tickets(queue_.Expire(clock_.Now(), cluster)), ElementsAre(2)) << "as text does";
  Add(3, false, false, true);
  Add(4);
  cluster.workers.pop_back();
  EXPECT_THAT(Tickets(queue_.Expire(clock_.Now(), cluster)), ElementsAre(1));
  clock_.Advance(seconds(3));
  const auto expired = queue_.Expire(clock_.Now(), cluster);
  EXPECT_THAT(Tickets(expired), ElementsAre(3));
  EXPECT_NE(Message(expired[0].status).find("no encode worker"), std::string::npos);
}

TEST_F(AdmissionQueueTest, WhosePicturesAreHeldNeedsNoEncoder) {
  ClusterSnapshot cluster = kBoth;
  cluster.workers[0].picture_blocks_total = 8;
  Add(1, true, true, true);
  clock_.Advance(AdmissionQueue::kHeldFor);
  queue_.Pump(cluster, clock_.Now(),
              {.look_up =
                   [](uint64_t) {
                     return std::vector<Held>{
                         {.worker = 0, .hot_tokens = 48, .memory_tokens = 48, .disk_tokens = 48}};
                   },
               .place = {},
               .refuse = {}});
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(queue_.Expire(clock_.Now(), cluster).empty());
    clock_.Advance(seconds(100));
  }
}

TEST_F(AdmissionQueueTest, AMissingStageEndsTheWaitOfAll) {
  const ClusterSnapshot missing = {{Ready(Role::kPrefill)}};
  Add(1);
  EXPECT_TRUE(queue_.Expire(clock_.Now(), missing).empty());
  clock_.Advance(seconds(2));
  EXPECT_TRUE(queue_.Expire(clock_.Now(), kBoth).empty());  // it was there for a moment
  EXPECT_TRUE(queue_.Expire(clock_.Now(), missing).empty());
  clock_.Advance(seconds(2));
  Add(2);
  EXPECT_TRUE(queue_.Expire(clock_.Now(), missing).empty());
  clock_.Advance(seconds(1));
  const auto expired = queue_.Expire(clock_.Now(), missing);
  EXPECT_THAT(Tickets(expired), ElementsAre(1, 2));
  EXPECT_EQ(expired[1].status, Unavailable("no decode worker is reachable"));
  Add(3);  // still missing: no need to wait again
  EXPECT_THAT(Tickets(queue_.Expire(clock_.Now(), missing)), ElementsAre(3));
}

}  // namespace
}  // namespace trivium::router
