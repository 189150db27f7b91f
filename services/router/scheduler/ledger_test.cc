// The sums in the snapshot against a list of what is out, over random orders of events.
#include "services/router/scheduler/ledger.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

namespace trivium::router {
namespace {

struct Out {
  Placement at;
  int32_t prompt = 0, output = 0;  // output: as far as it is reserved
  bool waits = true, prefills = true, reserved = false, unseen = true;
};

void ExpectSums(const ClusterSnapshot& cluster, const std::map<uint64_t, Out>& out) {
  for (WorkerIndex i = 0; i < cluster.workers.size(); ++i) {
    int32_t requests = 0;
    int64_t blocks = 0, unseen = 0, prompt = 0;
    for (const auto& [ticket, one] : out) {
      if (one.at.prefill == i && one.prefills) {
        requests += 1;
        blocks += (one.prompt + 15) / 16;
        prompt += one.waits ? one.prompt : 0;
      }
      if (one.at.decode == i) {
        requests += 1;
        blocks += (one.prompt + one.output + 15) / 16;
        unseen += one.unseen ? (one.prompt + one.output + 15) / 16 : 0;
      }
    }
    const WorkerView& worker = cluster.workers[i];
    ASSERT_EQ(worker.own_requests, requests);
    ASSERT_EQ(worker.own_blocks, blocks);
    ASSERT_EQ(worker.own_blocks_unseen, unseen);
    ASSERT_EQ(worker.own_prompt_tokens, prompt);
  }
}

TEST(LedgerTest, SumsHoldAfterAnyOrderOfEvents) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  ClusterSnapshot cluster;
  cluster.workers.resize(4);
  for (int i = 0; i < 4; ++i) {
    cluster.workers[i].role = i < 2 ? Role::kPrefill : Role::kDecode;
    cluster.workers[i].block_tokens = 16;
  }
  cluster.workers[3].expected_output_tokens = 40;
  Ledger ledger(&cluster);
  std::map<uint64_t, Out> out;
  for (int step = 0; step < 20000; ++step) {
    const uint64_t ticket = random() % 12;
    const auto it = out.find(ticket);
    switch (random() % 6) {
      case 0:
        if (it != out.end()) break;
        out[ticket] = {.at = {random() % 2, 2 + random() % 2},
                       .prompt = 1 + int(random() % 99),
                       .output = 1 + int(random() % 99)};
        ledger.Charge(ticket, out[ticket].at,
                      {.prompt_tokens = out[ticket].prompt,
                       .output_tokens = out[ticket].output,
                       .in_full = false,
                       .preemptions = 0,
                       .turn = 0,
                       .decode_before = kNoWorker,
                       .blame = {}});
        if (out[ticket].at.decode == 3) out[ticket].output = std::min(out[ticket].output, 40);
        break;
      case 1:
        ledger.Reserved(ticket);
        if (it != out.end()) it->second.reserved = true;
        break;
      case 2:
        ledger.FirstToken(ticket);
        if (it != out.end()) it->second.waits = false;
        break;
      case 3:
        ledger.PrefillEnded(ticket);
        if (it != out.end()) it->second.waits = it->second.prefills = false;
        break;
      case 4:
        ledger.Release(ticket);
        out.erase(ticket);
        break;
      default: {
        // A ticket of before a report counts from that report on, also if it was charged anew
        // since.
        const WorkerIndex worker = 2 + random() % 2;
        ledger.OnReport(worker);
        for (auto& [number, one] : out) {
          if (one.at.decode == worker && one.reserved) one.unseen = false;
        }
      }
    }
    ExpectSums(cluster, out);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace trivium::router
