// The protocol without threads or wires: header layout, row order against a plain loop, what the
// landing table accepts, and every timeout on a clock that stands still until told.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "common/transfer/address.h"
#include "common/transfer/engine.h"
#include "common/transfer/in_process_link.h"
#include "common/transfer/raw_peer.h"
#include "common/transfer/testing.h"

namespace trivium::transfer {
namespace {

TEST(WireTest, HeaderSurvivesTheWireAndHasTheDocumentedLayout) {
  MessageHeader header;
  header.type = MessageType::kRows;
  header.source = 0x1111111111111111;
  header.epoch = 2;
  header.landing_id = 3;
  header.sender_id = 4;
  header.request_hash = 5;
  header.secret.fill(0xab);
  header.generation = 6;
  header.sequence = 7;
  header.attempt = 8;
  header.rows = {9, 10, 16, 32};
  const std::vector<uint8_t> payload = Sealed(&header, std::vector<uint8_t>(56, 1));
  const HeaderBytes bytes = EncodeHeader(header, payload);
  const std::vector<uint8_t> start(bytes.begin(), bytes.begin() + 17);
  EXPECT_EQ(start, (std::vector<uint8_t>{'T', 'K', 'V', '1', 2, 0, 2, 0, 0x11, 0x11, 0x11, 0x11,
                                         0x11, 0x11, 0x11, 0x11, 2}));
  EXPECT_EQ(bytes[48], 0xab);
  EXPECT_EQ(bytes[84], 9);
  EXPECT_EQ(bytes[96], 32);
  EXPECT_EQ(bytes[100], 64);
  const auto decoded = DecodeHeader(bytes);
  ASSERT_TRUE(decoded.has_value());
  EXPECT_EQ(EncodeHeader(decoded->header, payload), bytes);
  EXPECT_TRUE(ChecksumMatches(bytes, payload));
}

TEST(WireTest, EveryFlippedBitIsNoticed) {
  MessageHeader header;
  header.type = MessageType::kFinish;
  const std::vector<uint8_t> payload = {1, 2, 3};
  header.payload_bytes = 3;
  const HeaderBytes bytes = EncodeHeader(header, payload);
  for (size_t bit = 0; bit < 8 * kHeaderBytes; ++bit) {
    HeaderBytes wrong = bytes;
    wrong[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    EXPECT_TRUE(!DecodeHeader(wrong) || !ChecksumMatches(wrong, payload)) << bit;
  }
}

// Pages of random sizes and bytes, and the payload that a Rows message makes of them.
struct SealedPages {
  explicit SealedPages(std::mt19937& random) : pages(1 + random() % 5) {
    std::vector<uint8_t> rows;
    for (auto& page : pages) {
      page.resize(1 + random() % 20000);
      for (uint8_t& byte : page) byte = static_cast<uint8_t>(random());
      rows.insert(rows.end(), page.begin(), page.end());
    }
    MessageHeader header;
    header.type = MessageType::kRows;
    header.sequence = random();
    payload = Sealed(&header, rows);
    bytes = EncodeHeader(header, {});
    ++header.sequence;
    other_bytes = EncodeHeader(header, {});
  }
  RowRuns Runs() { return {pages.begin(), pages.end()}; }
  // Whether a receiver takes it, written in pieces: in order, or each at its place but shuffled.
  bool IsRight(const HeaderBytes& header, const std::vector<uint8_t>& sent, std::mt19937& random,
               bool in_order) {
    auto written = pages;
    for (auto& page : written) std::fill(page.begin(), page.end(), uint8_t{0});
    ArrivingRows rows(header, {written.begin(), written.end()}, nullptr);
    std::vector<std::pair<size_t, size_t>> pieces;
    for (size_t at = 0; at < sent.size(); at += pieces.back().second) {
      pieces.emplace_back(at, std::min<size_t>(1 + random() % 9000, sent.size() - at));
    }
    if (!in_order) std::shuffle(pieces.begin(), pieces.end(), random);
    for (const auto& [at, count] : pieces) {
      EXPECT_TRUE(rows.Write(at, std::span(sent).subspan(at, count)));
    }
    EXPECT_FALSE(rows.Write(rows.bytes(), std::span(sent).first(1)));
    EXPECT_FALSE(rows.Write(1, sent));
    const bool right = rows.IsRight();
    EXPECT_EQ(written == pages, right);
    rows.Erase();
    for (const auto& page : written) {
      EXPECT_EQ(std::count(page.begin(), page.end(), 0), static_cast<ptrdiff_t>(page.size()));
    }
    return right;
  }

  std::vector<std::vector<uint8_t>> pages;
  std::vector<uint8_t> payload;
  HeaderBytes bytes, other_bytes;
};

TEST(SealTest, HoldsHoweverRowsAreReadAndWritten) {
  std::mt19937 random(11);
  for (int round = 0; round < 200; ++round) {
    SealedPages sealed(random);
    // In pieces, some of them twice.
    SealedRows rows(sealed.bytes, sealed.Runs(), nullptr);
    std::vector<uint8_t> read(rows.bytes());
    for (size_t at = 0; at < read.size();) {
      const size_t count = std::min<size_t>(1 + random() % 9000, read.size() - at);
      rows.Read(at, std::span(read).subspan(at, count));
      if (random() % 3 != 0) at += count;
    }
    ASSERT_EQ(read, sealed.payload);
    for (const bool in_order : {true, false}) {
      ASSERT_TRUE(sealed.IsRight(sealed.bytes, read, random, in_order));
    }
  }
}

TEST(SealTest, TellsOfWhateverIsWrong) {
  std::mt19937 random(12);
  for (int round = 0; round < 100; ++round) {
    SealedPages sealed(random);
    // A part that was not read, and a flipped bit.
    SealedRows hasty(sealed.bytes, sealed.Runs(), nullptr);
    std::vector<uint8_t> unread(hasty.bytes());
    hasty.Read(1, std::span(unread).subspan(1));
    std::vector<uint8_t> flipped = sealed.payload;
    flipped[random() % (flipped.size() - kSealBytes)] ^= static_cast<uint8_t>(1 << random() % 8);
    for (const bool in_order : {true, false}) {
      EXPECT_FALSE(sealed.IsRight(sealed.bytes, flipped, random, in_order));
      if (sealed.payload[0] != 0) {
        EXPECT_FALSE(sealed.IsRight(sealed.bytes, unread, random, in_order));
      }
    }
    // Another header, another seal, and a part that never came, or that came again and was another.
    ArrivingRows foreign(sealed.other_bytes, sealed.Runs(), nullptr);
    ArrivingRows torn(sealed.bytes, sealed.Runs(), nullptr);
    ArrivingRows cut(sealed.bytes, sealed.Runs(), nullptr);
    ArrivingRows twice(sealed.bytes, sealed.Runs(), nullptr);
    const std::span<const uint8_t> all = sealed.payload;
    std::vector<uint8_t> other_seal = sealed.payload;
    other_seal.back() ^= 1;
    foreign.Write(0, all);
    torn.Write(0, other_seal);
    cut.Write(0, all.first(all.size() - 1));
    twice.Write(0, all.first(1));
    twice.Write(0, std::span(flipped).first(all.size() - kSealBytes));
    twice.Write(all.size() - kSealBytes, all.last(kSealBytes));
    EXPECT_FALSE(foreign.IsRight());
    EXPECT_FALSE(torn.IsRight());
    EXPECT_FALSE(cut.IsRight());
    EXPECT_FALSE(twice.IsRight());
  }
}

TEST(WireTest, RandomBytesAreNoHeaderAndNoAddress) {
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    std::vector<uint8_t> bytes(random() % 200);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    EXPECT_FALSE(DecodeHeader(bytes).has_value());
    EXPECT_FALSE(DecodeAddress({bytes.begin(), bytes.end()}, LinkKind::kUcx).ok());
  }
}

TEST(AddressTest, SurvivesAndNoticesEveryFlippedBit) {
  const std::string bytes = EncodeAddress({LinkKind::kUcx, 42, "somewhere"});
  EXPECT_EQ(DecodeAddress(bytes, LinkKind::kUcx)->link, "somewhere");
  EXPECT_FALSE(DecodeAddress(bytes, LinkKind::kInProcess).ok());
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::string wrong = bytes;
    wrong[bit / 8] = static_cast<char>(wrong[bit / 8] ^ (1 << bit % 8));
    EXPECT_FALSE(DecodeAddress(wrong, LinkKind::kUcx).ok()) << bit;
  }
}

TEST(RowsTest, GathersInTheDocumentedOrderAndScattersBack) {
  auto storage = *kv::KvStorage::Create({16, 2, 4}, 3, 8);
  std::mt19937 random(2);
  for (int64_t i = 0; i < int64_t{8} * 256; ++i) {
    for (int layer = 0; layer < 3; ++layer)
      storage->layer(layer)[i] = static_cast<uint16_t>(random());
  }
  const std::vector<BlockId> blocks = {{5}, {1}, {7}};
  const RowMap map(*storage);
  for (int round = 0; round < 300; ++round) {
    const int a = static_cast<int>(random() % 48), b = static_cast<int>(random() % 48);
    const int l = static_cast<int>(random() % 3);
    const RowRange rows{l, l + 1 + static_cast<int>(random() % static_cast<unsigned>(3 - l)),
                        std::min(a, b), std::max(a, b) + 1};
    std::vector<uint16_t> expected;
    for (int layer = rows.layer_begin; layer < rows.layer_end; ++layer) {
      for (int block = 0; block < 3; ++block) {
        for (int part = 0; part < 2; ++part) {
          for (int slot = 0; slot < 16; ++slot) {
            const int token = block * 16 + slot;
            if (token < rows.token_begin || token >= rows.token_end) continue;
            const uint16_t* row =
                storage->page(layer, blocks[static_cast<size_t>(block)]) + (part * 16 + slot) * 8;
            expected.insert(expected.end(), row, row + 8);
          }
        }
      }
    }
    const std::vector<uint8_t> bytes = Gather(map, blocks, rows);
    ASSERT_EQ(static_cast<int64_t>(bytes.size()), map.Bytes(rows));
    ASSERT_EQ(std::memcmp(bytes.data(), expected.data(), bytes.size()), 0);
    auto other = *kv::KvStorage::Create({16, 2, 4}, 3, 8);
    const RowMap other_map(*other);
    Scatter(other_map, blocks, rows, bytes);
    ASSERT_EQ(Gather(other_map, blocks, rows), bytes);
  }
}

TEST(RowsTest, SplitsIntoMessagesThatCoverEachRowOnce) {
  auto storage = *kv::KvStorage::Create({16, 3, 64}, 30, 4);
  const RowMap map(*storage);
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    const int begin = static_cast<int>(random() % 500);
    const RowRange rows{0, 30, begin, begin + 1 + static_cast<int>(random() % 1500)};
    std::deque<RowRange> messages;
    map.Split(rows, kMaxPayloadBytes, &messages);
    Coverage covered(30, rows.token_begin, rows.token_end);
    for (const RowRange& message : messages) {
      EXPECT_LE(map.Bytes(message), static_cast<int64_t>(kMaxPayloadBytes));
      EXPECT_FALSE(covered.Any(message));
      EXPECT_FALSE(covered.Full());
      covered.Claim(message);
      covered.Unclaim(message);
      EXPECT_FALSE(covered.Any(message));
      covered.Claim(message);
      EXPECT_TRUE(covered.Any(message));
      covered.Land(message);
    }
    EXPECT_TRUE(covered.Full());
  }
}

// An engine with everything it needs, driven by hand.
struct Station {
  Station(uint64_t id, VirtualClock* clock)
      : storage(*kv::KvStorage::Create({16, 2, 16}, 6, 16)),
        link(MakeInProcessLink()),
        peers(link.get(), clock, id, TransferTimeouts{}),
        wiring{.rows = RowMap(*storage),
               .epoch = WorkerEpoch{id},
               .transport_id = id,
               .address = EncodeAddress({LinkKind::kInProcess, id, link->address()}),
               .kind = LinkKind::kInProcess,
               .timeouts = {},
               .clock = clock,
               .link = link.get(),
               .peers = &peers,
               .tally = &tally,
               .limits = {}},
        engine(&wiring) {}
  void Turn() {
    link->Progress(engine);
    engine.Turn();
  }

  std::shared_ptr<kv::KvStorage> storage;
  std::unique_ptr<Link> link;
  PeerTable peers;
  Tally tally;
  Wiring wiring;
  Engine engine;
};

class EngineTest : public testing::Test {
 protected:
  EngineTest() : receiver_(1, &clock_), sender_(2, &clock_) {
    who_ = {RequestId{"r"}, Attempt{1}, {}};
    LandingOptions landing;
    landing.credentials = who_;
    landing.into.blocks = {{0}, {1}};
    landing.token_end = 20;
    landing.on_arrival = arrival_.Callback();
    ++receiver_.tally.landings_open;
    receiver_.engine.receive_side().Add(7, landing);
  }
  void Open() {
    Ticket ticket;
    ticket.epoch = WorkerEpoch{1};
    ticket.landing_id = 7;
    ticket.layers = 6;
    ticket.token_end = 20;
    ++sender_.tally.senders_open;
    sender_.engine.send_side().Open(3, ticket,
                                    *DecodeAddress(receiver_.wiring.address, LinkKind::kInProcess),
                                    who_, {{{0}, {1}}, nullptr}, delivery_.Callback());
  }
  void TurnBoth(int times = 4) {
    for (int i = 0; i < times; ++i) {
      sender_.Turn();
      receiver_.Turn();
    }
  }
  absl::StatusCode Arrived() const { return arrival_.Wait().status().code(); }

  VirtualClock clock_;
  Station receiver_, sender_;
  Credentials who_;
  Outcome<Arrival> arrival_;
  Outcome<TransferStats> delivery_;
};

constexpr Duration kMs = std::chrono::milliseconds(1);

TEST_F(EngineTest, DeliversInAFewTurns) {
  Open();
  sender_.engine.send_side().SendRows(3, {0, 6, 0, 20});
  sender_.engine.send_side().Finish(3, "tail", true);
  TurnBoth();
  ASSERT_TRUE(arrival_.came() && delivery_.came());
  EXPECT_EQ(arrival_.Wait()->tail, "tail");
  EXPECT_EQ(delivery_.Wait()->kv_bytes, 20 * 6 * 128);
  EXPECT_EQ(receiver_.tally.landings_open, 0);
  EXPECT_EQ(sender_.tally.senders_open, 0);
}

TEST_F(EngineTest, UnusedTicketExpiresAfterItsTimeAndNotBefore) {
  clock_.Advance(1999 * kMs);
  receiver_.Turn();
  EXPECT_FALSE(arrival_.came());
  receiver_.engine.receive_side().KeepAlive(7);
  clock_.Advance(1999 * kMs);
  receiver_.Turn();
  EXPECT_FALSE(arrival_.came());
  clock_.Advance(2 * kMs);
  receiver_.Turn();
  ASSERT_TRUE(arrival_.came());
  EXPECT_EQ(Arrived(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(EngineTest, HeartbeatsKeepAQuietTransferAlive) {
  Open();
  TurnBoth();
  for (int i = 0; i < 100; ++i) {
    clock_.Advance(400 * kMs);
    TurnBoth();
  }
  EXPECT_FALSE(arrival_.came() || delivery_.came());
}

TEST_F(EngineTest, SilentSenderIsSuspectThenLost) {
  Open();
  TurnBoth();
  clock_.Advance(1600 * kMs);
  receiver_.Turn();
  EXPECT_EQ(receiver_.tally.peers_suspect, 1);
  EXPECT_FALSE(arrival_.came());
  clock_.Advance(500 * kMs);
  receiver_.Turn();
  ASSERT_TRUE(arrival_.came());
  EXPECT_EQ(Arrived(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(receiver_.tally.peers_lost, 1);
  // What the sender still sends finds no landing and no block.
  sender_.engine.send_side().SendRows(3, {0, 6, 0, 20});
  TurnBoth();
  EXPECT_GE(receiver_.tally.refused[static_cast<size_t>(Refusal::kUnknownLanding)], 1);
  EXPECT_EQ(CheckZero(*receiver_.storage, {{0}, {1}}), "");
}

TEST_F(EngineTest, ReceiverThatNeverAnswersIsGivenUpAfterTheConnectTime) {
  Open();
  clock_.Advance(999 * kMs);
  sender_.Turn();
  EXPECT_FALSE(delivery_.came());
  clock_.Advance(2 * kMs);
  sender_.Turn();
  ASSERT_TRUE(delivery_.came());
  EXPECT_EQ(delivery_.Wait().status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(EngineTest, MissingAcknowledgementEndsTheTransfer) {
  Open();
  TurnBoth();
  sender_.engine.send_side().SendRows(3, {0, 6, 0, 20});
  sender_.Turn();
  clock_.Advance(2001 * kMs);
  sender_.Turn();
  ASSERT_TRUE(delivery_.came());
  EXPECT_EQ(delivery_.Wait().status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(EngineTest, WindowBoundsTheBytesInFlight) {
  auto storage = *kv::KvStorage::Create({16, 3, 64}, 30, 32);
  Ticket ticket;
  ticket.layers = 30;
  ticket.token_end = 500;
  const int64_t window = 4 * int64_t{kMaxPayloadBytes};
  SequenceBlocks from;
  for (int32_t block = 0; block < 32; ++block) from.blocks.push_back(BlockId(block));
  Outgoing outgoing(RowMap(*storage), ticket, who_, from, nullptr, 1, window);
  ASSERT_TRUE(outgoing.Queue({0, 30, 0, 500}).ok());
  EXPECT_FALSE(outgoing.Next().has_value());  // nothing before Begin is acknowledged
  outgoing.NoteSent(kBeginSequence, 0, clock_.Now());
  ASSERT_TRUE(outgoing.Acknowledged(kBeginSequence, clock_.Now()));
  int64_t in_flight = 0;
  std::deque<std::pair<uint64_t, int64_t>> sent;
  int64_t total = 0;
  while (true) {
    while (const auto next = outgoing.Next()) {
      in_flight += next->payload_bytes;
      ASSERT_LE(in_flight, window);
      sent.emplace_back(next->sequence, next->payload_bytes);
      outgoing.Taken(clock_.Now());
    }
    if (sent.empty()) break;
    ASSERT_TRUE(outgoing.Acknowledged(sent.front().first, clock_.Now()));
    EXPECT_FALSE(outgoing.Acknowledged(sent.front().first, clock_.Now()));
    in_flight -= sent.front().second;
    if (sent.front().second > 0) total += sent.front().second - static_cast<int64_t>(kSealBytes);
    sent.pop_front();
  }
  EXPECT_EQ(total, int64_t{500} * 23040);
}

}  // namespace
}  // namespace trivium::transfer
