#include "common/worker/chunk_plan.h"

#include <gtest/gtest.h>

#include <random>

namespace trivium::worker {
namespace {

constexpr size_t kChunksMax = 1000;

// Runs random prompts to their end and checks every rule on the way.
TEST(ChunkPlanTest, RulesHoldForRandomPrompts) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 300; ++round) {
    const auto budget = static_cast<int32_t>(16 + random() % 200);
    const auto scored_max = static_cast<int32_t>(16 + random() % 100);
    std::vector<PromptProgress> prompts(1 + random() % 12);
    for (PromptProgress& prompt : prompts) {
      prompt.total = static_cast<int32_t>(1 + random() % 500);
      prompt.scored = random() % 3 == 0;
    }
    while (!prompts.empty()) {
      const auto chunks = PlanChunks(prompts, {budget, scored_max, kChunksMax});
      ASSERT_FALSE(chunks.empty());
      EXPECT_EQ(chunks[0].prompt, 0u) << "the oldest always goes on";
      int32_t rows = 0, scored = 0;
      for (const PlannedChunk& chunk : chunks) {
        PromptProgress& prompt = prompts[chunk.prompt];
        ASSERT_EQ(chunk.begin, prompt.done);
        ASSERT_GT(chunk.end, chunk.begin);
        ASSERT_LE(chunk.end, prompt.total);
        EXPECT_TRUE(chunk.end % 16 == 0 || chunk.end == prompt.total);
        prompt.done = chunk.end;
        rows += chunk.end - chunk.begin;
        if (prompt.scored) scored += chunk.end - chunk.begin;
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
      std::erase_if(prompts, [](const PromptProgress& p) { return p.done == p.total; });
    }
  }
}

TEST(ChunkPlanTest, ChunksAreCounted) {
  const std::vector<PromptProgress> prompts(10, {0, 1});
  EXPECT_EQ(PlanChunks(prompts, {100, 100, 4}).size(), 4u);
  EXPECT_EQ(PlanChunks(prompts, {100, 100, kChunksMax}).size(), 10u);
  EXPECT_TRUE(PlanChunks({}, {100, 100, kChunksMax}).empty());
}

TEST(ChunkPlanTest, AtLeastFourGroupsOfLayersWhereThereAreFour) {
  for (int layers = 1; layers <= 200; ++layers) {
    const int group = LayersPerGroup(layers);
    const int groups = (layers + group - 1) / group;
    EXPECT_GE(groups, std::min(layers, 4)) << layers;
    EXPECT_LE(groups, 6) << layers;
  }
}

}  // namespace
}  // namespace trivium::worker
