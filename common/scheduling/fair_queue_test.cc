// Orders by hand, against an oracle that keeps no state but the definition, and what nobody may do
// to anybody else.
#include "common/scheduling/fair_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <vector>

namespace trivium::scheduling {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::ElementsAre;
using Entry = FairQueue::Entry;
using Outcome = FairQueue::Outcome;
using Verdict = FairQueue::Verdict;

TimePoint At(Duration since) { return TimePoint(since); }

// Up to `count` of them, each charged `tokens(ticket)`.
std::vector<uint64_t> TakeSome(
    FairQueue& queue, int count,
    const std::function<int64_t(uint64_t)>& tokens = [](uint64_t) { return 100; }) {
  std::vector<uint64_t> taken;
  for (int i = 0; i < count && queue.size() > 0; ++i) {
    bool is_first = true;
    queue.Serve(At(seconds(0)), [&](uint64_t ticket) -> Outcome {
      if (!std::exchange(is_first, false)) return {Verdict::kPassedOver};
      taken.push_back(ticket);
      return {Verdict::kTaken, tokens(ticket)};
    });
  }
  return taken;
}

TEST(FairQueueTest, InsideATenantThePriorityThenTheHitRateThenTheArrivalDecides) {
  FairQueue queue({.age = FairQueue::kNoAging});
  queue.Add({.ticket = 1, .hit_rate = 0.2, .arrived = At(seconds(1))});
  queue.Add({.ticket = 2, .hit_rate = 0.9, .arrived = At(seconds(500))});
  queue.Add({.ticket = 3, .hit_rate = 0.9, .arrived = At(seconds(2000))});
  queue.Add({.ticket = 4, .priority = -1, .hit_rate = 1, .arrived = At(seconds(0))});
  queue.Add({.ticket = 5, .priority = 1, .hit_rate = 0, .arrived = At(seconds(5000))});
  EXPECT_THAT(TakeSome(queue, 9), ElementsAre(5, 2, 3, 1, 4));
}

TEST(FairQueueTest, WithoutAgeingTheOrderIsExactlyByHitRate) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  FairQueue queue({.age = FairQueue::kNoAging});
  std::map<uint64_t, double> rates;
  for (uint64_t ticket = 1; ticket <= 1000; ++ticket) {
    const int32_t prompt = 1 + static_cast<int32_t>(random() % 4096);
    rates[ticket] = static_cast<double>(random() % (prompt + 1)) / prompt;
    queue.Add({.ticket = ticket, .hit_rate = rates[ticket], .arrived = At(milliseconds(ticket))});
  }
  const std::vector<uint64_t> order = TakeSome(queue, 1000);
  ASSERT_EQ(order.size(), 1000u);
  EXPECT_TRUE(std::ranges::is_sorted(order, [&](uint64_t a, uint64_t b) {
    return std::pair(-rates[a], a) < std::pair(-rates[b], b);
  }));
}

// A tenant whose prompts are half cold, one taken every 10 ms, as many arriving.
TEST(FairQueueTest, NobodyIsOvertakenByOneThatArrivedAnAgeLater) {
  constexpr Duration kInterval = milliseconds(10);
  for (const Duration age : {Duration(seconds(2)), Duration(milliseconds(400))}) {
    FairQueue queue({.age = age});
    std::map<uint64_t, TimePoint> waiting;
    Duration most{0};
    std::mt19937_64 random(7);
    for (uint64_t ticket = 1; ticket <= 3000; ++ticket) {
      const TimePoint now = At(kInterval * ticket);
      queue.Add({.ticket = ticket, .hit_rate = random() % 2 == 0 ? 0 : 0.99, .arrived = now});
      waiting[ticket] = now;
      if (ticket * kInterval < age) continue;
      const TimePoint arrived = waiting.extract(TakeSome(queue, 1).at(0)).mapped();
      if (!waiting.empty()) most = std::max(most, arrived - waiting.begin()->second);
    }
    EXPECT_LT(most, age);
    EXPECT_GT(most, age / 10 * 9);
  }
}

TEST(FairQueueTest, TokensAreSharedByWeight) {
  FairQueue queue;
  std::mt19937_64 random(3);
  std::map<uint64_t, uint64_t> tenant_of;
  const auto add = [&](uint64_t ticket, uint64_t tenant) {
    tenant_of[ticket] = tenant;
    queue.Add({.ticket = ticket,
               .share = {.tenant = tenant, .weight = tenant == 7 ? 1.0 : 3.0},
               .arrived = At(milliseconds(ticket))});
  };
  // The light one comes first, with ten times as many.
  uint64_t next = 0;
  for (int i = 0; i < 5000; ++i) add(++next, 7);
  for (int i = 0; i < 500; ++i) add(++next, 8);
  std::map<uint64_t, int64_t> tokens;
  TakeSome(queue, 400, [&](uint64_t ticket) {
    const auto cost = static_cast<int64_t>(16 + random() % 1000);
    tokens[tenant_of[ticket]] += cost;
    return cost;
  });
  const double ratio = static_cast<double>(tokens[8]) / static_cast<double>(tokens[7]);
  EXPECT_NEAR(ratio, 3, 0.06);
}

TEST(FairQueueTest, TimeAwayIsNoCreditAndNoDebt) {
  FairQueue queue;
  for (uint64_t ticket = 1; ticket <= 40; ++ticket) {
    queue.Add({.ticket = ticket, .share = {.tenant = 1}});
  }
  TakeSome(queue, 20);
  for (uint64_t ticket = 101; ticket <= 110; ++ticket) {
    queue.Add({.ticket = ticket, .share = {.tenant = 2}});
  }
  // In turns from here, not ten of the newcomer's.
  EXPECT_THAT(TakeSome(queue, 6), ElementsAre(101, 21, 102, 22, 103, 23));
}

TEST(FairQueueTest, WhoComesBackStandsInFrontAndIsNotChargedAgain) {
  FairQueue queue;
  for (uint64_t ticket : {1, 2, 3, 4}) queue.Add({.ticket = ticket, .share = {.tenant = 1}});
  for (uint64_t ticket : {5, 6, 7}) queue.Add({.ticket = ticket, .share = {.tenant = 2}});
  EXPECT_THAT(TakeSome(queue, 2), ElementsAre(1, 5));
  queue.Add({.ticket = 5, .share = {.tenant = 2}, .comes_back = true});
  queue.Add({.ticket = 1, .share = {.tenant = 1}, .priority = -100, .comes_back = true});
  EXPECT_THAT(TakeSome(queue, 9, [](uint64_t) { return 1000; }), ElementsAre(1, 5, 2, 6, 3, 7, 4));
}

// Room for `free` units; each request needs one, ticket 1 needs ten.
struct Room {
  int free = 0;
  std::vector<uint64_t> taken{};
  FairQueue::Attempt Attempt(int64_t tokens = 100) {
    return [this, tokens](uint64_t ticket) -> Outcome {
      const int needed = ticket == 1 ? 10 : 1;
      if (needed > free) return {Verdict::kNoRoom};
      free -= needed;
      taken.push_back(ticket);
      return {Verdict::kTaken, tokens};
    };
  }
};

TEST(FairQueueTest, ALargeOneIsNotStarvedAndOthersAreLetByWithinBounds) {
  FairQueue queue({.lead_tokens = 1000, .patience = seconds(1)});
  queue.Add({.ticket = 1, .share = {.tenant = 1}});
  queue.Add({.ticket = 2, .share = {.tenant = 1}});
  for (uint64_t ticket = 100; ticket < 200; ++ticket) {
    queue.Add({.ticket = ticket, .share = {.tenant = 2}});
  }
  Room room;
  const auto serve = [&](Duration at) {  // with one more unit free each time
    ++room.free;
    room.taken.clear();
    queue.Serve(At(at), room.Attempt());
    return room.taken;
  };
  // The other tenant, up to a thousand tokens ahead; nobody of its own.
  for (uint64_t i = 0; i < 11; ++i) EXPECT_THAT(serve(seconds(0)), ElementsAre(100 + i));
  // From then on the room that comes free is kept for it.
  for (int i = 0; i < 9; ++i) EXPECT_THAT(serve(milliseconds(10 * i)), ElementsAre());
  const std::vector<uint64_t> taken = serve(milliseconds(100));
  EXPECT_EQ(taken.at(0), 1u);
  EXPECT_FALSE(std::ranges::count(taken, 2u)) << "all room is taken";
  // Behind by a thousand tokens, its tenant goes on.
  EXPECT_THAT(serve(milliseconds(110)), ElementsAre(2));
}

// Nobody can say whether there will ever be room for it.
TEST(FairQueueTest, OneThatNeverFindsRoomHoldsUpOthersOnlyNowAndThen) {
  FairQueue queue({.lead_tokens = 1000, .patience = seconds(1)});
  for (uint64_t tenant = 0; tenant < 6; ++tenant) {  // more of them than one pass tries
    queue.Add({.ticket = tenant + 1, .share = {.tenant = tenant}});
  }
  uint64_t next = 100;
  std::vector<int> taken_in(64);
  Duration now{0};
  for (size_t second = 0; second < taken_in.size(); ++second) {
    for (int i = 0; i < 100; ++i, now += milliseconds(10)) {
      while (queue.size() < 20) queue.Add({.ticket = ++next, .share = {.tenant = 9}});
      queue.Serve(At(now), [&](uint64_t ticket) -> Outcome {
        if (ticket <= 6) return {Verdict::kNoRoom};
        ++taken_in[second];
        return {Verdict::kTaken, 100};
      });
    }
  }
  EXPECT_GT(std::accumulate(taken_in.begin(), taken_in.end(), 0), 30);
  // Held up for longer and longer, so that room can gather.
  const auto pause = [&](size_t from) {
    return std::find_if(taken_in.begin() + static_cast<ptrdiff_t>(from), taken_in.end(),
                        [](int taken) { return taken > 0; }) -
           taken_in.begin();
  };
  EXPECT_LT(pause(3), 10);
  EXPECT_LT(pause(32), 64);
}

// What tenant A's requests find in the cache changes what they cost, and nothing for B: not the
// order among its own, and not how much is computed for A before each of them.
TEST(FairQueueTest, AnotherTenantsHitsAreNotFelt) {
  constexpr int64_t kMost = 1000;
  const auto replay = [](bool has_cache) {
    FairQueue queue;
    std::mt19937_64 random(11);
    for (uint64_t ticket = 1; ticket <= 2000; ++ticket) {
      const bool is_a = ticket > 100;
      const double b_rate = static_cast<double>(random() % 100) / 100;
      queue.Add({.ticket = ticket,
                 .share = {.tenant = is_a ? 1u : 2u},
                 .hit_rate = is_a ? (has_cache ? 0.9 : 0) : b_rate,
                 .arrived = At(milliseconds(10) * (ticket % 100))});
    }
    std::vector<std::pair<uint64_t, int64_t>> of_b;  // and what was computed for A before it
    int64_t for_a = 0;
    TakeSome(queue, 1200, [&](uint64_t ticket) -> int64_t {
      const bool is_a = ticket > 100;
      const int64_t tokens = is_a && has_cache ? kMost / 10 : kMost;
      if (is_a) for_a += tokens;
      if (!is_a) of_b.emplace_back(ticket, for_a);
      return tokens;
    });
    return of_b;
  };
  const auto with = replay(true), without = replay(false);
  ASSERT_EQ(with.size(), 100u);
  ASSERT_EQ(without.size(), 100u);
  for (size_t i = 0; i < with.size(); ++i) {
    EXPECT_EQ(with[i].first, without[i].first);
    EXPECT_LE(std::abs(with[i].second - without[i].second), kMost);
  }
}

TEST(FairQueueTest, AFloodFillsItsOwnShareOfTheQueue) {
  FairQueue queue;
  constexpr size_t kMost = 100;
  uint64_t next = 0;
  std::map<uint64_t, uint64_t> tenant_of;
  const auto add = [&](uint64_t tenant, double weight) {
    tenant_of[++next] = tenant;
    queue.Add({.ticket = next, .share = {.tenant = tenant, .weight = weight}});
    if (queue.size() <= kMost) return;
    const uint64_t last = *queue.LastOfLargest();
    tenant_of.erase(last);
    queue.Remove(last);
  };
  const auto count = [&](uint64_t tenant) {
    return std::ranges::count_if(tenant_of, [&](auto& one) { return one.second == tenant; });
  };
  for (int i = 0; i < 1000; ++i) add(1, 1);
  EXPECT_EQ(count(1), 100);
  for (int i = 0; i < 20; ++i) add(2, 1);
  EXPECT_EQ(count(2), 20) << "who asks for less than its share is not refused";
  for (int i = 0; i < 1000; ++i) add(3, 3);
  for (int i = 0; i < 1000; ++i) add(1, 1);
  EXPECT_EQ(count(2), 20);
  EXPECT_NEAR(count(1), 20, 1);
  EXPECT_NEAR(count(3), 60, 1);
}

TEST(FairQueueTest, IdleTenantsAreForgottenAndCountersStayExact) {
  FairQueue queue;
  queue.Add({.ticket = 1, .share = {.tenant = 1}});
  for (uint64_t tenant = 2; tenant < 10000; ++tenant) {
    queue.Add({.ticket = tenant, .share = {.tenant = tenant, .weight = 0.01}});
    queue.Serve(At(seconds(0)), [](uint64_t ticket) -> Outcome {
      return {ticket == 1 ? Verdict::kPassedOver : Verdict::kTaken, 1000};
    });
    ASSERT_LE(queue.tenants(), FairQueue::kIdleTenantsMax + 1);
  }
  EXPECT_GT(queue.tenants(), 1000u);
  queue.Remove(1);
  EXPECT_EQ(queue.tenants(), 0u);
  // A backlog that never ends, of virtual tokens by the trillion.
  std::map<uint64_t, int> taken;
  for (uint64_t ticket = 1; ticket <= 400; ++ticket) {
    queue.Add({.ticket = ticket, .share = {.tenant = ticket % 2, .weight = 0.01}});
  }
  TakeSome(queue, 300, [&](uint64_t ticket) {
    ++taken[ticket % 2];
    return int64_t{1} << 32;
  });
  EXPECT_EQ(taken[0], 150);
  EXPECT_EQ(taken[1], 150);
}

// Against the definition, over random histories without anybody who finds no room.
class Oracle {
 public:
  void Add(const Entry& entry) {
    const uint64_t tenant = entry.share.tenant;
    const bool waits =
        std::ranges::any_of(entries_, [&](const Entry& one) { return one.share.tenant == tenant; });
    if (!waits) counter_[tenant] = {std::max(counter_[tenant].first, served_), ++turn_};
    entries_.push_back(entry);
  }
  uint64_t Take(Duration age, TimePoint now, int64_t tokens) {
    const auto first = std::ranges::min_element(entries_, [&](const Entry& a, const Entry& b) {
      return Key(a, age, now) < Key(b, age, now);
    });
    const Entry taken = *first;
    entries_.erase(first);
    if (!taken.comes_back) {
      auto& [counter, turn] = counter_[taken.share.tenant];
      served_ = std::max(served_, counter);
      counter += static_cast<double>(tokens) / taken.share.weight;
      turn = ++turn_;
    }
    if (entries_.empty()) {
      counter_.clear();
      served_ = 0;
    }
    return taken.ticket;
  }
  bool empty() const { return entries_.empty(); }

 private:
  std::tuple<bool, uint64_t, double, uint64_t, int32_t, double, uint64_t> Key(const Entry& entry,
                                                                              Duration age,
                                                                              TimePoint now) const {
    const auto& [counter, turn] = counter_.at(entry.share.tenant);
    if (entry.comes_back) return {false, entry.ticket, 0, 0, 0, 0, 0};
    const double wait = std::chrono::duration<double>(now - entry.arrived).count() /
                        std::chrono::duration<double>(age).count();
    return {true, 0, counter, turn, -entry.priority, -(entry.hit_rate + wait), entry.ticket};
  }
  std::vector<Entry> entries_;
  std::map<uint64_t, std::pair<double, uint64_t>> counter_;
  double served_ = 0;
  uint64_t turn_ = 0;
};

TEST(FairQueueTest, RandomHistoriesFollowTheDefinition) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 300; ++round) {
    const FairQueue::Options options{.age = milliseconds(1 + random() % 5000)};
    FairQueue queue(options);
    Oracle oracle;
    std::map<uint64_t, Entry> taken_before;
    uint64_t ticket = 0;
    for (int step = 0; step < 300; ++step) {
      const TimePoint now = At(milliseconds(step * 7));
      const uint64_t tenant = random() % 5;
      if (random() % 2 == 0) {
        Entry entry{.ticket = ++ticket,
                    .share = {.tenant = tenant, .weight = 0.5 + static_cast<double>(tenant)},
                    .priority = static_cast<int32_t>(random() % 3) - 1,
                    .hit_rate = static_cast<double>(random() % 100) / 128,
                    .arrived = now};
        if (!taken_before.empty() && random() % 8 == 0) {
          entry = taken_before.extract(taken_before.begin()).mapped();
          entry.comes_back = true;
        }
        taken_before[entry.ticket] = entry;
        queue.Add(entry);
        oracle.Add(entry);
        taken_before.erase(entry.ticket);
      } else if (!oracle.empty()) {
        const auto tokens = static_cast<int64_t>(1 + random() % 2000);
        const std::vector<uint64_t> taken = TakeSome(queue, 1, [&](uint64_t) { return tokens; });
        ASSERT_EQ(taken.size(), 1u);
        ASSERT_EQ(taken[0], oracle.Take(options.age, now, tokens)) << "step " << step;
      }
    }
  }
}

}  // namespace
}  // namespace trivium::scheduling
