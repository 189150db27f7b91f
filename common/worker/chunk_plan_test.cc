#include "common/worker/chunk_plan.h"

#include <gtest/gtest.h>

#include <random>

namespace trivium::worker {
namespace {

constexpr size_t kChunksMax = 1000;
constexpr int32_t kBlockTokens = 16;

PlanLimits Rows(int32_t rows, int32_t scored_rows, size_t chunks = kChunksMax) {
  return {.running = {},
          .budget = {.rows = rows},
          .scored_rows = scored_rows,
          .chunks = chunks,
          .block_tokens = kBlockTokens};
}

class ChunkPlanTest : public testing::Test {
 protected:
  ChunkPlanTest() {
    const uint32_t seed = std::random_device()();
    std::printf("seed %u\n", seed);
    random_.seed(seed);
  }
  int32_t Below(uint32_t bound) { return static_cast<int32_t>(random_() % bound); }
  std::vector<PromptProgress> RandomPrompts(uint32_t longest, bool some_scored) {
    std::vector<PromptProgress> prompts(static_cast<size_t>(1 + Below(12)));
    for (PromptProgress& prompt : prompts) {
      prompt.total = 1 + Below(longest);
      prompt.scored = some_scored && Below(3) == 0;
    }
    return prompts;
  }

  std::mt19937 random_;
};

// Moves every prompt on by its chunk; checks that chunks fit behind what is done.
StepLoad Apply(const std::vector<PlannedChunk>& chunks, std::vector<PromptProgress>* prompts) {
  StepLoad load;
  int64_t last = -1;
  for (const PlannedChunk& chunk : chunks) {
    PromptProgress& prompt = (*prompts)[chunk.prompt];
    EXPECT_GT(static_cast<int64_t>(chunk.prompt), last) << "not in order of arrival";
    last = static_cast<int64_t>(chunk.prompt);
    EXPECT_EQ(chunk.begin, prompt.done);
    EXPECT_GT(chunk.end, chunk.begin);
    EXPECT_LE(chunk.end, prompt.total);
    EXPECT_TRUE(chunk.end % kBlockTokens == 0 || chunk.end == prompt.total);
    load.Add(chunk.begin, chunk.end - chunk.begin);
    prompt.done = chunk.end;
  }
  return load;
}

void EraseDone(std::vector<PromptProgress>* prompts) {
  std::erase_if(*prompts, [](const PromptProgress& p) { return p.done == p.total; });
}

// Runs random prompts to their end and checks every rule on the way.
TEST_F(ChunkPlanTest, RulesHoldForRandomPrompts) {
  for (int round = 0; round < 300; ++round) {
    const int32_t budget = 16 + Below(200), scored_max = 16 + Below(100);
    std::vector<PromptProgress> prompts = RandomPrompts(500, true);
    while (!prompts.empty()) {
      const auto chunks = PlanChunks(prompts, Rows(budget, scored_max));
      ASSERT_FALSE(chunks.empty());
      EXPECT_EQ(chunks[0].prompt, 0u) << "the oldest always goes on";
      const auto rows = static_cast<int32_t>(Apply(chunks, &prompts).rows);
      int32_t scored = 0;
      for (const PlannedChunk& chunk : chunks) {
        if (prompts[chunk.prompt].scored) scored += chunk.end - chunk.begin;
      }
      EXPECT_LE(rows, budget);
      EXPECT_LE(scored, scored_max);
      // Whoever has work left could not have got another block.
      for (const PromptProgress& prompt : prompts) {
        const int32_t left = prompt.total - prompt.done;
        const int32_t room =
            prompt.scored ? std::min(budget - rows, scored_max - scored) : budget - rows;
        EXPECT_TRUE(left == 0 || room < std::min(left, 16));
      }
      EraseDone(&prompts);
    }
  }
}

TEST_F(ChunkPlanTest, ChunksAreCounted) {
  const std::vector<PromptProgress> prompts(10, {0, 1});
  EXPECT_EQ(PlanChunks(prompts, Rows(100, 100, 4)).size(), 4u);
  EXPECT_EQ(PlanChunks(prompts, Rows(100, 100)).size(), 10u);
  EXPECT_TRUE(PlanChunks({}, Rows(100, 100)).empty());
}

TEST_F(ChunkPlanTest, AShortPromptWaitsForOneStepAndALongOneKeepsHalf) {
  std::vector<PromptProgress> prompts = {{0, 4000}, {0, 3000}, {0, 60}, {0, 60}, {0, 120}};
  std::vector<PlannedChunk> chunks = PlanChunks(prompts, Rows(256, 256));
  Apply(chunks, &prompts);
  EXPECT_EQ(prompts[0].done, 128) << "and the block that is left";
  EXPECT_EQ(prompts[2].done, 60);
  EXPECT_EQ(prompts[3].done, 60);
  EXPECT_EQ(prompts[4].done, 0) << "it would take more than half";
  EXPECT_EQ(prompts[1].done, 0);
  for (int step = 0; step < 50; ++step) {
    std::vector<PromptProgress> more = {prompts[0], {0, 16}, {0, 16}, {0, 16}};
    Apply(PlanChunks(more, Rows(32, 32)), &more);
    EXPECT_EQ(more[0].done, prompts[0].done + 16) << "the oldest has a block whoever comes";
    prompts[0] = more[0];
  }
}

// A machine on which every step takes exactly what the law says.
class TimedPlanTest : public ChunkPlanTest {
 protected:
  static double Seconds(StepLoad load) {
    return 2e-3 + 2e-3 * static_cast<double>(load.rows) + 4e-6 * static_cast<double>(load.keys);
  }
  TimedPlanTest() {
    for (int i = 0; i < 1000; ++i) {
      StepLoad load;
      load.Add(Below(2000), 1 + Below(512));
      cost_.Observe(load.rows, load.keys, Seconds(load));
    }
  }
  PlanLimits Limits(StepLoad running, double seconds) const {
    return {.running = running,
            .budget = {.rows = 512, .seconds = seconds, .cost = &cost_},
            .scored_rows = 512,
            .chunks = kChunksMax,
            .block_tokens = kBlockTokens};
  }

  engine::StepCost cost_;
};

// Later chunks of a prompt see more keys, and become smaller; what runs is paid for first.
TEST_F(TimedPlanTest, StepsTakeAsLongAsTheyMay) {
  for (int round = 0; round < 100; ++round) {
    StepLoad running;
    for (int i = Below(8); i > 0; --i) running.Add(Below(1500), 1);
    const double seconds = 0.1 + 1e-3 * Below(400);
    std::vector<PromptProgress> prompts = RandomPrompts(3000, false);
    while (!prompts.empty()) {
      const std::vector<PromptProgress> before = prompts;
      const auto chunks = PlanChunks(prompts, Limits(running, seconds));
      ASSERT_FALSE(chunks.empty());
      const StepLoad load = running + Apply(chunks, &prompts);
      EXPECT_LE(load.rows, 512);
      const bool is_least = load.rows - running.rows <= kBlockTokens;
      EXPECT_TRUE(is_least || Seconds(load) <= seconds) << Seconds(load) << " of " << seconds;
      for (const PromptProgress& prompt : prompts) {
        StepLoad more = load;
        more.Add(prompt.done, std::min(prompt.total - prompt.done, kBlockTokens));
        EXPECT_TRUE(prompt.done == prompt.total || more.rows > 512 ||
                    Seconds(more) * 1.15 > seconds)
            << "the step is not full: " << Seconds(load) << " of " << seconds;
      }
      EraseDone(&prompts);
    }
  }
}

TEST_F(TimedPlanTest, OneBlockGoesOnWhereThereIsNoTime) {
  const std::vector<PromptProgress> prompts = {{320, 1000}, {0, 100}};
  for (const double seconds : {1e-6, 1e-3}) {
    const auto chunks = PlanChunks(prompts, Limits({4, 4000}, seconds));
    ASSERT_EQ(chunks.size(), 1u);
    EXPECT_EQ(chunks[0].prompt, 0u);
    EXPECT_EQ(chunks[0].end - chunks[0].begin, kBlockTokens);
  }
  const engine::StepCost unknown;
  PlanLimits limits = Limits({}, 1);
  limits.budget.cost = &unknown;
  EXPECT_EQ(PlanChunks(prompts, limits).size(), 1u);
}

TEST(LayersPerGroupTest, AtLeastFourGroupsOfLayersWhereThereAreFour) {
  for (int layers = 1; layers <= 200; ++layers) {
    const int group = LayersPerGroup(layers);
    const int groups = (layers + group - 1) / group;
    EXPECT_GE(groups, std::min(layers, 4)) << layers;
    EXPECT_LE(groups, 6) << layers;
  }
}

}  // namespace
}  // namespace trivium::worker
