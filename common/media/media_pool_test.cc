#include "common/media/media_pool.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "common/media/testing/small_pool.h"

namespace trivium::media {
namespace {

constexpr int32_t kHidden = 6;

MediaPool MakePool(uint64_t epoch) { return MakeSmallPool(epoch, 8, kHidden); }

std::vector<float> RowsOf(int32_t tokens, float first) {
  std::vector<float> rows(static_cast<size_t>(tokens) * kHidden);
  std::iota(rows.begin(), rows.end(), first);
  return rows;
}

TEST(MediaPoolTest, RowsComeBackAsTheyWere) {
  MediaPool pool = MakePool(1);
  EXPECT_EQ(pool.blocks->counts().total, 8);
  const kv::Reservation blocks = *pool.blocks->Reserve(3);
  const std::vector<float> rows = RowsOf(40, 0.25F);
  WriteRows(*pool.storage, blocks.blocks(), 0, rows);
  std::vector<float> back(7 * kHidden);
  ReadRows(*pool.storage, blocks.blocks(), 13, back);  // over a border
  EXPECT_TRUE(std::equal(back.begin(), back.end(), rows.begin() + 13 * kHidden));
}

// A slice moves as rows of KV do, with the same checks: what lands is what was written.
TEST(MediaPoolTest, ASliceLandsInAnotherPool) {
  MediaPool from = MakePool(1), to = MakePool(2);
  const int32_t tokens = 21;
  const kv::Reservation source = *from.blocks->Reserve(BlocksFor(tokens));
  const std::vector<float> rows = RowsOf(tokens, -3);
  WriteRows(*from.storage, source.blocks(), 0, rows);

  std::mutex mutex;
  std::condition_variable changed;
  std::optional<absl::Status> landed, sent;
  const auto tell = [&](std::optional<absl::Status>& what, absl::Status status) {
    std::lock_guard lock(mutex);
    what = std::move(status);
    changed.notify_all();
  };
  const kv::Reservation place = *to.blocks->Reserve(BlocksFor(tokens));
  const transfer::Credentials key{.request = {"r"}, .attempt = {1}};
  const auto ticket = to.transport->Expect(
      {.credentials = key,
       .into = {.blocks = {place.blocks().begin(), place.blocks().end()}, .lease = place.Lease()},
       .generation = 1,
       .token_end = tokens,
       .on_arrival = [&](const auto& arrival) { tell(landed, arrival.status()); }});
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  auto sender = from.transport->Open(
      *ticket, key,
      {.blocks = {source.blocks().begin(), source.blocks().end()}, .lease = source.Lease()},
      [&](const auto& stats) { tell(sent, stats.status()); });
  ASSERT_TRUE(sender.ok()) << sender.status();
  (*sender)->Send({0, 1, 0, tokens});
  (*sender)->Finish("", true);
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return landed.has_value() && sent.has_value(); });
  EXPECT_TRUE(landed->ok()) << *landed;
  EXPECT_TRUE(sent->ok()) << *sent;
  std::vector<float> back(rows.size());
  ReadRows(*to.storage, place.blocks(), 0, back);
  EXPECT_EQ(back, rows);
}

TEST(MediaPoolTest, ASliceIsFoundByItsPictureItsNumberAndItsDomain) {
  MediaPool pool = MakePool(1);
  kv::DomainKey mine, other;
  other.bytes[0] = 1;
  const std::string picture(32, 'p'), another(32, 'q');
  const auto chain = ChainOf(mine, picture, 2, 21, 1, 0);
  ASSERT_TRUE(chain.ok());
  EXPECT_EQ(chain->size(), 2);
  {
    kv::Reservation blocks = *pool.blocks->Reserve(2);
    EXPECT_EQ(pool.blocks->Publish(blocks, *chain, 2), 2);
  }
  const auto found = [&](const absl::StatusOr<kv::BlockChain>& of) {
    return pool.blocks->CountFound({.chain = &*of, .blocks_max = of->size()});
  };
  EXPECT_EQ(found(ChainOf(mine, picture, 2, 21, 1, 0)), 2);
  EXPECT_EQ(found(ChainOf(other, picture, 2, 21, 1, 0)), 0);
  EXPECT_EQ(found(ChainOf(mine, another, 2, 21, 1, 0)), 0);
  EXPECT_EQ(found(ChainOf(mine, picture, 1, 21, 1, 0)), 0);
  EXPECT_EQ(found(ChainOf(mine, picture, 2, 22, 1, 0)), 0);
}

TEST(MediaPoolTest, RefusesWhatHoldsNothing) {
  EXPECT_FALSE(MakeMediaPool({.hidden = 7, .memory_bytes = 1 << 20, .transport = {}},
                             transfer::MakeInProcessTransport)
                   .ok());
  EXPECT_EQ(Message(MakeMediaPool({.hidden = 6, .memory_bytes = 100, .transport = {}},
                                  transfer::MakeInProcessTransport)
                        .status()),
            "pictures.memory_bytes 100 holds 0 blocks of 384 bytes");
}

}  // namespace
}  // namespace trivium::media
