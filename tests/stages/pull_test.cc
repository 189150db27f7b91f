// A prefill worker takes the beginning of a prompt from another worker that holds it, and computes
// what does not come: told by the rows that its engine computed. Whatever happens to the holder,
// the text is that of a lone engine, bit for bit, and no block is lost.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <latch>
#include <mutex>
#include <thread>

#include "common/worker/prefix_sender.h"
#include "tests/stages/reuse_fixture.h"

namespace trivium::stages {
namespace {

using worker::PrefixSender;

constexpr int32_t kBlock = 16;

// One prefill worker more, and what every worker has to send prefixes with.
class PullTest : public ReuseTest {
 protected:
  explicit PullTest(const RigOptions& options = {})
      : rig_(options),
        parts_(options, options.prefill_blocks, 33),
        loop_(std::make_unique<prefill::StepLoop>(parts_.Context())),
        holder_(SenderOf(rig_.prefill_parts)),
        decoder_(SenderOf(rig_.decode_parts)) {}
  ~PullTest() override {
    holder_.reset();
    decoder_.reset();
    loop_.reset();
    EXPECT_TRUE(parts_.WaitAllFree());
    EXPECT_TRUE(rig_.prefill_parts.WaitAllFree());
    EXPECT_TRUE(rig_.decode_parts.WaitAllFree());
    parts_.transport.reset();
  }

  static std::unique_ptr<PrefixSender> SenderOf(WorkerParts& parts) {
    return std::make_unique<PrefixSender>(parts.pool.get(), parts.transport.get(),
                                          parts.engine.config().layers, kBlock);
  }

  worker::StageRequest Asking(uint8_t tenant, const std::vector<int32_t>& ids, int32_t pull_tokens,
                              Duration pull_for = std::chrono::seconds(60)) {
    auto request = In({DomainOf(tenant)}, rig_.Request(ids, Seeded(random_(), 5)));
    request.pull_tokens = pull_tokens;
    request.pull_for = pull_for;
    return request;
  }

  // What the router asks the holder for on behalf of `request`.
  static worker::PrefixRequest PrefixFor(const worker::StageRequest& request, uint8_t tenant,
                                         const transfer::Ticket& ticket) {
    worker::StageRequest prefix = request;
    prefix.token_ids.resize(static_cast<size_t>(request.pull_tokens));
    return {request.key, In({DomainOf(tenant)}, std::move(prefix)).chain, ticket};
  }

  // Sends the prefix from `sender`; the report comes later.
  Rig::OnPullTicket From(PrefixSender& sender, const worker::StageRequest& request,
                         uint8_t tenant) {
    return [this, &sender, request, tenant](const transfer::Ticket& ticket) {
      ++tickets_;
      const auto sent = sender.Send(PrefixFor(request, tenant, ticket),
                                    [this](absl::StatusOr<worker::PrefixReport> report) {
                                      std::lock_guard lock(mutex_);
                                      reports_.push_back(std::move(report));
                                    });
      EXPECT_TRUE(sent.ok()) << sent.status();
    };
  }

  // Rows that the second worker computed for it; the text has to be right.
  int64_t ComputedAt(const worker::StageRequest& request, Rig::OnPullTicket on_pull_ticket) {
    const int64_t before = RowsOf(parts_);
    const auto flight = rig_.LaunchAt(*loop_, request, std::move(on_pull_ticket));
    EXPECT_TRUE(flight->prefill.Wait().ok());
    EXPECT_TRUE(flight->decode.Wait().ok());
    ExpectRight(rig_, request, flight->decode.tokens());
    return RowsOf(parts_) - before;
  }

  // Of a prompt's leading blocks, in both workers' memory.
  void ExpectSameKv(const worker::StageRequest& request, int32_t blocks) {
    const kv::PrefixUse prefix{.chain = &request.chain, .blocks_max = blocks};
    const kv::Reservation here = parts_.pool->ReserveFound(prefix);
    const kv::Reservation there = rig_.prefill_parts.pool->ReserveFound(prefix);
    ASSERT_EQ(here.blocks().size(), static_cast<size_t>(blocks));
    ASSERT_EQ(there.blocks().size(), static_cast<size_t>(blocks));
    const kv::KvStorage& storage = *parts_.engine.storage;
    for (int layer = 0; layer < storage.layers(); ++layer) {
      for (size_t i = 0; i < here.blocks().size(); ++i) {
        EXPECT_EQ(std::memcmp(storage.page(layer, here.blocks()[i]),
                              rig_.prefill_parts.engine.storage->page(layer, there.blocks()[i]),
                              static_cast<size_t>(storage.layout().PageBytes())),
                  0)
            << "layer " << layer << " block " << i;
      }
    }
  }

  Rig rig_;
  WorkerParts parts_;
  std::unique_ptr<prefill::StepLoop> loop_;
  std::unique_ptr<PrefixSender> holder_, decoder_;
  std::atomic<int> tickets_{0};
  std::mutex mutex_;
  std::vector<absl::StatusOr<worker::PrefixReport>> reports_;
};

TEST_F(PullTest, TakesWhatAnotherHoldsAndComputesTheRest) {
  const std::vector<int32_t> ids = rig_.RandomPrompt(random_, 1000);
  Computed(rig_, Asking(1, ids, 0));
  const auto request = Asking(1, ids, 992);
  EXPECT_EQ(ComputedAt(request, From(*holder_, request, 1)), 8);
  ExpectSameKv(request, 62);
  const worker::PromptRecord prompts = parts_.log.prompts();
  EXPECT_EQ(prompts.cached, 0);
  EXPECT_EQ(prompts.received, 992);
  EXPECT_EQ(prompts.computed, 8);
  // From now on it holds the prefix itself, and asks nobody.
  const auto again = Asking(1, ids, 992);
  EXPECT_EQ(ComputedAt(again, From(*holder_, again, 1)), 8);
  EXPECT_EQ(tickets_, 1);
  EXPECT_EQ(parts_.log.prompts().cached, 992);
}

TEST_F(PullTest, AnotherTenantGetsNothing) {
  const std::vector<int32_t> ids = rig_.RandomPrompt(random_, 200);
  Computed(rig_, Asking(1, ids, 0));
  const auto request = Asking(2, ids, 192);
  EXPECT_EQ(ComputedAt(request, From(*holder_, request, 2)), 200);
  EXPECT_EQ(tickets_, 1);
}

TEST_F(PullTest, TakesThePartThatIsLeft) {
  const std::vector<int32_t> ids = rig_.RandomPrompt(random_, 400);
  Computed(rig_, Asking(1, {ids.begin(), ids.begin() + 250}, 0));
  // It holds the beginning itself: only what lies between is sent.
  const auto beginning = Asking(1, {ids.begin(), ids.begin() + 100}, 0);
  EXPECT_EQ(ComputedAt(beginning, nullptr), 100);
  const auto request = Asking(1, ids, 384);
  EXPECT_EQ(ComputedAt(request, From(*holder_, request, 1)), 400 - 240);
  EXPECT_EQ(parts_.log.prompts().received, 240 - 96);
}

// The answer's KV was made by the decode worker and has never been anywhere else.
TEST_F(PullTest, TakesTheLastAnswerFromTheDecodeWorker) {
  const auto turn =
      In({DomainOf(1)}, rig_.Request(rig_.RandomPrompt(random_, 50), Seeded(random_(), 40)));
  const auto answer = rig_.Run(turn);
  ASSERT_TRUE(answer.ok());
  std::vector<int32_t> ids = turn.token_ids;
  for (const worker::OutputToken& token : *answer) ids.push_back(token.token.id);
  const auto request = Asking(1, Joined(ids, rig_.RandomPrompt(random_, 30)), 112);
  EXPECT_EQ(ComputedAt(request, From(*decoder_, request, 1)), 120 - 80);
}

TEST_F(PullTest, WhatNobodySendsIsComputed) {
  const auto request =
      Asking(1, rig_.RandomPrompt(random_, 150), 144, std::chrono::milliseconds(30));
  EXPECT_EQ(ComputedAt(request, [this](const transfer::Ticket&) { ++tickets_; }), 150);
  EXPECT_EQ(tickets_, 1);
}

TEST_F(PullTest, SiblingsWaitForOnePull) {
  const std::vector<int32_t> ids = rig_.RandomPrompt(random_, 320);
  Computed(rig_, Asking(1, ids, 0));
  transfer::Ticket ticket;
  std::latch asked(1);
  const auto first = Asking(1, Joined(ids, rig_.RandomPrompt(random_, 5)), 320);
  const auto second = Asking(1, Joined(ids, rig_.RandomPrompt(random_, 7)), 320);
  const int64_t before = RowsOf(parts_);
  const auto one = rig_.LaunchAt(*loop_, first, [&](const transfer::Ticket& given) {
    ticket = given;
    asked.count_down();
  });
  asked.wait();
  const auto two = rig_.LaunchAt(*loop_, second, From(*holder_, second, 1));
  From(*holder_, first, 1)(ticket);
  for (const auto& [request, flight] : {std::pair(&first, &one), std::pair(&second, &two)}) {
    ASSERT_TRUE((*flight)->prefill.Wait().ok());
    ASSERT_TRUE((*flight)->decode.Wait().ok());
    ExpectRight(rig_, *request, (*flight)->decode.tokens());
  }
  EXPECT_EQ(RowsOf(parts_) - before, 5 + 7);
  EXPECT_EQ(tickets_, 1) << "the second one found what the first had pulled";
}

TEST_F(PullTest, ACancelledRequestLeavesNothingBehind) {
  const std::vector<int32_t> ids = rig_.RandomPrompt(random_, 320);
  Computed(rig_, Asking(1, ids, 0));
  for (const bool is_sent : {false, true}) {
    const auto request = Asking(1, Joined(rig_.RandomPrompt(random_, 16), ids), 320);
    std::latch asked(1);
    const auto flight = rig_.LaunchAt(*loop_, request, [&](const transfer::Ticket& ticket) {
      if (is_sent) From(*holder_, request, 1)(ticket);
      asked.count_down();
    });
    asked.wait();
    loop_->Cancel(flight->prefill_number);
    rig_.decode->Cancel(flight->decode_number);
    // It may have been through before the news came.
    const absl::Status prefilled = flight->prefill.Wait();
    EXPECT_TRUE(prefilled.ok() || !flight->decode.Wait().ok()) << prefilled;
  }
}

// It goes at any moment: before, while and after its rows are on their way.
TEST_F(PullTest, AHolderThatBreaksOffIsReplacedByComputing) {
  const std::vector<int32_t> ids = rig_.RandomPrompt(random_, 300);
  for (int round = 0; round < 6; ++round) {
    // A beginning of its own: nothing is left here from the round before.
    const auto tenant = static_cast<uint8_t>(10 + round);
    const auto held = Asking(tenant, ids, 0);
    Computed(rig_, held);
    const auto request = Asking(tenant, ids, 288, std::chrono::milliseconds(200));
    const int spins = static_cast<int>(random_() % 20000);
    std::thread breaker;
    ComputedAt(request, [&](const transfer::Ticket& ticket) {
      const auto sent = holder_->Send(PrefixFor(request, tenant, ticket),
                                      [](const absl::StatusOr<worker::PrefixReport>&) {});
      ASSERT_TRUE(sent.ok());
      breaker = std::thread([this, spins, number = *sent] {
        for (volatile int i = 0; i < spins;) i = i + 1;
        holder_->Cancel(number);
      });
    });
    breaker.join();
    // Whether it landed or was computed, it is the same.
    const auto again = Asking(tenant, ids, 0);
    EXPECT_EQ(ComputedAt(again, nullptr), 12);
    ExpectSameKv(again, 18);
  }
}

TEST_F(PullTest, AHolderThatDiesIsReplacedByComputing) {
  const std::vector<int32_t> ids = rig_.RandomPrompt(random_, 300);
  auto holder = std::make_unique<WorkerParts>(rig_.options, 64, 44);
  {
    prefill::StepLoop loop(holder->Context());
    const auto held = Asking(1, ids, 0);
    const auto flight = rig_.LaunchAt(loop, held);
    ASSERT_TRUE(flight->decode.Wait().ok());
    ASSERT_TRUE(flight->prefill.Wait().ok());
  }
  auto sender = SenderOf(*holder);
  const auto request = Asking(1, ids, 288, std::chrono::milliseconds(500));
  std::thread killer;
  ComputedAt(request, [&](const transfer::Ticket& ticket) {
    From(*sender, request, 1)(ticket);
    killer = std::thread([&] { holder->transport.reset(); });
  });
  killer.join();
  sender.reset();
}

class TightPullTest : public PullTest {
 protected:
  TightPullTest() : PullTest({.prefill_blocks = 24, .decode_blocks = 60, .requests_max = 16}) {}
};

// Two workers that pull from each other, from small pools, with senders that fail now and then.
TEST_F(TightPullTest, UnderPressureEveryTextIsRight) {
  auto back = SenderOf(parts_);
  std::vector<std::vector<int32_t>> beginnings;
  for (int i = 0; i < 4; ++i) beginnings.push_back(rig_.RandomPrompt(random_, 64 + random_() % 64));
  struct Shot {
    worker::StageRequest request;
    std::unique_ptr<Flight> flight;
  };
  for (int round = 0; round < 20; ++round) {
    std::vector<Shot> shots;
    for (int i = 0; i < 4; ++i) {
      const auto tenant = static_cast<uint8_t>(random_() % 2);
      const auto& beginning = beginnings[random_() % beginnings.size()];
      const auto pull = static_cast<int32_t>(beginning.size()) / kBlock * kBlock;
      auto request =
          Asking(tenant, Joined(beginning, rig_.RandomPrompt(random_, 1 + random_() % 40)), pull,
                 std::chrono::milliseconds(1 + random_() % 100));
      const bool is_first = random_() % 2 == 0;
      PrefixSender& sender = is_first ? *back : *holder_;
      auto on_ticket = random_() % 5 == 0 ? nullptr : From(sender, request, tenant);
      auto flight = rig_.LaunchAt(is_first ? *rig_.prefill : *loop_, request, std::move(on_ticket));
      shots.push_back({std::move(request), std::move(flight)});
    }
    for (Shot& shot : shots) {
      const absl::Status prefilled = shot.flight->prefill.Wait();
      const absl::Status decoded = shot.flight->decode.Wait();
      if (absl::IsResourceExhausted(decoded)) continue;
      ASSERT_TRUE(prefilled.ok()) << prefilled;
      ASSERT_TRUE(decoded.ok()) << decoded;
      ExpectRight(rig_, shot.request, shot.flight->decode.tokens());
    }
  }
  EXPECT_GT(parts_.log.prompts().received + rig_.prefill_parts.log.prompts().received, 0);
}

}  // namespace
}  // namespace trivium::stages
