// What the index takes, as the heap counts it: while it grows, shrinks and is churned. A process of
// its own, for it counts all that is allocated.
#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <deque>
#include <new>

#include "services/router/prefix_index/index_fixture.h"
#include "services/router/prefix_index/prefix_index.h"

namespace {

// What this process has taken from the heap and not given back, as the heap counts it.
std::atomic<int64_t> heap_bytes{0};
constexpr int64_t kHeapHeader = 8;

}  // namespace

void* operator new(size_t size) {
  void* memory = std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  heap_bytes += static_cast<int64_t>(malloc_usable_size(memory)) + kHeapHeader;
  return memory;
}
void operator delete(void* memory) noexcept {
  if (memory == nullptr) return;
  heap_bytes -= static_cast<int64_t>(malloc_usable_size(memory)) + kHeapHeader;
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept { operator delete(memory); }

namespace trivium::router {
namespace {

using std::chrono::seconds;

PrefixIndex::Options ForWorkers(size_t workers) { return {.workers = workers}; }

struct Shape {
  size_t workers, holders;  // of each block
};

class MemoryTest : public testing::TestWithParam<Shape> {
 protected:
  MemoryTest() : index_(ForWorkers(GetParam().workers)), next_(GetParam().workers) {
    for (size_t i = 0; i < next_.size(); ++i) {
      v1::KvEvents events;
      events.set_is_snapshot_begin(true);
      EXPECT_TRUE(index_.Apply(i, events));
    }
  }

  // All holders of the block get or lose it.
  void Send(uint64_t block, bool is_stored) {
    const kv::CutKey key{Mix(block), Mix(~block)};
    for (size_t i = 0; i < GetParam().holders; ++i) {
      const size_t worker = (block + i) % next_.size();
      v1::KvEvents events;
      events.set_first(next_[worker]++);
      v1::KvEvent& event = *events.add_events();
      AddKeys({&key, 1}, v1::KV_TIER_HOT,
              is_stored ? event.mutable_stored() : event.mutable_removed());
      ASSERT_TRUE(index_.Apply(worker, events));
    }
  }
  void ExpectSmall() {
    const PrefixIndex::Counts counts = index_.counts();
    const auto heap = static_cast<double>(heap_bytes - heap_before_);
    EXPECT_NEAR(static_cast<double>(counts.bytes), heap, 0.02 * heap + 300e3);
    EXPECT_LE(heap, 64 * counts.pairs + 1'000'000) << counts.pairs << " pairs";
  }

  const int64_t heap_before_ = heap_bytes;
  PrefixIndex index_;
  std::vector<uint64_t> next_;
};

TEST_P(MemoryTest, AtMost64BytesAPair) {
  uint64_t blocks = 0;
  while (index_.counts().pairs < 1'000'000) {
    for (int i = 0; i < 2000; ++i) Send(blocks++, true);
    ExpectSmall();
  }
  EXPECT_LE(heap_bytes - heap_before_, 64 * index_.counts().pairs);
  for (uint64_t block = 0; block < blocks; ++block) {
    if (Mix(block) % 10 != 0) Send(block, false);
    if (block % 20000 == 0) ExpectSmall();
  }
  ExpectSmall();
  EXPECT_LT(index_.counts().pairs, 150'000);
}

INSTANTIATE_TEST_SUITE_P(Shapes, MemoryTest,
                         testing::Values(Shape{64, 1}, Shape{64, 3}, Shape{64, 5}, Shape{1024, 25},
                                         Shape{1024, 200}));

// An hour in which each of 16 workers computes 640 tokens a second into a pool of 3,000 blocks, a
// gigabyte of the model that the figures are of, and evicts the oldest; what one of them computes
// is found at another one as often as not. One of them restarts every minute.
TEST(PrefixIndexMemoryTest, AnHourOfChurnDoesNotGrow) {
  constexpr size_t kWorkers = 16, kBlocksASecond = 40, kPoolBlocks = 3000;
  PrefixIndex index(ForWorkers(kWorkers));
  std::vector<std::deque<kv::CutKey>> pools(kWorkers);
  std::vector<uint64_t> next(kWorkers);
  uint64_t name = 0, events_sent = 0;
  const auto begin = [&](size_t worker) {
    v1::KvEvents events;
    events.set_is_snapshot_begin(true);
    events.set_first(next[worker] = 1);
    ASSERT_TRUE(index.Apply(worker, events));
    pools[worker].clear();
  };
  for (size_t worker = 0; worker < kWorkers; ++worker) begin(worker);
  int64_t heap_most[2] = {0, 0};
  for (int second = 0; second < 3600; ++second) {
    const TimePoint now{seconds(second)};
    if (second % 60 == 59) begin(static_cast<size_t>(second / 60) % kWorkers);
    for (size_t worker = 0; worker < kWorkers; ++worker) {
      v1::KvEvents events;
      events.set_first(next[worker]);
      for (size_t i = 0; i < kBlocksASecond; ++i) {
        const uint64_t block = worker % 2 == 0 ? ++name : name - i;
        const kv::CutKey key{Mix(block), block};
        index.Expect(worker, {&key, 1}, now);
        pools[worker].push_back(key);
        AddKeys({&key, 1}, v1::KV_TIER_HOT, events.add_events()->mutable_stored());
        if (pools[worker].size() <= kPoolBlocks) continue;
        AddKeys({&pools[worker].front(), 1}, v1::KV_TIER_HOT,
                events.add_events()->mutable_removed());
        pools[worker].pop_front();
      }
      next[worker] += static_cast<uint64_t>(events.events_size());
      events_sent += static_cast<uint64_t>(events.events_size());
      ASSERT_TRUE(index.Apply(worker, events));
    }
    for (int tick = 0; tick < 40; ++tick) index.Tick(now);
    if (second >= 600) {
      heap_most[second >= 1800] = std::max(heap_most[second >= 1800], heap_bytes.load());
    }
  }
  size_t held = 0;
  for (const auto& pool : pools) held += pool.size();
  EXPECT_GT(events_sent, 4'000'000u);
  EXPECT_EQ(index.counts().pairs, static_cast<int64_t>(held));
  EXPECT_EQ(index.counts().gaps_total, 0);
  EXPECT_LE(heap_most[1], heap_most[0] + heap_most[0] / 20);
}

}  // namespace
}  // namespace trivium::router
