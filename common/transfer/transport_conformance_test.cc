// What every transport promises, checked on all of them: the bytes that arrive are the bytes that
// were sent, callbacks come once, blocks come back, and nothing else is ever written.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "common/transfer/testing.h"

namespace trivium::transfer {
namespace {

constexpr uint64_t kEpochOfReceiver = 77;

Credentials CredentialsOf(const std::string& request, uint32_t attempt = 1) {
  Credentials credentials{RequestId{request}, Attempt{attempt}, {}};
  std::mt19937 random(static_cast<uint32_t>(std::hash<std::string>()(request)) + attempt);
  for (uint8_t& byte : credentials.secret) byte = static_cast<uint8_t>(random());
  return credentials;
}

// One request on both sides.
struct Request {
  Credentials credentials;
  kv::Reservation source, destination;
  int32_t begin = 0, end = 0;
  uint64_t seed = 0;
  Ticket ticket;
  Outcome<Arrival> arrival;
  Outcome<TransferStats> delivery;
  std::unique_ptr<Sender> sender;
};

// Every (layer group, chunk) of a range, as a prefill worker would send it but in random order.
std::vector<RowRange> RandomCuts(int layers, int32_t begin, int32_t end, std::mt19937& random) {
  std::vector<RowRange> cuts;
  for (int32_t token = begin; token < end;) {
    const int32_t chunk_end =
        std::min<int32_t>(end, token + 1 + static_cast<int32_t>(random() % 90));
    for (int layer = 0; layer < layers;) {
      const int group_end = std::min<int>(layers, layer + 1 + static_cast<int>(random() % 3));
      cuts.push_back({layer, group_end, token, chunk_end});
      layer = group_end;
    }
    token = chunk_end;
  }
  std::shuffle(cuts.begin(), cuts.end(), random);
  return cuts;
}

class TransportTest : public testing::TestWithParam<Backend> {
 protected:
  void SetUp() override {
    // Long enough that a slow machine loses nobody who is alive.
    Start(5.0);
  }
  void Start(double scale, WorkerShape sends = {}, WorkerShape receives = {}) {
    receiver_.reset();
    sender_.reset();
    receiver_ = std::make_unique<TestWorker>(GetParam(), kEpochOfReceiver, scale, receives);
    sender_ = std::make_unique<TestWorker>(GetParam(), 99, scale, sends);
  }

  std::unique_ptr<Request> Prepare(const std::string& name, int32_t begin, int32_t end) {
    auto request = std::make_unique<Request>();
    request->credentials = CredentialsOf(name);
    request->seed = std::hash<std::string>()(name);
    request->begin = begin;
    request->end = end;
    auto source = sender_->pool->Reserve(BlocksFor(end));
    auto destination = receiver_->pool->Reserve(BlocksFor(end));
    EXPECT_TRUE(source.ok() && destination.ok());
    request->source = *std::move(source);
    request->destination = *std::move(destination);
    FillRows(*sender_->storage, Blocks(request->source).blocks, 0, end, request->seed);
    LandingOptions landing;
    landing.credentials = request->credentials;
    landing.into = Blocks(request->destination);
    landing.generation = 5;
    landing.token_begin = begin;
    landing.token_end = end;
    landing.on_arrival = request->arrival.Callback();
    auto ticket = receiver_->transport->Expect(std::move(landing));
    EXPECT_TRUE(ticket.ok()) << ticket.status();
    request->ticket = *ticket;
    return request;
  }
  void Open(Request& request) {
    auto sender = sender_->transport->Open(request.ticket, request.credentials,
                                           Blocks(request.source), request.delivery.Callback());
    ASSERT_TRUE(sender.ok()) << sender.status();
    request.sender = *std::move(sender);
  }
  void SendAll(Request& request, std::mt19937& random, const std::string& tail) {
    for (const RowRange& rows :
         RandomCuts(sender_->storage->layers(), request.begin, request.end, random)) {
      request.sender->Send(rows);
    }
    request.sender->Finish(tail, true);
  }
  std::string Wrong(const Request& request) const {
    return CheckRows(*receiver_->storage, Blocks(request.destination).blocks, request.begin,
                     request.end, request.seed, true);
  }
  int64_t PayloadOf(const Request& request) const {
    return int64_t{request.end - request.begin} * sender_->storage->layers() *
           sender_->storage->layout().RowWords() * 4;
  }
  // After the last request has been let go on both sides.
  void ExpectAllFree() {
    EXPECT_TRUE(Eventually([&] { return sender_->AllBlocksFree() && receiver_->AllBlocksFree(); }));
    EXPECT_EQ(receiver_->transport->counters().landings_open, 0);
    EXPECT_EQ(sender_->transport->counters().senders_open, 0);
  }
  int64_t Refused(Refusal refusal) const {
    return receiver_->transport->counters().refused[static_cast<size_t>(refusal)];
  }

  std::unique_ptr<TestWorker> receiver_, sender_;
};

TEST_P(TransportTest, DeliversEveryRowInAnyOrder) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 30; ++round) {
    const int32_t end = 1 + static_cast<int32_t>(random() % 700);
    const int32_t begin =
        round % 3 == 0 ? 0 : static_cast<int32_t>(random() % static_cast<uint32_t>(end));
    auto request = Prepare(fmt::format("r{}", round), begin, end);
    Open(*request);
    const std::string tail(random() % 5000, static_cast<char>('a' + round));
    SendAll(*request, random, tail);
    const auto arrival = request->arrival.Wait();
    ASSERT_TRUE(arrival.ok()) << arrival.status();
    EXPECT_TRUE(arrival->kv_complete);
    EXPECT_EQ(arrival->tail, tail);
    EXPECT_EQ(arrival->kv_bytes, PayloadOf(*request));
    EXPECT_EQ(Wrong(*request), "");
    const auto stats = request->delivery.Wait();
    ASSERT_TRUE(stats.ok()) << stats.status();
    EXPECT_EQ(stats->kv_bytes, PayloadOf(*request));
    EXPECT_GT(stats->header_bytes, 0);
    EXPECT_EQ(request->arrival.calls(), 1);
    EXPECT_EQ(request->delivery.calls(), 1);
  }
  ExpectAllFree();
}

// Integers and their scales, in rows of an odd number of words.
TEST_P(TransportTest, DeliversRowsOfIntegers) {
  const WorkerShape integers{.kv_heads = 3, .head_dim = 20, .type = kernels::KvType::kInt8};
  Start(5.0, integers, integers);
  std::mt19937 random(11);
  auto request = Prepare("integers", 5, 203);
  EXPECT_EQ(request->ticket.wire_format, WireFormat::kInt8);
  Open(*request);
  SendAll(*request, random, "tail");
  const auto arrival = request->arrival.Wait();
  ASSERT_TRUE(arrival.ok()) << arrival.status();
  EXPECT_EQ(arrival->kv_bytes, 198 * 6 * 2 * 3 * (20 + 2));
  EXPECT_EQ(Wrong(*request), "");
  ASSERT_TRUE(request->delivery.Wait().ok());
  request->sender.reset();
  request.reset();
  ExpectAllFree();
}

// The same number of bytes, and yet other numbers.
TEST_P(TransportTest, WorkersOfDifferentKvTypesDoNotPair) {
  Start(5.0, {.type = kernels::KvType::kBF16}, {.type = kernels::KvType::kF16});
  auto request = Prepare("stranger", 0, 20);
  const auto sender = sender_->transport->Open(
      request->ticket, request->credentials, Blocks(request->source), request->delivery.Callback());
  EXPECT_EQ(sender.status().code(), absl::StatusCode::kInvalidArgument) << sender.status();
}

TEST_P(TransportTest, CarriesTheLargestTailAndRefusesALargerOne) {
  std::mt19937 random(1);
  auto largest = Prepare("largest", 0, 20);
  Open(*largest);
  SendAll(*largest, random, std::string(64 * 1024, 'x'));
  ASSERT_TRUE(largest->arrival.Wait().ok());
  EXPECT_EQ(largest->arrival.Wait()->tail.size(), 64u * 1024);
  auto larger = Prepare("larger", 0, 20);
  Open(*larger);
  SendAll(*larger, random, std::string(64 * 1024 + 1, 'x'));
  EXPECT_EQ(larger->delivery.Wait().status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(larger->arrival.Wait().ok());
}

TEST_P(TransportTest, RunsManyTransfersAtOnce) {
  std::mt19937 random(2);
  std::vector<std::unique_ptr<Request>> requests;
  for (int i = 0; i < 12; ++i) requests.push_back(Prepare(fmt::format("many{}", i), 0, 100 + i));
  for (auto& request : requests) Open(*request);
  for (auto& request : requests) SendAll(*request, random, "t");
  for (auto& request : requests) {
    const auto arrival = request->arrival.Wait();
    ASSERT_TRUE(arrival.ok()) << arrival.status();
    EXPECT_EQ(Wrong(*request), "");
    EXPECT_TRUE(request->delivery.Wait().ok());
  }
  requests.clear();
  ExpectAllFree();
}

// Each is the other's sender and receiver, and neither has been connected before.
TEST_P(TransportTest, TwoSendToEachOtherAtOnce) {
  std::mt19937 random(5);
  for (int round = 0; round < 10; ++round) {
    Start(5.0);
    std::vector<std::unique_ptr<Request>> requests;
    for (int way = 0; way < 2; ++way) {
      requests.push_back(Prepare(fmt::format("way{}", way), 0, 300));
      std::swap(sender_, receiver_);
    }
    for (const auto& request : requests) {
      Open(*request);
      std::swap(sender_, receiver_);
    }
    for (const auto& request : requests) SendAll(*request, random, "tail");
    for (const auto& request : requests) {
      ASSERT_TRUE(request->arrival.Wait().ok()) << request->arrival.Wait().status();
      ASSERT_TRUE(request->delivery.Wait().ok()) << request->delivery.Wait().status();
      EXPECT_EQ(Wrong(*request), "");
      std::swap(sender_, receiver_);
    }
    requests.clear();
    ExpectAllFree();
  }
}

TEST_P(TransportTest, FinishesEarlyWhenNothingMoreIsNeeded) {
  auto request = Prepare("early", 0, 600);
  Open(*request);
  request->sender->Send({0, 1, 0, 600});
  request->sender->Finish("ended", false);
  const auto arrival = request->arrival.Wait();
  ASSERT_TRUE(arrival.ok()) << arrival.status();
  EXPECT_FALSE(arrival->kv_complete);
  EXPECT_EQ(arrival->tail, "ended");
  EXPECT_TRUE(request->delivery.Wait().ok());
}

// The rows that a sender has arrive, and the receiver hears how far all layers reach.
TEST_P(TransportTest, FinishesShortWithWhatThereIs) {
  const int layers = sender_->storage->layers();
  struct Case {
    std::vector<RowRange> rows;
    int32_t token_end;
  };
  const Case cases[] = {
      {{{0, layers, 32, 432}}, 432},    {{{0, 1, 32, 600}, {1, layers, 32, 96}}, 96},
      {{{0, layers, 32, 600}}, 600},    {{{0, layers, 48, 600}}, 32},
      {{{0, layers - 1, 32, 600}}, 32}, {{}, 32}};
  for (const Case& one : cases) {
    auto request = Prepare(fmt::format("short{}", &one - cases), 32, 600);
    Open(*request);
    for (const RowRange& rows : one.rows) request->sender->Send(rows);
    request->sender->FinishShort();
    const auto arrival = request->arrival.Wait();
    ASSERT_TRUE(arrival.ok()) << arrival.status();
    EXPECT_EQ(arrival->token_end, one.token_end);
    EXPECT_EQ(arrival->kv_complete, one.token_end == 600);
    EXPECT_EQ(arrival->tail, "");
    EXPECT_TRUE(request->delivery.Wait().ok());
    if (one.token_end == 32) continue;
    EXPECT_EQ(CheckRows(*receiver_->storage, Blocks(request->destination).blocks, 32, one.token_end,
                        request->seed, false),
              "");
  }
  ExpectAllFree();
}

TEST_P(TransportTest, RefusesRowsThatTheSenderHasNoBlocksFor) {
  auto request = Prepare("lacks", 0, 600);
  SequenceBlocks from = Blocks(request->source);
  from.blocks.resize(10);
  auto sender = sender_->transport->Open(request->ticket, request->credentials, from,
                                         request->delivery.Callback());
  ASSERT_TRUE(sender.ok()) << sender.status();
  (*sender)->Send({0, 1, 0, 161});
  EXPECT_EQ(request->delivery.Wait().status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(request->arrival.Wait().ok());
}

TEST_P(TransportTest, CallsMissingRowsALoss) {
  auto request = Prepare("loss", 0, 64);
  Open(*request);
  request->sender->Send({0, 5, 0, 64});
  request->sender->Finish("", true);
  EXPECT_EQ(request->arrival.Wait().status().code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(request->delivery.Wait().ok());
}

TEST_P(TransportTest, RefusesOverlappingRows) {
  auto request = Prepare("overlap", 0, 64);
  Open(*request);
  request->sender->Send({0, 2, 0, 64});
  request->sender->Send({1, 3, 63, 64});
  EXPECT_FALSE(request->delivery.Wait().ok());
  EXPECT_FALSE(request->arrival.Wait().ok());
  EXPECT_EQ(Refused(Refusal::kReplay), 1);
}

TEST_P(TransportTest, AbortsAtAnyPoint) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 25; ++round) {
    auto request = Prepare(fmt::format("abort{}", round), 0, 600);
    Open(*request);
    const auto cuts = RandomCuts(sender_->storage->layers(), 0, 600, random);
    const size_t until = random() % (cuts.size() + 1);
    for (size_t i = 0; i < until; ++i) request->sender->Send(cuts[i]);
    if (round % 2 == 0) {
      request->sender->Abort();
    } else {
      request->sender.reset();
    }
    EXPECT_EQ(request->delivery.Wait().status().code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(request->arrival.Wait().status().code(), absl::StatusCode::kAborted);
    EXPECT_EQ(request->delivery.calls(), 1);
    EXPECT_EQ(request->arrival.calls(), 1);
  }
  ExpectAllFree();
}

TEST_P(TransportTest, WithdrawsAtAnyPoint) {
  std::mt19937 random(3);
  for (int round = 0; round < 25; ++round) {
    auto request = Prepare(fmt::format("withdraw{}", round), 0, 600);
    Open(*request);
    for (const RowRange& rows : RandomCuts(sender_->storage->layers(), 0, 600, random)) {
      request->sender->Send(rows);
      if (random() % 20 == 0) receiver_->transport->Withdraw(request->ticket.landing_id);
    }
    receiver_->transport->Withdraw(request->ticket.landing_id);
    EXPECT_EQ(request->arrival.Wait().status().code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(request->delivery.Wait().status().code(), absl::StatusCode::kAborted);
    EXPECT_EQ(request->arrival.calls(), 1);
    // The blocks go to somebody else at once: nothing of the old request may come later.
    const std::vector<BlockId> blocks = Blocks(request->destination).blocks;
    request->destination = {};
    auto next = receiver_->pool->Reserve(static_cast<int32_t>(blocks.size()));
    ASSERT_TRUE(Eventually([&] {
      if (!next.ok()) next = receiver_->pool->Reserve(static_cast<int32_t>(blocks.size()));
      return next.ok();
    }));
    EXPECT_EQ(CheckZero(*receiver_->storage, Blocks(*next).blocks), "");
  }
  ExpectAllFree();
}

TEST_P(TransportTest, ExpiresAnUnusedTicketUnlessKeptAlive) {
  Start(0.05);
  auto unused = Prepare("unused", 0, 16);
  auto kept = Prepare("kept", 0, 16);
  ASSERT_TRUE(Eventually([&] {
    receiver_->transport->KeepAlive(kept->ticket.landing_id);
    return unused->arrival.came();
  }));
  EXPECT_EQ(unused->arrival.Wait().status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(kept->arrival.came());
  EXPECT_EQ(receiver_->transport->counters().landings_expired, 1);
  Open(*unused);
  EXPECT_FALSE(
      unused->delivery.Wait().ok());  // refused, or too late for so short a connect timeout
  EXPECT_EQ(CheckZero(*receiver_->storage, Blocks(unused->destination).blocks), "");
  kept->arrival.Wait().IgnoreError();
}

TEST_P(TransportTest, ReportsALostReceiver) {
  Start(0.2);
  std::mt19937 random(4);
  for (int round = 0; round < 5; ++round) {
    auto request = Prepare(fmt::format("lost{}", round), 0, 600);
    Open(*request);
    for (const RowRange& rows : RandomCuts(sender_->storage->layers(), 0, 600, random)) {
      request->sender->Send(rows);
    }
    receiver_->transport.reset();
    EXPECT_EQ(request->arrival.Wait().status().code(), absl::StatusCode::kCancelled);
    EXPECT_FALSE(request->delivery.Wait().ok());
    EXPECT_EQ(request->arrival.calls(), 1);
    EXPECT_EQ(request->delivery.calls(), 1);
    request.reset();
    EXPECT_TRUE(receiver_->AllBlocksFree());
    receiver_ = std::make_unique<TestWorker>(GetParam(), kEpochOfReceiver, 0.2);
  }
}

TEST_P(TransportTest, ReportsALostSender) {
  Start(0.2);
  for (int round = 0; round < 5; ++round) {
    auto request = Prepare(fmt::format("gone{}", round), 0, 600);
    Open(*request);
    request->sender->Send({0, 3, 0, 600});
    sender_->transport.reset();
    EXPECT_FALSE(request->arrival.Wait().ok());
    EXPECT_EQ(request->delivery.Wait().status().code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(request->arrival.calls(), 1);
    request->sender->Send({3, 4, 0, 600});  // a handle that outlives its transport does nothing
    request.reset();
    sender_ = std::make_unique<TestWorker>(GetParam(), 99, 0.2);
  }
  EXPECT_TRUE(Eventually([&] { return receiver_->AllBlocksFree(); }));
}

TEST_P(TransportTest, RefusesWhatDoesNotFit) {
  auto request = Prepare("fit", 0, 16);
  const auto open = [&](const Ticket& ticket) {
    return sender_->transport->Open(ticket, request->credentials, Blocks(request->source), nullptr)
        .status()
        .code();
  };
  const auto with = [&](auto change) {
    Ticket ticket = request->ticket;
    change(ticket);
    return open(ticket);
  };
  const auto invalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(with([](Ticket& t) { t.layers = 5; }), invalid);
  EXPECT_EQ(with([](Ticket& t) { t.row_elems = 31; }), invalid);
  EXPECT_EQ(with([](Ticket& t) { t.block_tokens = 8; }), invalid);
  EXPECT_EQ(with([](Ticket& t) { t.token_end = 0; }), invalid);
  EXPECT_EQ(with([](Ticket& t) { t.token_begin = -1; }), invalid);
  EXPECT_EQ(with([](Ticket& t) { t.address.clear(); }), invalid);
  EXPECT_EQ(with([](Ticket& t) { t.address[20] ^= 1; }), invalid);
  EXPECT_EQ(with([](Ticket& t) { t.address.resize(30); }), invalid);
  EXPECT_EQ(with([](Ticket& t) { t.address.assign(100000, 'x'); }), invalid);
  LandingOptions landing;
  landing.credentials = request->credentials;
  landing.into = Blocks(request->destination);
  landing.token_end = 17;
  EXPECT_EQ(receiver_->transport->Expect(landing).status().code(), invalid);
  landing.token_end = 16;
  landing.into.blocks[0] = BlockId{10000};
  EXPECT_EQ(receiver_->transport->Expect(landing).status().code(), invalid);
}

INSTANTIATE_TEST_SUITE_P(All, TransportTest, testing::ValuesIn(AllBackends()),
                         [](const auto& param_info) {
                           std::string name = param_info.param.name;
                           std::erase(name, '-');
                           return name;
                         });

}  // namespace
}  // namespace trivium::transfer
