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

class AdmissionQueueTest : public testing::Test {
 protected:
  void Add(uint64_t ticket) { queue_.Add({ticket, {}, clock_.Now()}); }
  std::vector<uint64_t> Order() {
    std::vector<uint64_t> order;
    for (const auto* e = queue_.Front(); e != nullptr; e = queue_.After(e->ticket)) {
      order.push_back(e->ticket);
    }
    return order;
  }

  VirtualClock clock_;
  AdmissionQueue queue_{
      {.requests_max = 3, .timeout = seconds(10), .stage_missing_timeout = seconds(3)}};
};

TEST_F(AdmissionQueueTest, WhoComesBackTakesTheOldPlace) {
  for (const uint64_t ticket : {1, 2, 3}) Add(ticket);
  EXPECT_TRUE(queue_.Remove(1));
  EXPECT_FALSE(queue_.Remove(1));
  EXPECT_THAT(Order(), ElementsAre(2, 3));
  Add(1);
  EXPECT_THAT(Order(), ElementsAre(1, 2, 3));
}

TEST_F(AdmissionQueueTest, BoundTakesOutTheOneThatIsOver) {
  for (const uint64_t ticket : {1, 2, 3}) {
    Add(ticket);
    EXPECT_TRUE(queue_.EnforceBound(ticket).ok());
  }
  Add(4);
  EXPECT_EQ(queue_.EnforceBound(4).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Order(), ElementsAre(1, 2, 3));
  // One that found room at once does not wait, whatever the length.
  EXPECT_TRUE(queue_.EnforceBound(5).ok());
}

TEST_F(AdmissionQueueTest, EachWaitsItsOwnTime) {
  Add(1);
  clock_.Advance(seconds(6));
  Add(2);
  clock_.Advance(seconds(3));
  EXPECT_TRUE(queue_.Expire(clock_.Now(), absl::OkStatus()).empty());
  clock_.Advance(seconds(1));
  const auto expired = queue_.Expire(clock_.Now(), absl::OkStatus());
  EXPECT_THAT(Tickets(expired), ElementsAre(1));
  EXPECT_EQ(expired[0].status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Order(), ElementsAre(2));
}

TEST_F(AdmissionQueueTest, AMissingStageEndsTheWaitOfAll) {
  const absl::Status missing = Unavailable("no decode worker is reachable");
  Add(1);
  EXPECT_TRUE(queue_.Expire(clock_.Now(), missing).empty());
  clock_.Advance(seconds(2));
  EXPECT_TRUE(queue_.Expire(clock_.Now(), absl::OkStatus()).empty());  // it was there for a moment
  EXPECT_TRUE(queue_.Expire(clock_.Now(), missing).empty());
  clock_.Advance(seconds(2));
  Add(2);
  EXPECT_TRUE(queue_.Expire(clock_.Now(), missing).empty());
  clock_.Advance(seconds(1));
  const auto expired = queue_.Expire(clock_.Now(), missing);
  EXPECT_THAT(Tickets(expired), ElementsAre(1, 2));
  EXPECT_EQ(expired[1].status, missing);
  Add(3);  // still missing: no need to wait again
  EXPECT_THAT(Tickets(queue_.Expire(clock_.Now(), missing)), ElementsAre(3));
}

}  // namespace
}  // namespace trivium::router
