// Prompts with pictures: the prefill worker gives out landings for their slices and computes what
// is there from the left. Whoever sends them, in whatever order and after whatever loss, the answer
// is that of one engine which has all rows from the start, bit for bit, and no block is lost.
#include <gtest/gtest.h>

#include <algorithm>

#include "common/media/testing/small_pool.h"
#include "tests/stages/reuse_fixture.h"

namespace trivium::stages {
namespace {

constexpr int32_t kTokens = 21;  // of a slice: its last block is not full
constexpr auto kPatience = std::chrono::seconds(120);

// Sends slices as an encode worker does, when the test says so.
class Courier {
 public:
  Courier(const media::MediaPool& pool, transfer::Credentials key)
      : pool_(pool), key_(std::move(key)) {}
  ~Courier() { sent_.clear(); }

  // Returns when it has landed, or was refused.
  absl::Status Deliver(const transfer::Ticket& ticket, std::span<const float> rows) {
    Begin(ticket, rows)->Finish("", true);
    std::unique_lock lock(mutex_);
    TRIVIUM_CHECK(changed_.wait_for(lock, kPatience, [this] { return done_.has_value(); }),
                  "a slice did not land");
    return *std::exchange(done_, std::nullopt);
  }
  // Sends the rows and then nothing: a worker that is lost on the way.
  void Lose(const transfer::Ticket& ticket, std::span<const float> rows) {
    Begin(ticket, rows)->Abort();
    std::unique_lock lock(mutex_);
    TRIVIUM_CHECK(changed_.wait_for(lock, kPatience, [this] { return done_.has_value(); }),
                  "a slice was not given up");
    done_.reset();
  }

 private:
  transfer::Sender* Begin(const transfer::Ticket& ticket, std::span<const float> rows) {
    kv::Reservation& blocks =
        blocks_.emplace_back(*pool_.blocks->Reserve(media::BlocksFor(kTokens)));
    media::WriteRows(*pool_.storage, blocks.blocks(), 0, rows);
    auto sender = pool_.transport->Open(
        ticket, key_,
        {.blocks = {blocks.blocks().begin(), blocks.blocks().end()}, .lease = blocks.Lease()},
        [this](const auto& stats) {
          std::lock_guard lock(mutex_);
          done_ = stats.status();
          changed_.notify_all();
        });
    TRIVIUM_CHECK(sender.ok(), "{}", Message(sender.status()));
    sent_.push_back(*std::move(sender));
    sent_.back()->Send({0, 1, 0, kTokens});
    return sent_.back().get();
  }

  const media::MediaPool& pool_;
  const transfer::Credentials key_;
  std::vector<kv::Reservation> blocks_;
  std::vector<std::unique_ptr<transfer::Sender>> sent_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<absl::Status> done_;
};

// The tickets of one request as they come.
class Tickets {
 public:
  Rig::OnSliceTickets Taker() {
    return [this](const std::vector<prefill::SliceTicket>& tickets) {
      std::lock_guard lock(mutex_);
      all_.insert(all_.end(), tickets.begin(), tickets.end());
      changed_.notify_all();
    };
  }
  std::vector<prefill::SliceTicket> Wait(size_t count) {
    std::unique_lock lock(mutex_);
    TRIVIUM_CHECK(changed_.wait_for(lock, kPatience, [&] { return all_.size() >= count; }),
                  "only {} of {} tickets came", all_.size(), count);
    return all_;
  }
  size_t size() {
    std::lock_guard lock(mutex_);
    return all_.size();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<prefill::SliceTicket> all_;
};

class PicturesTest : public ReuseTest {
 protected:
  explicit PicturesTest(const RigOptions& options = {}, int32_t media_blocks = 64)
      : rig_(options),
        parts_(options, options.prefill_blocks, 33),
        media_(media::MakeSmallPool(34, media_blocks, parts_.engine.config().hidden)),
        source_(media::MakeSmallPool(35, 256, parts_.engine.config().hidden)),
        alone_(engine::MakeTestEngine(
            {.isa = kernels::Isa::kReference, .numerics = options.numerics, .threads = 1}, 256)),
        alone_pool_(256) {
    worker::LoopContext context = parts_.Context();
    context.media = &media_;
    parts_.log.on_step = [this](const StepLog::Step&) {
      const kv::BlockPool::Counts counts = media_.blocks->counts();
      EXPECT_EQ(counts.free + counts.used + counts.leased, counts.total);
    };
    loop_ = std::make_unique<prefill::StepLoop>(context);
  }
  ~PicturesTest() override {
    loop_.reset();
    EXPECT_TRUE(parts_.WaitAllFree());
    EXPECT_TRUE(rig_.decode_parts.WaitAllFree());
    EXPECT_TRUE(AllFree(media_));
    EXPECT_TRUE(AllFree(source_));
    parts_.transport.reset();
  }
  static bool AllFree(const media::MediaPool& pool) {
    for (const TimePoint begin = Clock::Real().Now(); Clock::Real().Now() - begin < kPatience;) {
      if (pool.blocks->counts().free == pool.blocks->counts().total) return true;
      std::this_thread::yield();
    }
    return false;
  }

  std::vector<float> RandomRows(int32_t tokens = kTokens) {
    std::normal_distribution<float> normal(0, 0.05F);
    std::vector<float> rows(static_cast<size_t>(tokens * parts_.engine.config().hidden));
    for (float& value : rows) value = normal(random_);
    return rows;
  }

  // A random text of `size` tokens with slices at these positions, in the domain of a tenant.
  worker::StageRequest Pictured(int32_t size, const std::vector<int32_t>& positions,
                                uint8_t tenant = 1, uint8_t picture = 7) {
    worker::StageRequest request =
        rig_.Request(rig_.RandomPrompt(random_, static_cast<size_t>(size)), Seeded(random_(), 4));
    return WithSlices(std::move(request), positions, tenant, picture);
  }
  static worker::StageRequest WithSlices(worker::StageRequest request,
                                         const std::vector<int32_t>& positions, uint8_t tenant,
                                         uint8_t picture) {
    for (const int32_t position : positions) {
      kv::MediaSpan span{.position = position, .tokens = kTokens};
      span.digest.fill(picture);
      span.digest[0] = static_cast<uint8_t>(request.slices.size());
      std::fill_n(request.token_ids.begin() + position, kTokens, 0);
      request.slices.push_back(span);
    }
    auto slices = request.slices;
    return In({DomainOf(tenant)}, std::move(request), Space(), std::move(slices));
  }

  void ExpectRight(const worker::StageRequest& request, const std::vector<std::vector<float>>& rows,
                   const Flight& flight) {
    std::vector<engine::GivenRows> given;
    for (size_t i = 0; i < rows.size(); ++i) given.push_back({request.slices[i].position, rows[i]});
    const auto want = engine::GenerateLocal(*alone_.engine, alone_pool_, request.token_ids,
                                            request.sampling, rig_.options.step_tokens, given);
    ASSERT_TRUE(want.ok()) << want.status();
    const auto got = flight.decode.tokens();
    ASSERT_EQ(got.size(), want->tokens.size());
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(got[i].token.id, want->tokens[i].id) << "token " << i;
      ASSERT_EQ(got[i].token.logprob, want->tokens[i].logprob) << "token " << i;
    }
  }

  std::unique_ptr<Flight> Launch(const worker::StageRequest& request, Tickets* tickets) {
    return rig_.LaunchAt(*loop_, request, nullptr, tickets->Taker());
  }

  Rig rig_;
  WorkerParts parts_;
  media::MediaPool media_, source_;
  engine::TestEngine alone_;
  kv::BlockPool alone_pool_;
  std::unique_ptr<prefill::StepLoop> loop_;
};

TEST_F(PicturesTest, AllOrdersOfFourSlicesGiveOneAnswer) {
  const worker::StageRequest first = Pictured(140, {10, 40, 61, 100});
  std::vector<std::vector<float>> rows;
  for (int i = 0; i < 4; ++i) rows.push_back(RandomRows());
  std::vector<size_t> order = {0, 1, 2, 3};
  do {
    SCOPED_TRACE(testing::PrintToString(order));
    // The same prompt for nobody's cache.
    worker::StageRequest request = rig_.Request(first.token_ids, first.sampling);
    request.slices = first.slices;
    Tickets tickets;
    const auto flight = Launch(request, &tickets);
    const auto all = tickets.Wait(4);
    Courier courier(source_, request.key);
    for (const size_t i : order) {
      EXPECT_TRUE(courier.Deliver(all[i].ticket, rows[i]).ok());
    }
    ASSERT_TRUE(flight->prefill.Wait().ok());
    ASSERT_TRUE(flight->decode.Wait().ok());
    ExpectRight(request, rows, *flight);
    EXPECT_EQ(tickets.size(), 4u);
  } while (std::ranges::next_permutation(order).found);
}

TEST_F(PicturesTest, WhatStandsBeforeAMissingSliceIsComputedMeanwhile) {
  const worker::StageRequest request = Pictured(160, {40, 100});
  const std::vector<std::vector<float>> rows = {RandomRows(), RandomRows()};
  Tickets tickets;
  const auto flight = Launch(request, &tickets);
  const auto all = tickets.Wait(2);
  Courier courier(source_, request.key);
  EXPECT_TRUE(courier.Deliver(all[0].ticket, rows[0]).ok());
  // Up to the block that holds the next slice's first token.
  for (int64_t seen = 0; seen < 96; seen = RowsOf(parts_)) {
    ASSERT_FALSE(flight->prefill.WaitFor(Duration::zero()));
    std::this_thread::yield();
  }
  EXPECT_EQ(RowsOf(parts_), 96);
  EXPECT_TRUE(courier.Deliver(all[1].ticket, rows[1]).ok());
  ASSERT_TRUE(flight->decode.Wait().ok());
  ASSERT_TRUE(flight->prefill.Wait().ok());
  ExpectRight(request, rows, *flight);
}

TEST_F(PicturesTest, ALostSliceIsAskedForAgainAlone) {
  const worker::StageRequest request = Pictured(120, {8, 50, 90});
  const std::vector<std::vector<float>> rows = {RandomRows(), RandomRows(), RandomRows()};
  Tickets tickets;
  const auto flight = Launch(request, &tickets);
  auto all = tickets.Wait(3);
  Courier courier(source_, request.key);
  courier.Lose(all[1].ticket, RandomRows());
  EXPECT_TRUE(courier.Deliver(all[0].ticket, rows[0]).ok());
  all = tickets.Wait(4);
  EXPECT_EQ(all[3].slice, 1);
  EXPECT_EQ(all[3].attempt, 2u);
  EXPECT_FALSE(courier.Deliver(all[1].ticket, rows[1]).ok()) << "its former place is no more";
  EXPECT_TRUE(courier.Deliver(all[2].ticket, rows[2]).ok());
  EXPECT_FALSE(flight->prefill.WaitFor(Duration::zero()));
  EXPECT_TRUE(courier.Deliver(all[3].ticket, rows[1]).ok());
  ASSERT_TRUE(flight->decode.Wait().ok());
  ASSERT_TRUE(flight->prefill.Wait().ok());
  ExpectRight(request, rows, *flight);
  EXPECT_EQ(tickets.size(), 4u);
}

TEST_F(PicturesTest, ASliceThatNeverComesEndsTheRequestAtLast) {
  const worker::StageRequest request = Pictured(60, {20});
  Tickets tickets;
  const auto flight = Launch(request, &tickets);
  Courier courier(source_, request.key);
  for (uint32_t i = 0; i < prefill::PictureIntake::kAttemptsMax; ++i) {
    courier.Lose(tickets.Wait(i + 1)[i].ticket, RandomRows());
  }
  const absl::Status status = flight->prefill.Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(Message(status).find("encode worker lost"), std::string::npos) << status;
  rig_.decode->Cancel(flight->decode_number);
  flight->decode.Wait().IgnoreError();
}

TEST_F(PicturesTest, CancellingFreesWhatWaits) {
  const worker::StageRequest request = Pictured(90, {20, 50});
  Tickets tickets;
  const auto flight = Launch(request, &tickets);
  const auto all = tickets.Wait(2);
  Courier courier(source_, request.key);
  EXPECT_TRUE(courier.Deliver(all[1].ticket, RandomRows()).ok());
  loop_->Cancel(flight->prefill_number);
  EXPECT_TRUE(absl::IsCancelled(flight->prefill.Wait()));
  EXPECT_FALSE(courier.Deliver(all[0].ticket, RandomRows()).ok());
  rig_.decode->Cancel(flight->decode_number);
  flight->decode.Wait().IgnoreError();
}

// A cached picture prefix is a KV prefix: in its own domain, and for the same picture.
TEST_F(PicturesTest, ACachedPictureNeedsNoTokens) {
  const std::vector<std::vector<float>> rows = {RandomRows()};
  const worker::StageRequest first = Pictured(100, {30});
  const auto run = [&](const worker::StageRequest& request) {
    Tickets tickets;
    const int64_t before = RowsOf(parts_);
    const auto flight = Launch(request, &tickets);
    while (tickets.size() == 0 && !flight->prefill.WaitFor(Duration::zero())) {
      std::this_thread::yield();
    }
    const bool hits = tickets.size() == 0;
    if (!hits) {
      Courier courier(source_, request.key);
      EXPECT_TRUE(courier.Deliver(tickets.Wait(1)[0].ticket, rows[0]).ok());
    }
    EXPECT_TRUE(flight->prefill.Wait().ok());
    EXPECT_TRUE(flight->decode.Wait().ok());
    ExpectRight(request, rows, *flight);
    EXPECT_EQ(tickets.size(), hits ? 0u : 1u);
    return RowsOf(parts_) - before;
  };
  const auto again = [&](uint8_t tenant, uint8_t picture) {
    worker::StageRequest request = rig_.Request(first.token_ids, first.sampling);
    return WithSlices(std::move(request), {30}, tenant, picture);
  };
  EXPECT_EQ(run(first), 100);
  EXPECT_EQ(run(again(1, 7)), 4);
  EXPECT_EQ(run(again(1, 8)), 100 - 16) << "another picture, behind a block of the same text";
  EXPECT_EQ(run(again(2, 7)), 100) << "another tenant";
}

// A decode worker has no multimedia tokens, but the KV that it keeps of pictures is as good as any.
TEST_F(PicturesTest, ADecodeWorkerThatHoldsThePicturesPrefillsTheRest) {
  const std::vector<std::vector<float>> rows = {RandomRows()};
  const worker::StageRequest first = Pictured(100, {30});
  Tickets tickets;
  const auto flight = Launch(first, &tickets);
  Courier courier(source_, first.key);
  EXPECT_TRUE(courier.Deliver(tickets.Wait(1)[0].ticket, rows[0]).ok());
  ASSERT_TRUE(flight->prefill.Wait().ok());
  ASSERT_TRUE(flight->decode.Wait().ok());
  const int64_t before = RowsOf(rig_.decode_parts);
  for (const uint8_t picture : {7, 8}) {
    worker::StageRequest again = rig_.Request(first.token_ids, first.sampling);
    again = WithSlices(std::move(again), {30}, 1, picture);
    again.prefills = true;
    const auto alone = rig_.Launch(again);
    const absl::Status status = alone->decode.Wait();
    if (picture == 8) {
      EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << "another picture";
      break;
    }
    ASSERT_TRUE(status.ok()) << status;
    ExpectRight(again, rows, *alone);
    EXPECT_EQ(RowsOf(rig_.decode_parts) - before, 4 + 3) << "behind six blocks, and the answer's";
  }
}

class FewBlocksTest : public PicturesTest {
 protected:
  FewBlocksTest() : PicturesTest({}, 4) {}  // two slices
};

TEST_F(FewBlocksTest, TextNeverWaitsBehindPictures) {
  const worker::StageRequest first = Pictured(70, {5, 40}), second = Pictured(60, {9}, 2);
  Tickets firsts, seconds;
  const auto waiting = Launch(first, &firsts);
  const auto all = firsts.Wait(2);
  const auto behind = Launch(second, &seconds);
  const auto text = rig_.Request(rig_.RandomPrompt(random_, 90), Seeded(random_(), 4));
  const auto flight = rig_.LaunchAt(*loop_, text);
  ASSERT_TRUE(flight->prefill.Wait().ok());
  ASSERT_TRUE(flight->decode.Wait().ok());
  EXPECT_EQ(seconds.size(), 0u) << "there is no room for its slice";

  const std::vector<std::vector<float>> rows = {RandomRows(), RandomRows()}, row = {RandomRows()};
  Courier courier(source_, first.key), other(source_, second.key);
  EXPECT_TRUE(courier.Deliver(all[0].ticket, rows[0]).ok());
  EXPECT_TRUE(courier.Deliver(all[1].ticket, rows[1]).ok());
  EXPECT_TRUE(other.Deliver(seconds.Wait(1)[0].ticket, row[0]).ok());
  for (const auto* one : {&waiting, &behind}) {
    ASSERT_TRUE((*one)->prefill.Wait().ok());
    ASSERT_TRUE((*one)->decode.Wait().ok());
  }
  ExpectRight(first, rows, *waiting);
  ExpectRight(second, row, *behind);
}

TEST_F(FewBlocksTest, WhatCanNeverFitIsRefused) {
  Tickets tickets;
  const auto flight = Launch(Pictured(100, {5, 30, 60}), &tickets);
  EXPECT_EQ(flight->prefill.Wait().code(), absl::StatusCode::kInvalidArgument);
  flight->decode.Wait().IgnoreError();
  const auto elsewhere = rig_.Launch(Pictured(100, {5}));
  EXPECT_EQ(elsewhere->prefill.Wait().code(), absl::StatusCode::kFailedPrecondition)
      << "a worker without room for pictures";
  elsewhere->decode.Wait().IgnoreError();
}

class FewKvBlocksTest : public PicturesTest {
 protected:
  FewKvBlocksTest() : PicturesTest({.prefill_blocks = 20}) {}
};

TEST_F(FewKvBlocksTest, PromptsThatWaitForPicturesLeaveHalfOfTheBlocksToText) {
  std::vector<worker::StageRequest> requests;
  std::vector<std::unique_ptr<Flight>> flights;
  Tickets tickets[3];
  for (size_t i = 0; i < 3; ++i) {
    requests.push_back(Pictured(70, {5}, static_cast<uint8_t>(1 + i)));
    flights.push_back(Launch(requests[i], &tickets[i]));
  }
  tickets[1].Wait(1);
  const auto text = rig_.Request(rig_.RandomPrompt(random_, 160), Seeded(random_(), 4));
  const auto flight = rig_.LaunchAt(*loop_, text);
  ASSERT_TRUE(flight->prefill.Wait().ok());
  ASSERT_TRUE(flight->decode.Wait().ok());
  EXPECT_EQ(tickets[2].size(), 0u) << "its blocks would be more than half";
  const std::vector<std::vector<float>> rows = {RandomRows()};
  for (size_t i = 0; i < 3; ++i) {
    Courier courier(source_, requests[i].key);
    EXPECT_TRUE(courier.Deliver(tickets[i].Wait(1)[0].ticket, rows[0]).ok());
    ASSERT_TRUE(flights[i]->prefill.Wait().ok());
    ASSERT_TRUE(flights[i]->decode.Wait().ok());
    ExpectRight(requests[i], rows, *flights[i]);
  }
}

class LayeredTest : public PicturesTest {
 protected:
  LayeredTest() : PicturesTest({.prefill_policy = worker::PrefillPolicy::kLayered}) {}
};

TEST_F(LayeredTest, ALayeredPromptWaitsForAllOfThemAndNobodyForIt) {
  const worker::StageRequest request = Pictured(120, {24, 60});
  const std::vector<std::vector<float>> rows = {RandomRows(), RandomRows()};
  Tickets tickets;
  const auto flight = Launch(request, &tickets);
  const auto all = tickets.Wait(2);
  Courier courier(source_, request.key);
  EXPECT_TRUE(courier.Deliver(all[0].ticket, rows[0]).ok());
  // The same first block, and then no picture: it computes that block by itself.
  const auto text =
      In({DomainOf(1)},
         rig_.Request(Joined({request.token_ids.begin(), request.token_ids.begin() + 16},
                             rig_.RandomPrompt(random_, 30)),
                      Seeded(random_(), 4)));
  ASSERT_EQ(text.chain.keys()[0], request.chain.keys()[0]);
  const auto beside = rig_.LaunchAt(*loop_, text);
  ASSERT_TRUE(beside->prefill.Wait().ok());
  ASSERT_TRUE(beside->decode.Wait().ok());
  ExpectRight(text, {}, *beside);
  EXPECT_EQ(RowsOf(parts_), 46) << "of the other not even what stands before its second picture";
  EXPECT_TRUE(courier.Deliver(all[1].ticket, rows[1]).ok());
  ASSERT_TRUE(flight->prefill.Wait().ok());
  ASSERT_TRUE(flight->decode.Wait().ok());
  ExpectRight(request, rows, *flight);
  EXPECT_EQ(RowsOf(parts_), 46 + 120);
}

}  // namespace
}  // namespace trivium::stages
