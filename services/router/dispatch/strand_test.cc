#include "services/router/dispatch/strand.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace trivium::router {
namespace {

TEST(StrandTest, TasksOfATaskRunAfterIt) {
  Strand strand;
  std::vector<int> order;
  strand.Post([&] {
    strand.Post([&] {
      order.push_back(2);
      strand.Post([&] { order.push_back(3); });
    });
    order.push_back(1);
  });
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3}));
}

TEST(StrandTest, OneAtATimeAndInOrderOfEachThread) {
  constexpr int kThreads = 4, kTasks = 5000;
  Strand strand;
  std::vector<std::vector<int>> seen(kThreads);  // no lock of its own: the strand is one
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kTasks; ++i) strand.Post([&, t, i] { seen[t].push_back(i); });
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<int>& one : seen) {
    ASSERT_EQ(one.size(), static_cast<size_t>(kTasks));
    for (int i = 0; i < kTasks; ++i) ASSERT_EQ(one[i], i);
  }
}

}  // namespace
}  // namespace trivium::router
