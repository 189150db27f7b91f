// The encode stage without its network, on a small random tower: what lands is what the encoder
// gives alone, bit for bit, whatever the company, the order and the cache; and no block is lost.
#include "common/encode/encode_loop.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <functional>
#include <mutex>

#include "common/image/testing/make_png.h"
#include "common/media/testing/small_pool.h"
#include "common/vision/slices.h"
#include "common/vision/testing/tiny_tower.h"

namespace trivium::encode {
namespace {

constexpr auto kPatience = std::chrono::seconds(120);
constexpr int32_t kTokens = 16;  // of a slice of the tiny tower

std::unique_ptr<vision::PictureEncoder> MakeEncoder() {
  const std::string path = fmt::format("{}encode_loop_test_{}", testing::TempDir(), getpid());
  TRIVIUM_CHECK(vision::WriteTinyTower(path).ok(), "cannot write {}", path);
  auto tower = vision::Tower::Load(path);
  std::remove(path.c_str());
  TRIVIUM_CHECK(tower.ok(), "{}", Message(tower.status()));
  return std::make_unique<vision::PictureEncoder>(
      *std::move(tower),
      kernels::MakeOps({.numerics = kernels::Numerics::kBatchInvariant, .threads = 1}));
}

struct Probe final : EncodeProbe {
  void OnBatch(int32_t slices, int64_t, double) override {
    encoded += slices;
    if (pool != nullptr) {
      const kv::BlockPool::Counts counts = pool->counts();
      EXPECT_EQ(counts.free + counts.used + counts.leased, counts.total);
    }
    if (on_batch) on_batch();
  }
  const kv::BlockPool* pool = nullptr;
  std::function<void()> on_batch;  // set before the first request
  void OnPicture(double) override {}
  void OnSlice(const SliceReport& report) override { found += report.cached ? 1 : 0; }
  void OnEnd(const absl::Status&) override {}
  std::atomic<int> encoded{0}, found{0};
};

struct Sink final : EncodeSink {
  std::function<void(const SlicesElsewhere&)> on_elsewhere;
  void OnElsewhere(const SlicesElsewhere& slices) override {
    if (on_elsewhere) on_elsewhere(slices);
  }
  void OnSlice(const SliceReport& report) override {
    std::lock_guard lock(mutex);
    reports.push_back(report);
    changed.notify_all();
  }
  void OnEnd(absl::Status status) override {
    std::lock_guard lock(mutex);
    EXPECT_FALSE(end.has_value()) << "a second end";
    end = std::move(status);
    if (on_end) on_end();
    changed.notify_all();
  }
  absl::Status Wait() {
    std::unique_lock lock(mutex);
    TRIVIUM_CHECK(changed.wait_for(lock, kPatience, [this] { return end.has_value(); }),
                  "a request did not end");
    return *end;
  }
  std::function<void()> on_end;  // on the loop's thread
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<SliceReport> reports;
  std::optional<absl::Status> end;
};

// Where one slice lands, as in a prefill worker.
struct Place {
  kv::Reservation blocks;
  transfer::Ticket ticket;
};

class EncodeLoopTest : public testing::Test {
 protected:
  explicit EncodeLoopTest(int32_t blocks = 64, const transfer::TransferTimeouts& timeouts = {})
      : encoder_(MakeEncoder()),
        alone_(MakeEncoder()),
        from_(media::MakeSmallPool(1, blocks, encoder_->tower().config.out_hidden)),
        to_(media::MakeSmallPool(2, 160, encoder_->tower().config.out_hidden, timeouts)) {
    probe_.pool = from_.blocks.get();
  }
  ~EncodeLoopTest() override {
    loop_.reset();
    places_.clear();
    EXPECT_TRUE(AllFree(from_));
    EXPECT_TRUE(AllFree(to_));
  }

  void Start(EncodeContext context = {}) {
    context.encoder = encoder_.get();
    context.media = &from_;
    context.board = &board_;
    context.probe = &probe_;
    context.numerics_class = "batch_invariant/reference";
    loop_ = std::make_unique<EncodeLoop>(context);
  }

  static bool AllFree(const media::MediaPool& pool) {
    for (const TimePoint begin = Clock::Real().Now(); Clock::Real().Now() - begin < kPatience;) {
      const kv::BlockPool::Counts counts = pool.blocks->counts();
      EXPECT_EQ(counts.free + counts.used + counts.leased, counts.total);
      if (counts.free == counts.total) return true;
      std::this_thread::yield();
    }
    return false;
  }

  transfer::Ticket Expect(int32_t tokens = kTokens) {
    Place& place = places_.emplace_back();
    place.blocks = *to_.blocks->Reserve(media::BlocksFor(tokens));
    const auto blocks = place.blocks.blocks();
    place.ticket = *to_.transport->Expect(
        {.credentials = key_,
         .into = {.blocks = {blocks.begin(), blocks.end()}, .lease = place.blocks.Lease()},
         .generation = to_.blocks->generation(blocks[0]),
         .token_end = tokens,
         .on_arrival = [](const auto&) {}});
    return place.ticket;
  }

  EncodeRequest RequestFor(const image::Image& image, const std::vector<int32_t>& slices,
                           std::optional<uint8_t> domain = std::nullopt) {
    EncodeRequest request{.key = key_,
                          .picture = image::MakePng(image),
                          .picture_key = {},
                          .slices = {},
                          .domain = {}};
    for (const int32_t slice : slices) request.slices.push_back({slice, Expect()});
    if (domain.has_value()) {
      request.domain = kv::Domain{.key = {}, .token_end = INT32_MAX};
      request.domain->key.bytes[0] = *domain;
    }
    return request;
  }

  // The slice's tokens, encoded alone.
  std::vector<float> Oracle(const image::Image& image, int32_t slice) {
    const vision::TowerConfig& config = alone_->tower().config;
    const auto plan = vision::PlanPicture(config, image.width, image.height);
    const auto slices = vision::CutPicture(config, *plan, image);
    std::vector<float> out(static_cast<size_t>(kTokens * config.out_hidden));
    alone_->Encode({&slices[static_cast<size_t>(slice)], 1}, out.data());
    return out;
  }
  std::vector<float> Landed(size_t place) {
    std::vector<float> out(static_cast<size_t>(kTokens * to_.hidden()));
    media::ReadRows(*to_.storage, places_[place].blocks.blocks(), 0, out);
    return out;
  }

  std::unique_ptr<vision::PictureEncoder> encoder_, alone_;
  media::MediaPool from_, to_;
  worker::LoadBoard board_;
  Probe probe_;
  const transfer::Credentials key_{.request = {"request"}, .attempt = {1}};
  std::vector<Place> places_;
  std::unique_ptr<EncodeLoop> loop_;
};

TEST_F(EncodeLoopTest, WhatLandsIsWhatTheEncoderGivesAlone) {
  Start();
  const image::Image first = image::NoiseImage(64, 64, 1), second = image::NoiseImage(90, 40, 2);
  Sink a, b;
  ASSERT_TRUE(loop_->Submit(RequestFor(first, {3, 0, 4}), &a).ok());
  ASSERT_TRUE(loop_->Submit(RequestFor(second, {1, 0}), &b).ok());
  EXPECT_TRUE(a.Wait().ok());
  EXPECT_TRUE(b.Wait().ok());
  EXPECT_EQ(a.reports.size(), 3u);
  EXPECT_EQ(a.reports[0].bytes, kTokens * from_.hidden() * 4);
  const std::pair<const image::Image*, int32_t> wanted[] = {
      {&first, 3}, {&first, 0}, {&first, 4}, {&second, 1}, {&second, 0}};
  for (size_t i = 0; i < std::size(wanted); ++i) {
    EXPECT_EQ(Landed(i), Oracle(*wanted[i].first, wanted[i].second)) << i;
  }
}

TEST_F(EncodeLoopTest, WhatADomainHasHadEncodedIsSentAgainToItAlone) {
  Start();
  const image::Image image = image::NoiseImage(64, 64, 3);
  const auto run = [&](std::optional<uint8_t> domain) {
    const int encoded = probe_.encoded;
    Sink sink;
    EXPECT_TRUE(loop_->Submit(RequestFor(image, {0, 4}, domain), &sink).ok());
    EXPECT_TRUE(sink.Wait().ok());
    for (const int32_t i : {0, 1}) {
      EXPECT_EQ(Landed(places_.size() - 2 + static_cast<size_t>(i)), Oracle(image, i * 4));
    }
    return probe_.encoded - encoded;
  };
  EXPECT_EQ(run(1), 2);
  EXPECT_EQ(run(1), 0);
  EXPECT_EQ(run(2), 2) << "another tenant must not learn that it is there";
  EXPECT_EQ(run(2), 0);
  EXPECT_EQ(run(std::nullopt), 2);
  EXPECT_EQ(run(std::nullopt), 2) << "nothing was to be kept";
  EXPECT_EQ(probe_.found, 4);
}

TEST_F(EncodeLoopTest, RefusesWhatCannotBe) {
  Start({.limits = {.side = 100}, .requests_max = 4, .slices_max = 3});
  Sink sink;
  const image::Image image = image::NoiseImage(64, 64, 4);
  const auto error = [&](EncodeRequest request) {
    return loop_->Submit(std::move(request), &sink).status();
  };
  EncodeRequest text = RequestFor(image, {0});
  text.picture = "no picture";
  EXPECT_EQ(error(text).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(Message(error(RequestFor(image::NoiseImage(101, 10, 1), {0}))).find("100"),
            std::string::npos);
  EXPECT_NE(Message(error(RequestFor(image, {5}))).find("0 … 4"), std::string::npos);
  EXPECT_EQ(error(RequestFor(image, {1, 1})).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(error(RequestFor(image, {})).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(error(RequestFor(image, {0, 1, 2, 3})).code(), absl::StatusCode::kResourceExhausted);
  EncodeRequest short_ticket = RequestFor(image, {0});
  short_ticket.slices[0].ticket.token_end = kTokens - 1;
  EXPECT_EQ(error(short_ticket).code(), absl::StatusCode::kInvalidArgument);

  EncodeRequest damaged = RequestFor(image, {0});
  damaged.picture.resize(damaged.picture.size() / 2);
  ASSERT_TRUE(loop_->Submit(std::move(damaged), &sink).ok()) << "the header is right";
  EXPECT_EQ(sink.Wait().code(), absl::StatusCode::kInvalidArgument);
  loop_->Drain();
  EXPECT_EQ(error(RequestFor(image, {0})).code(), absl::StatusCode::kUnavailable);
}

TEST_F(EncodeLoopTest, ASliceThatIsNotTakenEndsNoOther) {
  Start();
  const image::Image image = image::NoiseImage(64, 64, 5);
  EncodeRequest request = RequestFor(image, {0, 1, 2});
  to_.transport->Withdraw(places_[1].ticket.landing_id);
  Sink sink;
  ASSERT_TRUE(loop_->Submit(std::move(request), &sink).ok());
  EXPECT_EQ(sink.Wait().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(sink.reports.size(), 2u);
  EXPECT_EQ(Landed(0), Oracle(image, 0));
  EXPECT_EQ(Landed(2), Oracle(image, 2));
}

// Beside the loop of the other tests, which holds what it has encoded.
class PullTest : public EncodeLoopTest {
 protected:
  PullTest() : puller_encoder_(MakeEncoder()), pool_(media::MakeSmallPool(3, 16, to_.hidden())) {
    Start();
    puller_ =
        std::make_unique<EncodeLoop>(EncodeContext{.encoder = puller_encoder_.get(),
                                                   .media = &pool_,
                                                   .board = &puller_board_,
                                                   .probe = &puller_probe_,
                                                   .numerics_class = "batch_invariant/reference",
                                                   .limits = {}});
  }
  ~PullTest() override {
    puller_.reset();
    loop_.reset();
    places_.clear();
    EXPECT_TRUE(AllFree(pool_));
    pool_.transport.reset();
  }

  // Asks the puller for all slices of the picture; whoever holds them is asked for what it names.
  void Pull(const image::Image& image, uint8_t domain, Duration pull_for) {
    EncodeRequest request = RequestFor(image, {0, 1, 2, 3, 4}, domain);
    for (WantedSlice& slice : request.slices) slice.is_elsewhere = true;
    request.pull_for = pull_for;
    Sink sink, held;
    bool is_asked = false;
    sink.on_elsewhere = [&](const SlicesElsewhere& elsewhere) {
      EncodeRequest named{.key = key_,
                          .picture = {},
                          .picture_key = elsewhere.picture_key,
                          .slices = elsewhere.slices,
                          .domain = request.domain};
      is_asked = loop_->Submit(std::move(named), &held).ok();
    };
    const size_t first = places_.size() - 5;
    ASSERT_TRUE(puller_->Submit(request, &sink).ok());
    EXPECT_TRUE(sink.Wait().ok());
    if (is_asked) held_end_ = held.Wait();
    reports_ = sink.reports;
    for (int32_t i = 0; i < 5; ++i) {
      EXPECT_EQ(Landed(first + static_cast<size_t>(i)), Oracle(image, i)) << i;
    }
  }

  std::unique_ptr<vision::PictureEncoder> puller_encoder_;
  media::MediaPool pool_;
  worker::LoadBoard puller_board_;
  Probe puller_probe_;
  std::unique_ptr<EncodeLoop> puller_;
  std::optional<absl::Status> held_end_;
  std::vector<SliceReport> reports_;
};

TEST_F(PullTest, WhatAnotherHoldsIsSentOnAndKept) {
  const image::Image image = image::NoiseImage(64, 64, 9);
  Sink sink;
  ASSERT_TRUE(loop_->Submit(RequestFor(image, {0, 1, 2, 3, 4}, 1), &sink).ok());
  ASSERT_TRUE(sink.Wait().ok());
  Pull(image, 1, std::chrono::seconds(60));
  ASSERT_TRUE(held_end_.has_value());
  EXPECT_TRUE(held_end_->ok()) << *held_end_;
  EXPECT_EQ(puller_probe_.encoded, 0);
  EXPECT_EQ(std::ranges::count(reports_, true, &SliceReport::pulled), 5);
  held_end_.reset();
  Pull(image, 1, std::chrono::seconds(60));
  EXPECT_FALSE(held_end_.has_value()) << "it holds them by now";
  EXPECT_EQ(puller_probe_.encoded, 0);
}

TEST_F(PullTest, WhatDoesNotComeIsEncoded) {
  const image::Image image = image::NoiseImage(64, 64, 10);
  Sink sink;
  ASSERT_TRUE(loop_->Submit(RequestFor(image, {0, 4}, 1), &sink).ok());
  ASSERT_TRUE(sink.Wait().ok());
  Pull(image, 1, std::chrono::milliseconds(20));
  ASSERT_TRUE(held_end_.has_value());
  EXPECT_EQ(held_end_->code(), absl::StatusCode::kNotFound) << "a part of it";
  EXPECT_GE(puller_probe_.encoded, 3);
  held_end_.reset();
  Pull(image, 2, std::chrono::milliseconds(20));
  ASSERT_TRUE(held_end_.has_value());
  EXPECT_EQ(held_end_->code(), absl::StatusCode::kNotFound) << "another tenant";
  EXPECT_EQ(std::ranges::count(reports_, true, &SliceReport::cached), 0);
}

TEST_F(PullTest, NamesAreChecked) {
  const image::Image image = image::NoiseImage(64, 64, 11);
  Sink sink;
  EncodeRequest request = RequestFor(image, {0}, 1);
  request.picture_key = std::string(32, 'k');
  EXPECT_EQ(loop_->Submit(request, &sink).status().code(), absl::StatusCode::kInvalidArgument)
      << "a picture beside its name";
  request.picture.clear();
  request.domain.reset();
  EXPECT_EQ(loop_->Submit(request, &sink).status().code(), absl::StatusCode::kInvalidArgument);
  request.picture_key.pop_back();
  EXPECT_EQ(loop_->Submit(request, &sink).status().code(), absl::StatusCode::kInvalidArgument);
}

// Its landings wait unused for as long as the queue is, which a slow build takes its time for.
class TurnsTest : public EncodeLoopTest {
 protected:
  TurnsTest() : EncodeLoopTest(64, {.unused_ticket = kPatience}) {}
};

// One tenant has many pictures waiting when another comes with one: that is not behind all of them.
TEST_F(TurnsTest, TenantsTakeTurns) {
  constexpr int kMany = 24;
  std::mutex mutex;
  std::condition_variable changed;
  bool is_open = false;
  probe_.on_batch = [&] {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return is_open; });
  };
  Start();
  const image::Image image = image::NoiseImage(64, 64, 8);
  const auto request = [&](uint64_t tenant) {
    EncodeRequest made = RequestFor(image, {0, 1, 2, 3, 4});
    made.share.tenant = tenant;
    return made;
  };
  Sink first, many[kMany], other;
  // On the loop's thread, so that nothing ends meanwhile.
  int64_t ended = 0;
  other.on_end = [&] {
    ended = std::ranges::count_if(many, [](Sink& sink) {
      std::lock_guard lock(sink.mutex);
      return sink.end.has_value();
    });
  };
  ASSERT_TRUE(loop_->Submit(request(1), &first).ok());
  for (Sink& sink : many) ASSERT_TRUE(loop_->Submit(request(1), &sink).ok());
  ASSERT_TRUE(loop_->Submit(request(2), &other).ok());
  {
    std::lock_guard lock(mutex);
    is_open = true;
  }
  changed.notify_all();
  EXPECT_TRUE(other.Wait().ok());
  EXPECT_LT(ended, kMany * 2 / 3);
  for (Sink& sink : many) EXPECT_TRUE(sink.Wait().ok());
  EXPECT_TRUE(first.Wait().ok());
}

// Two blocks, a slice each: what is on its way holds back what waits, and nothing is lost.
class SmallPoolTest : public EncodeLoopTest {
 protected:
  SmallPoolTest() : EncodeLoopTest(2) {}
};

TEST_F(SmallPoolTest, SlicesWaitForBlocksOfThoseOnTheirWay) {
  Start();
  const image::Image image = image::NoiseImage(64, 64, 6);
  Sink sinks[3];
  for (Sink& sink : sinks) {
    ASSERT_TRUE(loop_->Submit(RequestFor(image, {0, 1, 2, 3, 4}, 1), &sink).ok());
  }
  for (Sink& sink : sinks) {
    EXPECT_TRUE(sink.Wait().ok());
    EXPECT_EQ(sink.reports.size(), 5u);
  }
  for (size_t i = 0; i < places_.size(); ++i) {
    EXPECT_EQ(Landed(i), Oracle(image, static_cast<int32_t>(i % 5))) << i;
  }
}

TEST_F(SmallPoolTest, CancelledAndStoppedRequestsEndOnceAndHoldNothing) {
  Start();
  const image::Image image = image::NoiseImage(64, 64, 7);
  Sink cancelled, stopped;
  const auto number = loop_->Submit(RequestFor(image, {0, 1, 2, 3, 4}), &cancelled);
  ASSERT_TRUE(number.ok());
  loop_->Cancel(*number);
  ASSERT_TRUE(loop_->Submit(RequestFor(image, {0, 1, 2, 3, 4}), &stopped).ok());
  loop_->Stop();
  EXPECT_TRUE(cancelled.Wait().ok() || absl::IsCancelled(cancelled.Wait()));
  EXPECT_TRUE(stopped.Wait().ok() || absl::IsUnavailable(stopped.Wait()));
}

}  // namespace
}  // namespace trivium::encode
