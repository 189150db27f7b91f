// The index against brute force: while it grows, loses entries and rebuilds itself.
#include "services/router/semantic_cache/vector_index.h"

#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <thread>

#include "services/router/semantic_cache/cache_fixture.h"

namespace trivium::router {
namespace {

constexpr int32_t kDim = 32;

float Dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return static_cast<float>(sum);
}

// Centres with points around them, as questions are.
std::vector<float> Draw(std::mt19937& random, const std::vector<std::vector<float>>& centres) {
  return Near(centres[random() % centres.size()], 0.8, random);
}

struct VectorIndexTest : testing::Test {
  VectorIndexTest() {
    std::printf("seed %u\n", seed);
    for (int i = 0; i < 60; ++i) centres.push_back(RandomUnit(random, kDim));
  }
  void Add() {
    all[++last] = Draw(random, centres);
    index.Add(last, all[last]);
  }
  void Remove(uint64_t id) {
    index.Remove(id);
    all.erase(id);
  }
  // The part of searches that find the nearest; what is found is as near as is said, and there.
  double Recall(int searches) {
    int right = 0;
    for (int i = 0; i < searches; ++i) {
      const std::vector<float> query = Draw(random, centres);
      const auto found = index.Search(query, 8);
      float best = -2;
      for (const auto& [id, vector] : all) best = std::max(best, Dot(query, vector));
      for (size_t j = 0; j < found.size(); ++j) {
        EXPECT_TRUE(all.contains(found[j].id)) << "removed, or never there";
        EXPECT_NEAR(found[j].similarity, Dot(query, all[found[j].id]), 1e-5);
        if (j > 0) {
          EXPECT_LE(found[j].similarity, found[j - 1].similarity);
        }
      }
      right += !found.empty() && found[0].similarity > best - 1e-5;
    }
    return double(right) / searches;
  }

  const uint32_t seed = std::random_device()();
  std::mt19937 random{seed};
  std::vector<std::vector<float>> centres;
  VectorIndex index{kDim, 4000};
  std::map<uint64_t, std::vector<float>> all;
  uint64_t last = 0;
};

TEST_F(VectorIndexTest, SmallIsExact) {
  EXPECT_TRUE(index.Search(centres[0], 8).empty());
  for (size_t i = 0; i < VectorIndex::kExactMax; ++i) Add();
  for (uint64_t id = 1; id < last; id += 3) Remove(id);
  EXPECT_FALSE(index.Upkeep());
  EXPECT_EQ(index.graph_size(), 0u);
  EXPECT_EQ(Recall(100), 1.0);
}

TEST_F(VectorIndexTest, LargeFindsTheNearestAndForgetsWhatWasRemoved) {
  for (int i = 0; i < 4000; ++i) Add();
  while (index.Upkeep()) {
  }
  EXPECT_EQ(index.graph_size(), 4000 - VectorIndex::kExactMax);
  EXPECT_EQ(index.size(), all.size());
  EXPECT_GE(Recall(200), 0.97);
  for (uint64_t id = 1; id <= 3000; ++id) {
    if (id % 3 != 0) Remove(id);
  }
  EXPECT_GT(index.tombstones(), 0u);
  EXPECT_GE(Recall(100), 0.97);
  // Some more come and go while the graph is built anew.
  bool is_more = true;
  while (is_more) {
    is_more = index.Upkeep(16);
    if (all.size() < 3000 && last < 6000) Add();
    if (random() % 4 == 0) Remove(all.begin()->first);
  }
  EXPECT_EQ(index.size(), all.size());
  EXPECT_GE(Recall(200), 0.97);
  while (!all.empty()) Remove(all.begin()->first);
  while (index.Upkeep()) {
  }
  EXPECT_EQ(index.size(), 0u);
  EXPECT_TRUE(index.Search(centres[0], 8).empty());
}

TEST_F(VectorIndexTest, SearchesWhileItChanges) {
  for (int i = 0; i < 1500; ++i) Add();
  std::atomic<bool> is_over = false;
  std::thread searcher([&] {
    std::mt19937 mine(1);
    while (!is_over) {
      for (const auto& match : index.Search(Draw(mine, centres), 8)) EXPECT_GT(match.id, 0u);
    }
  });
  for (int i = 0; i < 1500; ++i) {
    Add();
    if (i % 2 == 0) Remove(all.begin()->first);
    if (i % 16 == 0) index.Upkeep(16);
  }
  is_over = true;
  searcher.join();
  while (index.Upkeep()) {
  }
  EXPECT_EQ(index.size(), all.size());
  EXPECT_GE(Recall(100), 0.97);
}

}  // namespace
}  // namespace trivium::router
