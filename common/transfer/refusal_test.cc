// A peer with a real endpoint sends what no transport would. Each must be refused, counted under
// its reason and leave every block as it was; the landing must still work for its rightful sender.
#include <gtest/gtest.h>

#include <algorithm>

#include "common/transfer/raw_peer.h"

namespace trivium::transfer {
namespace {

constexpr int32_t kTokens = 600;
constexpr uint64_t kSeed = 11;
const RowRange kSmall{0, 1, 0, 8};    // travels with its header
const RowRange kLarge{0, 2, 0, 600};  // by rendezvous

class RefusalTest : public testing::TestWithParam<Backend> {
 protected:
  RefusalTest() : worker_(GetParam(), 77, 20.0), source_(GetParam(), 78, 20.0) {
    who_ = {RequestId{"raw"}, Attempt{3}, {}};
    who_.secret.fill(0xa5);
    blocks_ = *worker_.pool->Reserve(BlocksFor(kTokens));
    rows_ = *source_.pool->Reserve(BlocksFor(kTokens));
    FillRows(*source_.storage, Blocks(rows_).blocks, 0, kTokens, kSeed);
    LandingOptions landing;
    landing.credentials = who_;
    landing.into = Blocks(blocks_);
    landing.generation = 9;
    landing.token_end = kTokens;
    landing.on_arrival = arrival_.Callback();
    ticket_ = *worker_.transport->Expect(std::move(landing));
    peer_ = std::make_unique<RawPeer>(GetParam(), ticket_.address);
  }

  MessageHeader Header(MessageType type) const { return peer_->HeaderFor(type, ticket_, who_); }
  void Begin() {
    const auto answer = peer_->Begin(Header(MessageType::kBegin));
    ASSERT_TRUE(answer.has_value());
    ASSERT_EQ(answer->type, MessageType::kAck);
  }
  std::vector<uint8_t> Payload(const RowRange& rows) const {
    const RowMap map(*source_.storage);
    return Gather(map, Blocks(rows_).blocks, rows);
  }
  MessageHeader Rows(const RowRange& rows, uint64_t sequence) const {
    MessageHeader header = Header(MessageType::kRows);
    header.rows = rows;
    header.sequence = sequence;
    return header;
  }
  int64_t Count(Refusal refusal) const {
    return worker_.transport->counters().refused[static_cast<size_t>(refusal)];
  }
  // Exactly one more under this reason, none under another.
  void ExpectCounted(Refusal refusal, const std::function<void()>& send) {
    const auto before = worker_.transport->counters().refused;
    send();
    EXPECT_TRUE(peer_->DriveUntil([&] { return worker_.transport->counters().refused != before; }))
        << RefusalName(refusal);
    auto expected = before;
    ++expected[static_cast<size_t>(refusal)];
    EXPECT_EQ(worker_.transport->counters().refused, expected) << RefusalName(refusal);
  }
  void ExpectAnswer(Refusal refusal) {
    const auto answer = peer_->NextAnswer();
    ASSERT_TRUE(answer.has_value()) << RefusalName(refusal);
    EXPECT_EQ(answer->type, MessageType::kRefused);
    EXPECT_EQ(answer->refusal, refusal);
  }
  // One changed field of an otherwise right message.
  template <typename F>
  void ExpectRefused(Refusal refusal, const RowRange& rows, F&& change) {
    SCOPED_TRACE(RefusalName(refusal));
    MessageHeader header = Rows(rows, 1);
    change(header);
    ExpectCounted(refusal, [&] { peer_->SendMessage(header, Payload(rows)); });
    if (header.source == peer_->id()) ExpectAnswer(refusal);
  }
  void ExpectUntouched() {
    EXPECT_EQ(CheckZero(*worker_.storage, Blocks(blocks_).blocks), "");
    EXPECT_FALSE(arrival_.came());
  }
  // The rightful rows and the end: everything arrives.
  void ExpectStillWorks() {
    uint64_t sequence = 0;
    for (int layer = 0; layer < 6; layer += 2) {
      const RowRange rows{layer, layer + 2, 0, kTokens};
      peer_->SendMessage(Rows(rows, ++sequence), Payload(rows));
      const auto answer = peer_->NextAnswer();
      ASSERT_TRUE(answer.has_value());
      EXPECT_EQ(answer->type, MessageType::kAck);
    }
    MessageHeader finish = Header(MessageType::kFinish);
    finish.sequence = sequence;
    finish.kv_complete = true;
    peer_->SendMessage(finish, {});
    ASSERT_TRUE(peer_->DriveUntil([&] { return arrival_.came(); }));
    EXPECT_TRUE(arrival_.Wait().ok());
    EXPECT_EQ(CheckRows(*worker_.storage, Blocks(blocks_).blocks, 0, kTokens, kSeed, true), "");
  }

  TestWorker worker_, source_;
  kv::Reservation blocks_, rows_;
  Credentials who_;
  Outcome<Arrival> arrival_;
  Ticket ticket_;
  std::unique_ptr<RawPeer> peer_;
};

TEST_P(RefusalTest, RefusesEveryWrongField) {
  Begin();
  for (const RowRange& rows : {kSmall, kLarge}) {
    ExpectRefused(Refusal::kOldEpoch, rows, [](MessageHeader& h) { --h.epoch; });
    ExpectRefused(Refusal::kUnknownLanding, rows, [](MessageHeader& h) { h.landing_id += 5; });
    ExpectRefused(Refusal::kWrongSecret, rows, [](MessageHeader& h) { h.secret[15] ^= 1; });
    ExpectRefused(Refusal::kWrongSecret, rows, [](MessageHeader& h) { ++h.request_hash; });
    ExpectRefused(Refusal::kOldAttempt, rows, [](MessageHeader& h) { --h.attempt; });
    ExpectRefused(Refusal::kOldAttempt, rows, [](MessageHeader& h) { ++h.attempt; });
    ExpectRefused(Refusal::kOldGeneration, rows, [](MessageHeader& h) { --h.generation; });
    ExpectRefused(Refusal::kUnknownPeer, rows, [](MessageHeader& h) { ++h.source; });
    ExpectRefused(Refusal::kUnknownPeer, rows, [](MessageHeader& h) { ++h.sender_id; });
    ExpectUntouched();
  }
  ExpectStillWorks();
}

TEST_P(RefusalTest, RefusesEveryWrongPlace) {
  Begin();
  const auto refused = [&](Refusal refusal, RowRange place) {
    ExpectRefused(refusal, kSmall, [&](MessageHeader& h) { h.rows = place; });
    ExpectRefused(refusal, kLarge, [&](MessageHeader& h) { h.rows = place; });
  };
  constexpr int32_t kMax = std::numeric_limits<int32_t>::max();
  constexpr int32_t kMin = std::numeric_limits<int32_t>::min();
  refused(Refusal::kOutOfRange, {6, 7, 0, 8});
  refused(Refusal::kOutOfRange, {-1, 1, 0, 8});
  refused(Refusal::kOutOfRange, {0, 7, 0, 8});
  refused(Refusal::kOutOfRange, {0, 1, 593, 601});
  refused(Refusal::kOutOfRange, {0, 1, -8, 0});
  refused(Refusal::kOutOfRange, {0, 1, 8, 8});
  refused(Refusal::kOutOfRange, {0, 1, 8, 0});
  refused(Refusal::kOutOfRange, {kMin, kMax, kMin, kMax});
  refused(Refusal::kMalformed, {0, 1, 0, 9});  // another size than its rows
  ExpectUntouched();
  ExpectStillWorks();
}

TEST_P(RefusalTest, RefusesDamagedBytes) {
  Begin();
  for (const RowRange& rows : {kSmall, kLarge}) {
    MessageHeader header = Rows(rows, 1);
    const std::vector<uint8_t> payload = Sealed(&header, Payload(rows));
    const HeaderBytes bytes = EncodeHeader(header, payload);
    std::vector<uint8_t> flipped = payload;
    flipped[flipped.size() / 2] ^= 0x10;
    ExpectCounted(Refusal::kChecksum, [&] { peer_->SendBytes(bytes, flipped); });
    ExpectAnswer(Refusal::kChecksum);
    HeaderBytes changed = bytes;
    changed[72] ^= 1;  // the sequence: nothing but the checksum can tell
    ExpectCounted(Refusal::kChecksum, [&] { peer_->SendBytes(changed, payload); });
    ExpectAnswer(Refusal::kChecksum);
    const auto malformed = [&](size_t at) {
      HeaderBytes wrong = bytes;
      wrong[at] ^= 0x80;
      ExpectCounted(Refusal::kMalformed, [&] { peer_->SendBytes(wrong, payload); });
    };
    for (const size_t at : {0, 4, 6, 7, 100, 103, 104, 105, 106, 111}) malformed(at);
    std::vector<uint8_t> header_bytes(bytes.begin(), bytes.end());
    for (const size_t size : {size_t{1}, size_t{8}, kHeaderBytes - 1}) {
      ExpectCounted(Refusal::kMalformed,
                    [&] { peer_->SendBytes(std::span(header_bytes).first(size), payload); });
    }
    header_bytes.resize(kHeaderBytes + 1);
    ExpectCounted(Refusal::kMalformed, [&] { peer_->SendBytes(header_bytes, payload); });
    header_bytes.resize(1000);
    ExpectCounted(Refusal::kMalformed, [&] { peer_->SendBytes(header_bytes, payload); });
    ExpectUntouched();
  }
  ExpectStillWorks();
}

TEST_P(RefusalTest, RefusesWhatIsTooLong) {
  Begin();
  const auto send = [&](MessageType type, size_t size) {
    ExpectCounted(Refusal::kOverLimit,
                  [&] { peer_->SendMessage(Header(type), std::vector<uint8_t>(size, 1)); });
  };
  send(MessageType::kRows, kMaxRowBytes + 1);
  send(MessageType::kRows, 4 * kMaxRowBytes);
  send(MessageType::kFinish, kMaxTailBytes + 1);
  send(MessageType::kBegin, kMaxAddressBytes + 1);
  send(MessageType::kAbort, 1);
  send(MessageType::kPing, 100);
  send(MessageType::kAck, kMaxPayloadBytes);
  ExpectUntouched();
  ExpectStillWorks();
}

TEST_P(RefusalTest, RefusesAReplay) {
  Begin();
  const auto again = peer_->Begin(Header(MessageType::kBegin));
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(again->refusal, Refusal::kReplay);
  const RowRange last{4, 6, 0, kTokens};
  for (const RowRange& rows : {RowRange{5, 6, 592, 600}, RowRange{4, 5, 0, 600}}) {
    peer_->SendMessage(Rows(rows, 1), Payload(rows));
    const auto answer = peer_->NextAnswer();
    ASSERT_TRUE(answer.has_value());
    EXPECT_EQ(answer->type, MessageType::kAck);
    ExpectRefused(Refusal::kReplay, rows, [](MessageHeader&) {});
    ExpectRefused(Refusal::kReplay, last, [](MessageHeader&) {});
  }
  // Two copies at once: the second is noticed at the latest when its payload has come.
  const auto replays = Count(Refusal::kReplay);
  peer_->SendMessage(Rows(kLarge, 1), Payload(kLarge));
  peer_->SendMessage(Rows(kLarge, 1), Payload(kLarge));
  ASSERT_TRUE(peer_->NextAnswer().has_value());
  ASSERT_TRUE(peer_->NextAnswer().has_value());
  EXPECT_EQ(Count(Refusal::kReplay), replays + 1);
  EXPECT_EQ(CheckRows(*worker_.storage, Blocks(blocks_).blocks, 0, 0, kSeed, false), "");
}

TEST_P(RefusalTest, RefusesABeginOfSomebodyElse) {
  MessageHeader wrong = Header(MessageType::kBegin);
  wrong.secret[0] ^= 1;
  auto answer = peer_->Begin(wrong);
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->refusal, Refusal::kWrongSecret);
  // Rows that no Begin announced.
  ExpectCounted(Refusal::kUnknownPeer,
                [&] { peer_->SendMessage(Rows(kSmall, 1), Payload(kSmall)); });
  ASSERT_TRUE(peer_->NextAnswer().has_value());
  // An address that is none, one of another transport than the header says.
  ExpectCounted(Refusal::kMalformed, [&] {
    peer_->SendMessage(Header(MessageType::kBegin), std::vector<uint8_t>(200, 'x'));
  });
  ASSERT_TRUE(peer_->NextAnswer().has_value());
  ExpectUntouched();
  Begin();
  RawPeer other(GetParam(), ticket_.address);
  answer = other.Begin(other.HeaderFor(MessageType::kBegin, ticket_, who_));
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->refusal, Refusal::kReplay);
  ExpectStillWorks();
}

TEST_P(RefusalTest, ForgetsALandingThatIsOver) {
  Begin();
  worker_.transport->Withdraw(ticket_.landing_id);
  auto told = peer_->NextAnswer();
  ASSERT_TRUE(told.has_value());
  EXPECT_EQ(told->refusal, Refusal::kUnknownLanding);
  ExpectRefused(Refusal::kUnknownLanding, kSmall, [](MessageHeader&) {});
  ExpectRefused(Refusal::kUnknownLanding, kLarge, [](MessageHeader&) {});
  EXPECT_EQ(CheckZero(*worker_.storage, Blocks(blocks_).blocks), "");
}

INSTANTIATE_TEST_SUITE_P(All, RefusalTest, testing::ValuesIn(AllBackends()),
                         [](const auto& param_info) {
                           std::string name = param_info.param.name;
                           std::erase(name, '-');
                           return name;
                         });

}  // namespace
}  // namespace trivium::transfer
