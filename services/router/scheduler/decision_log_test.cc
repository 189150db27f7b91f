#include "services/router/scheduler/decision_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace trivium::router {
namespace {

using testing::HasSubstr;

Decision To(WorkerIndex prefill) {
  Decision decision;
  decision.placement = {prefill, 9};
  decision.reason = PlacementReason::kCacheHit;
  decision.prompt_tokens = 2048;
  decision.prefill = {{.worker = prefill, .estimate = {.cached_tokens = 1984, .wait_s = 0.0125}},
                      {.worker = 7, .blame = 2, .estimate = {.compute_s = 1.5}}};
  decision.decode = {{.worker = 9, .estimate = {.transfer_s = 0.25}}};
  decision.prefill_fitting = 5;
  return decision;
}

TEST(DecisionLogTest, KeepsTheLastOnesByRequest) {
  DecisionLog log(4);
  for (WorkerIndex i = 0; i < 4; ++i) {
    log.Add(i % 2 == 0 ? "even" : "odd", TenantId{"t" + std::to_string(i)}, To(i));
  }
  log.Add("last", TenantId{"t"}, To(4));
  EXPECT_EQ(log.size(), 4u);
  ASSERT_EQ(log.Find("even").size(), 1u);  // the oldest has gone
  ASSERT_EQ(log.Find("odd").size(), 2u);
  EXPECT_EQ(log.Find("odd")[0].decision.placement.prefill, 1u);
  EXPECT_EQ(log.Find("odd")[1].tenant, TenantId{"t3"});
  EXPECT_TRUE(log.Find("another").empty());
}

TEST(DecisionLogTest, TheTextNamesTheTakenTheOthersAndTheirCosts) {
  const std::string text =
      ToText(To(3), [](WorkerIndex worker) { return "w" + std::to_string(worker); });
  EXPECT_THAT(text, HasSubstr("cache_hit: prefill w3, decode w9, 2048 tokens"));
  EXPECT_THAT(text, HasSubstr("prefill workers with room: 5"));
  EXPECT_THAT(text, HasSubstr("* w3: 12.5 ms (wait 12.5"));
  EXPECT_THAT(text, HasSubstr("holds 1984 tokens\n"));
  EXPECT_THAT(text, HasSubstr("  w7: 1500.0 ms"));
  EXPECT_THAT(text, HasSubstr("failed this request before"));
  EXPECT_THAT(text, HasSubstr("* w9: 250.0 ms"));
}

}  // namespace
}  // namespace trivium::router
