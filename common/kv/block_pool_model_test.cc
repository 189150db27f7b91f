// The pool and a tier below it against a model, in random histories: blocks are reserved, forked,
// shared, leased, evicted, saved and loaded again, domains come and go, and now and then the
// process ends.
#include "common/kv/block_pool_model.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <random>
#include <string>

namespace trivium::kv {
namespace {

void Act(Model& model, int32_t total, std::mt19937& random) {
  const size_t pick = random(), chain = random() % Chains().size();
  const auto upto = [&random](int32_t most) {
    return static_cast<int32_t>(random() % static_cast<uint32_t>(most));
  };
  switch (random() % 14) {
    case 0:
    case 1:
    case 2:
      model.Reserve(chain,
                    {.own = upto(std::min(total + 2, kChainBlocks + 2)) + 1,
                     .spare = upto(4) == 0 ? upto(4) : 0},
                    upto(kChainBlocks + 1), random() % 2 == 0);
      return random() % 2 == 0 ? model.Reload(model.owners() - 1) : void();
    case 3:
      return model.Reserve(
          chain, {.shared = upto(kSiblingBlocks + 1), .own = upto(3) + 1, .members = upto(4) + 1},
          upto(kChainBlocks + 1), random() % 2 == 0);
    case 4:
    case 5:
    case 6:
      return model.Publish(pick, upto(kChainBlocks + 2));
    case 7:
      return model.TakeLease(pick);
    case 8:
      return model.Extend(pick, upto(3) + 1);
    case 9:
      return random() % 8 == 0 ? model.DropAll() : model.Advance(upto(6));
    case 10:
      return model.EndLease(pick);
    case 11:
    case 12:
      return random() % 40 == 0 ? model.Crash() : model.Reload(pick);
    default:
      return model.Release(pick);
  }
}

TEST(BlockPoolModelTest, RandomHistoriesAgree) {
  constexpr int kHistories = 10000;
  constexpr uint32_t kSeed = 20240712;
  RecordProperty("seed", static_cast<int>(kSeed));
  const std::string disk = testing::TempDir() + "block_pool_model_disk";
  int64_t hits = 0, evictions = 0, reloads = 0, last_resorts = 0;
  for (int history = 0; history < kHistories; ++history) {
    std::mt19937 random(kSeed + static_cast<uint32_t>(history));
    const auto total = static_cast<int32_t>(random() % 24 + 1);
    std::filesystem::remove(disk);
    Model model(total, history % 8 == 0 ? disk : "");
    const int length = static_cast<int>(random() % 120 + 1);
    for (int i = 0; i < length; ++i) {
      SCOPED_TRACE(testing::Message() << "seed " << kSeed << " + " << history << ", action " << i);
      ASSERT_NO_FATAL_FAILURE(Act(model, total, random));
      ASSERT_NO_FATAL_FAILURE(model.Check());
    }
    ASSERT_NO_FATAL_FAILURE(model.DropAll());
    ASSERT_NO_FATAL_FAILURE(model.Check());
    hits += model.hits();
    evictions += model.evictions();
    reloads += model.reloads();
    last_resorts += model.last_resorts();
  }
  std::printf("seed %u: %ld hits, %ld evictions, %ld of them the last resort\n", kSeed, long{hits},
              long{evictions}, long{last_resorts});
  EXPECT_GT(hits, kHistories) << "histories in which little is found prove little";
  EXPECT_GT(evictions, kHistories);
  EXPECT_GT(reloads, kHistories / 10);
  std::filesystem::remove(disk);
  EXPECT_GT(last_resorts, kHistories / 10);
}

}  // namespace
}  // namespace trivium::kv
