#include "kernels/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace trivium::kernels {
namespace {

std::atomic<int> started{0};

TEST(ThreadPoolTest, CoversEveryItemOnce) {
  for (const int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const int64_t n : {0, 1, 2, 5, 64, 1001}) {
      for (const int64_t grain : {1, 3, 1000}) {
        std::vector<int> hits(n, 0);  // plain ints: a range given twice is a race for the sanitizer
        pool.ParallelFor(n, grain, [&](int64_t begin, int64_t end, int thread) {
          EXPECT_TRUE(thread >= 0 && thread < threads);
          for (int64_t i = begin; i < end; ++i) ++hits[i];
        });
        for (const int h : hits) ASSERT_EQ(h, 1);
      }
    }
  }
}

TEST(ThreadPoolTest, ManyCallsSeeEachOthersWrites) {
  ThreadPool pool(3);
  std::vector<int64_t> values(100, 0);
  for (int round = 0; round < 5000; ++round) {
    pool.ParallelFor(100, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) ++values[i];
    });
    // Other ranges than before: needs what the other threads wrote.
    pool.ParallelFor(50, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) values[99 - i] += values[i] - values[99 - i];
    });
  }
  for (const int64_t v : values) EXPECT_EQ(v, 5000);
}

// A worker that is held up until all else is done: with fixed shares this would not end.
TEST(ThreadPoolTest, TheOthersDoTheWorkOfOneThatIsHeldUp) {
  constexpr int64_t kItems = 64;
  ThreadPool pool(3);
  for (int round = 0; round < 100; ++round) {
    std::atomic<int64_t> done{0};
    std::atomic<bool> held{false};
    pool.ParallelFor(kItems, 1, [&](int64_t begin, int64_t end, int thread) {
      if (thread > 0 && !held.exchange(true)) {
        while (done < kItems - (end - begin)) std::this_thread::yield();
      }
      done += end - begin;
    });
    EXPECT_EQ(done, kItems);
  }
}

// What a call returns to is done with: nobody is inside its body any more.
TEST(ThreadPoolTest, NobodyIsInsideAfterwards) {
  ThreadPool pool(4);
  for (int round = 0; round < 5000; ++round) {
    std::atomic<int> inside{0};
    pool.ParallelFor(8, 1, [&](int64_t, int64_t, int) {
      ++inside;
      --inside;
    });
    ASSERT_EQ(inside, 0);
  }
}

TEST(ThreadPoolTest, SmallWorkStaysInTheCaller) {
  ThreadPool pool(4);
  pool.ParallelFor(7, 4, [&](int64_t begin, int64_t end, int thread) {
    EXPECT_EQ(thread, 0);
    EXPECT_EQ(begin, 0);
    EXPECT_EQ(end, 7);
  });
}

TEST(ThreadPoolTest, StartsEachWorkerOnce) {
  started = 0;
  {
    ThreadPool pool(5, [] { ++started; });
    pool.ParallelFor(5, 1, [](int64_t, int64_t, int) {});
    EXPECT_LE(started, 4);
  }
  EXPECT_EQ(started, 4);
}

// Far more threads than cores, several pools at a time: must end, and soon.
TEST(ThreadPoolTest, SurvivesCrowding) {
  std::vector<std::thread> callers;
  std::atomic<int64_t> total{0};
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      ThreadPool pool(4);
      for (int round = 0; round < 200; ++round) {
        pool.ParallelFor(16, 1, [&](int64_t begin, int64_t end, int) { total += end - begin; });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(total, 4 * 200 * 16);
}

}  // namespace
}  // namespace trivium::kernels
