// A peer process that is stopped in mid-transfer, given up, and continued: nobody crashes, no block
// that went to another request in between receives a foreign byte, and the next transfer works.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <random>

#include "common/transfer/peer_process.h"
#include "common/transfer/testing.h"

namespace trivium::transfer {
namespace {

constexpr int kRounds = 50;
constexpr int kGivenUp = 10;
constexpr double kScale = 0.15;
constexpr WorkerShape kShape{12, 3, 64, 128};
constexpr int32_t kTokens = 2016;
constexpr int64_t kPayload = int64_t{kTokens} * 12 * 768;

class StopTest : public testing::TestWithParam<std::string> {
 protected:
  StopTest() : backend_(*FindBackend(GetParam())), worker_(backend_, 1, kScale, kShape) {}

  void SetUp() override {
    auto peer = PeerProcess::Start(
        TRIVIUM_TRANSFER_PEER, {backend_.name, std::to_string(kScale),
                                std::to_string(kShape.layers), std::to_string(kShape.kv_heads),
                                std::to_string(kShape.head_dim), std::to_string(kShape.blocks)});
    ASSERT_TRUE(peer.ok()) << peer.status();
    peer_ = *std::move(peer);
    ASSERT_EQ(peer_->Hear().value_or(""), "ready");
  }
  void TearDown() override {
    ASSERT_NE(peer_, nullptr);
    EXPECT_TRUE(peer_->Alive());
    EXPECT_TRUE(Eventually([&] { return worker_.AllBlocksFree(); }));
    // Most rounds must have hit a transfer in flight, or nothing was shown.
    EXPECT_GE(interrupted_, rounds_ / 2) << "of " << rounds_ << " rounds, random seed " << seed_;
    RecordProperty("interrupted", interrupted_);
    std::cout << interrupted_ << " transfers interrupted, " << retries_ << " retries\n";
  }

  kv::Reservation ReserveAll() {
    EXPECT_TRUE(Eventually([&] { return worker_.AllBlocksFree(); }));
    auto reserved = worker_.pool->Reserve(BlocksFor(kTokens));
    EXPECT_TRUE(reserved.ok());
    return *std::move(reserved);
  }
  Ticket Expect(const kv::Reservation& blocks, uint64_t seed, Outcome<Arrival>* arrival) {
    LandingOptions options;
    options.credentials = PeerCredentials(seed);
    options.into = Blocks(blocks);
    options.generation = seed;
    options.token_end = kTokens;
    options.on_arrival = arrival->Callback();
    auto ticket = worker_.transport->Expect(std::move(options));
    EXPECT_TRUE(ticket.ok());
    return *ticket;
  }
  // Stops the peer somewhere in the middle, as `moved` bytes tell.
  void StopInMidTransfer(const std::function<int64_t()>& moved, const std::function<bool()>& over) {
    ++rounds_;
    const int64_t until = static_cast<int64_t>(random_() % (kPayload / 2));
    EXPECT_TRUE(Eventually([&] { return moved() >= until || over(); }));
    peer_->Signal(SIGSTOP);
  }
  // Another request in the same blocks, from a sender of this process.
  kv::Reservation LandAnother(uint64_t seed) {
    absl::Status last;
    for (int attempt = 0; attempt < 20; ++attempt) {
      TestWorker other(backend_, 2, kScale, kShape);
      kv::Reservation blocks = ReserveAll();
      Outcome<Arrival> arrival;
      const Ticket ticket = Expect(blocks, seed, &arrival);
      const kv::Reservation rows = *other.pool->Reserve(BlocksFor(kTokens));
      FillRows(*other.storage, Blocks(rows).blocks, 0, kTokens, seed);
      auto sender = other.transport->Open(ticket, PeerCredentials(seed), Blocks(rows), nullptr);
      EXPECT_TRUE(sender.ok());
      for (int layer = 0; layer < kShape.layers; ++layer) {
        (*sender)->Send({layer, layer + 1, 0, kTokens});
      }
      (*sender)->Finish("", true);
      const auto outcome = arrival.Wait();
      if (outcome.ok()) return blocks;
      // On a busy machine so short a lease may end early.
      last = outcome.status();
      ++retries_;
    }
    ADD_FAILURE() << "no other transfer got through: " << last;
    return {};
  }

  void StopSender(uint64_t seed);
  void StopReceiver(uint64_t seed);
  std::unique_ptr<Sender> SendTo(const Ticket& ticket, const kv::Reservation& rows, uint64_t seed,
                                 Outcome<TransferStats>* delivery);

  const Backend& backend_;
  TestWorker worker_;
  std::unique_ptr<PeerProcess> peer_;
  const uint32_t seed_ = std::random_device()();
  std::mt19937 random_{seed_};
  int rounds_ = 0, interrupted_ = 0, retries_ = 0;
};

void StopTest::StopSender(uint64_t seed) {
  kv::Reservation blocks = ReserveAll();
  Outcome<Arrival> arrival;
  const Ticket ticket = Expect(blocks, seed, &arrival);
  const int64_t before = worker_.transport->counters().bytes_received;
  ASSERT_EQ(peer_->Ask(fmt::format("send {} {}", TicketToWord(ticket), seed)).value_or("gone"),
            "sending");
  StopInMidTransfer([&] { return worker_.transport->counters().bytes_received - before; },
                    [&] { return arrival.came(); });
  if (!arrival.Wait().ok()) ++interrupted_;
  blocks = {};
  kv::Reservation others = LandAnother(seed + 1);
  ASSERT_FALSE(others.empty());
  peer_->Signal(SIGCONT);
  const auto delivered = peer_->Ask("delivered");
  ASSERT_TRUE(delivered.ok()) << delivered.status();
  if (!arrival.Wait().ok()) {
    EXPECT_NE(delivered->substr(0, 2), "ok");
  }
  EXPECT_EQ(arrival.calls(), 1);
  EXPECT_EQ(peer_->Ask("release").value_or("gone"), "free");
  EXPECT_EQ(CheckRows(*worker_.storage, Blocks(others).blocks, 0, kTokens, seed + 1, true), "");
}

std::unique_ptr<Sender> StopTest::SendTo(const Ticket& ticket, const kv::Reservation& rows,
                                         uint64_t seed, Outcome<TransferStats>* delivery) {
  FillRows(*worker_.storage, Blocks(rows).blocks, 0, kTokens, seed);
  auto sender =
      worker_.transport->Open(ticket, PeerCredentials(seed), Blocks(rows), delivery->Callback());
  EXPECT_TRUE(sender.ok()) << sender.status();
  if (!sender.ok()) return nullptr;
  for (int layer = 0; layer < kShape.layers; ++layer) {
    (*sender)->Send({layer, layer + 1, 0, kTokens});
  }
  (*sender)->Finish("", true);
  return *std::move(sender);
}

void StopTest::StopReceiver(uint64_t seed) {
  const auto word = peer_->Ask(fmt::format("expect {} {}", kTokens, seed));
  ASSERT_TRUE(word.ok()) << word.status();
  const auto ticket = TicketFromWord(*word);
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  kv::Reservation rows = ReserveAll();
  Outcome<TransferStats> delivery;
  const int64_t before = worker_.transport->counters().bytes_sent;
  const std::unique_ptr<Sender> sender = SendTo(*ticket, rows, seed, &delivery);
  ASSERT_NE(sender, nullptr);
  StopInMidTransfer([&] { return worker_.transport->counters().bytes_sent - before; },
                    [&] { return delivery.came(); });
  if (!delivery.Wait().ok()) ++interrupted_;
  // The source blocks go to another request: what the peer still reads must not be its bytes.
  rows = {};
  rows = ReserveAll();
  FillRows(*worker_.storage, Blocks(rows).blocks, 0, kTokens, seed + 1);
  peer_->Signal(SIGCONT);
  const auto arrived = peer_->Ask("arrived");
  ASSERT_TRUE(arrived.ok()) << arrived.status();
  EXPECT_EQ(delivery.calls(), 1);
  EXPECT_EQ(peer_->Ask("verify").value_or("gone"), "right");
  EXPECT_EQ(peer_->Ask("release").value_or("gone"), "free");
}

TEST_P(StopTest, SurvivesAStoppedSender) {
  for (int round = 0; round < kRounds; ++round) {
    SCOPED_TRACE(round);
    StopSender(static_cast<uint64_t>(2 * round + 1));
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(worker_.transport->counters().peers_lost, 0);
}

TEST_P(StopTest, SurvivesAStoppedReceiver) {
  for (int round = 0; round < kRounds; ++round) {
    SCOPED_TRACE(round);
    StopReceiver(static_cast<uint64_t>(2 * round + 1));
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(worker_.transport->counters().peers_lost, 0);
}

// Who gives a transfer up while the other side is stopped has its blocks back before that goes on.
TEST_P(StopTest, AbortsATransferToAStoppedReceiver) {
  for (uint64_t seed = 1; seed <= kGivenUp; ++seed) {
    SCOPED_TRACE(seed);
    const auto ticket =
        TicketFromWord(peer_->Ask(fmt::format("expect {} {}", kTokens, seed)).value_or(""));
    ASSERT_TRUE(ticket.ok()) << ticket.status();
    kv::Reservation rows = ReserveAll();
    Outcome<TransferStats> delivery;
    const int64_t before = worker_.transport->counters().bytes_sent;
    std::unique_ptr<Sender> sender = SendTo(*ticket, rows, seed, &delivery);
    StopInMidTransfer([&] { return worker_.transport->counters().bytes_sent - before; },
                      [&] { return delivery.came(); });
    sender.reset();
    if (!delivery.Wait().ok()) ++interrupted_;
    rows = {};
    ASSERT_TRUE(Eventually([&] { return worker_.AllBlocksFree(); }));
    peer_->Signal(SIGCONT);
    peer_->Ask("arrived").IgnoreError();
    EXPECT_EQ(peer_->Ask("release").value_or("gone"), "free");
  }
}

TEST_P(StopTest, WithdrawsALandingFromAStoppedSender) {
  for (uint64_t seed = 1; seed <= kGivenUp; ++seed) {
    SCOPED_TRACE(seed);
    kv::Reservation blocks = ReserveAll();
    Outcome<Arrival> arrival;
    const Ticket ticket = Expect(blocks, seed, &arrival);
    const int64_t before = worker_.transport->counters().bytes_received;
    ASSERT_EQ(peer_->Ask(fmt::format("send {} {}", TicketToWord(ticket), seed)).value_or("gone"),
              "sending");
    StopInMidTransfer([&] { return worker_.transport->counters().bytes_received - before; },
                      [&] { return arrival.came(); });
    worker_.transport->Withdraw(ticket.landing_id);
    if (!arrival.Wait().ok()) ++interrupted_;
    blocks = {};
    ASSERT_TRUE(Eventually([&] { return worker_.AllBlocksFree(); }));
    peer_->Signal(SIGCONT);
    ASSERT_TRUE(peer_->Ask("delivered").ok());
    EXPECT_EQ(peer_->Ask("release").value_or("gone"), "free");
  }
}

INSTANTIATE_TEST_SUITE_P(All, StopTest, testing::Values("posix", "tcp"),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace trivium::transfer
