#include "common/worker/prompt_schedule.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace trivium::worker {
namespace {

constexpr int kLayers = 30;
constexpr int32_t kBlockTokens = 16;
constexpr int kWidth = 3;

// A machine on which every step takes exactly what the law says.
double Seconds(StepLoad load) {
  return 2e-3 + 2e-3 * static_cast<double>(load.rows) + 4e-6 * static_cast<double>(load.keys);
}

// Prompts that are computed together, and how many layers each of their tokens has passed.
class Prompts {
 public:
  void Add(uint64_t number, int32_t total) {
    turns_.push_back({number, {.done = 0, .total = total}});
    passed_[number].resize(static_cast<size_t>(total));
  }
  void Remove(uint64_t number) {
    std::erase_if(turns_, [number](const PromptTurn& turn) { return turn.number == number; });
    passed_.erase(number);
  }
  std::span<const PromptTurn> turns() const { return turns_; }
  size_t count() const { return turns_.size(); }

  // What an engine would do with the step; each token passes each layer once and in order.
  StepLoad Run(const PromptStep& step, bool is_through) {
    StepLoad load;
    for (const PromptChunk& chunk : step.chunks) {
      for (int32_t i = chunk.begin; i < chunk.end; ++i) {
        int& passed = passed_.at(chunk.number).at(static_cast<size_t>(i));
        EXPECT_EQ(passed, step.layer_begin) << "token " << i << " of " << chunk.number;
        passed = step.layer_end;
      }
      StepLoad all;
      all.Add(chunk.begin, chunk.end - chunk.begin);
      load = load + all.Share(step.layer_end - step.layer_begin, kLayers);
      const auto turn = std::ranges::find(turns_, chunk.number, &PromptTurn::number);
      if (is_through) turn->progress.done = chunk.end;
    }
    std::erase_if(turns_,
                  [](const PromptTurn& turn) { return turn.progress.done == turn.progress.total; });
    return load;
  }
  void ExpectAllPassed() const {
    for (const auto& [number, tokens] : passed_) {
      for (const int passed : tokens) ASSERT_EQ(passed, kLayers) << number;
    }
  }

 private:
  std::vector<PromptTurn> turns_;
  std::map<uint64_t, std::vector<int>> passed_;
};

class PromptScheduleTest : public testing::TestWithParam<PrefillPolicy> {
 protected:
  PromptScheduleTest() {
    const uint32_t seed = std::random_device()();
    std::printf("seed %u\n", seed);
    random_.seed(seed);
    for (int i = 0; i < 1000; ++i) {
      StepLoad load;
      load.Add(Below(2000), 1 + Below(512));
      cost_.Observe(load.rows, load.keys, Seconds(load));
    }
  }
  int32_t Below(uint32_t bound) { return static_cast<int32_t>(random_() % bound); }
  PromptSchedule Make(PrefillPolicy policy, int32_t running_max = 0) const {
    return PromptSchedule({.policy = policy,
                           .layers = kLayers,
                           .running_max = running_max,
                           .scored_rows = 256,
                           .chunks = 1000,
                           .block_tokens = kBlockTokens});
  }
  // A step with nothing beside it.
  PromptStep RunStep(PromptSchedule& schedule, Prompts& prompts) const {
    const PromptStep plan = schedule.Plan(prompts.turns(), {}, Budget(8192, 0));
    prompts.Run(plan, schedule.is_through());
    return plan;
  }
  StepBudget Budget(int32_t rows, double seconds) const { return {rows, seconds, &cost_}; }

  std::mt19937 random_;
  engine::StepCost cost_;
};

// Prompts come, some go half-way, answers run beside them: every token of the others passes every
// layer once, and no step takes longer than it may where one layer or one block can be less.
TEST_P(PromptScheduleTest, EveryTokenPassesEveryLayerOnceAndStepsAreInTime) {
  for (int round = 0; round < 40; ++round) {
    PromptSchedule schedule = Make(GetParam(), 8);
    const int32_t rows_max = 600 + Below(3000);
    const double seconds = round % 4 == 0 ? 0 : 0.2 + 1e-3 * Below(400);
    Prompts prompts;
    uint64_t numbers = 0;
    for (int step = 0; step < 60 || prompts.count() > 0; ++step) {
      if (step < 60 && Below(4) == 0) prompts.Add(++numbers, 1 + Below(2500));
      if (numbers > 0 && Below(12) == 0) {
        const uint64_t gone = 1 + random_() % numbers;
        schedule.Drop(gone);
        prompts.Remove(gone);
      }
      StepLoad running;
      for (int i = Below(9); i > 0; --i) running.Add(Below(1500), 1);
      const PromptStep plan = schedule.Plan(prompts.turns(), running, Budget(rows_max, seconds));
      ASSERT_EQ(plan.chunks.empty(), prompts.count() == 0);
      int64_t rows = running.rows;
      std::vector<engine::SequenceRange> ranges;
      for (const PromptChunk& chunk : plan.chunks) rows += chunk.end - chunk.begin;
      EXPECT_LE(rows, rows_max);
      const engine::LayerPass pass = schedule.Pass(ranges);
      if (pass.layer_begin > 0) {
        EXPECT_EQ(pass.hidden->size(), static_cast<size_t>((rows - running.rows) * kWidth));
      }
      pass.hidden->assign(static_cast<size_t>((rows - running.rows) * kWidth), 1.0f);
      const StepLoad load = running + prompts.Run(plan, schedule.is_through());
      const bool is_least = plan.layer_end - plan.layer_begin == 1 || rows - running.rows <= 16;
      if (seconds > 0 && !is_least) {
        EXPECT_LE(Seconds(load), seconds * 1.001);
      }
    }
    prompts.ExpectAllPassed();
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, PromptScheduleTest,
                         testing::Values(PrefillPolicy::kChunked, PrefillPolicy::kLayered));

// As in the published method: a group of layers for every 512 rows.
TEST_F(PromptScheduleTest, WithoutATargetGroupsGrowInNumberWithTheCohort) {
  for (const auto& [rows, steps] : {std::pair(1, 1), {512, 1}, {513, 2}, {2048, 4}, {8000, 15}}) {
    PromptSchedule schedule = Make(PrefillPolicy::kLayered);
    Prompts prompts;
    prompts.Add(1, rows);
    int taken = 0;
    for (; prompts.count() > 0; ++taken) {
      RunStep(schedule, prompts);
    }
    EXPECT_EQ(taken, steps) << rows;
    prompts.ExpectAllPassed();
  }
}

TEST_F(PromptScheduleTest, WhoComesLaterWaitsForTheNextCohort) {
  PromptSchedule schedule = Make(PrefillPolicy::kLayered);
  Prompts prompts;
  prompts.Add(1, 2000);
  RunStep(schedule, prompts);
  prompts.Add(2, 30);
  for (int step = 1; step < 4; ++step) {
    const PromptStep plan = RunStep(schedule, prompts);
    ASSERT_EQ(plan.chunks.size(), 1u);
    EXPECT_EQ(plan.chunks[0].number, 1u);
    EXPECT_EQ(plan.limit == PromptStep::Limit::kWork, step == 3);
  }
  EXPECT_EQ(schedule.Plan(prompts.turns(), {}, Budget(8192, 0)).chunks[0].number, 2u);
}

// Of the rows between two layers, those of the prompt that has gone go, and no others.
TEST_F(PromptScheduleTest, ADroppedPromptTakesItsRowsAlong) {
  PromptSchedule schedule = Make(PrefillPolicy::kLayered);
  Prompts prompts;
  for (uint64_t number = 1; number <= 3; ++number) prompts.Add(number, 200);
  RunStep(schedule, prompts);
  std::vector<float>& hidden = *schedule.Pass({}).hidden;
  for (int row = 0; row < 600; ++row) hidden.insert(hidden.end(), kWidth, static_cast<float>(row));
  schedule.Drop(2);
  schedule.Drop(7);
  ASSERT_EQ(hidden.size(), 400u * kWidth);
  for (int row = 0; row < 400; ++row) {
    EXPECT_EQ(hidden[static_cast<size_t>(row * kWidth)], row < 200 ? row : row + 200);
  }
  schedule.Drop(1);
  schedule.Drop(3);
  prompts = Prompts();
  prompts.Add(4, 20);
  EXPECT_EQ(schedule.Plan(prompts.turns(), {}, Budget(8192, 0)).chunks[0].number, 4u);
}

TEST_F(PromptScheduleTest, SaysWhatBoundedAStep) {
  using Limit = PromptStep::Limit;
  const std::vector<PromptTurn> prompts = {{1, {0, 600}}};
  const auto limit = [&](PrefillPolicy policy, int32_t rows, double seconds) {
    return Make(policy).Plan(prompts, {}, Budget(rows, seconds)).limit;
  };
  EXPECT_EQ(limit(PrefillPolicy::kChunked, 600, 0), Limit::kWork);
  EXPECT_EQ(limit(PrefillPolicy::kChunked, 512, 0), Limit::kRows);
  EXPECT_EQ(limit(PrefillPolicy::kChunked, 8192, 0.5), Limit::kSeconds);
  EXPECT_EQ(limit(PrefillPolicy::kLayered, 8192, 0.5), Limit::kSeconds);
  EXPECT_EQ(limit(PrefillPolicy::kLayered, 8192, 100), Limit::kWork);
}

}  // namespace
}  // namespace trivium::worker
