// A request whose prefill worker asks for slices of pictures: who is asked for which of them, and
// what each way to fail leads to. Workers are scripted.
#include <gtest/gtest.h>

#include <deque>

#include "services/router/dispatch/dispatch_fixture.h"

namespace trivium::router {
namespace {

constexpr uint64_t kTicket = kTicketStride;
constexpr Duration kPatience = std::chrono::hours(1);  // the client's
constexpr WorkerIndex kPrefill = 0, kDecode = 1, kFirst = 2, kSecond = 3;

template <typename Request, typename Event>
struct Opened final : StageCall {
  void Cancel() override { is_cancelled = true; }
  WorkerIndex worker = kNoWorker;
  Request request;
  StageHandlers<Event> handlers;
  bool is_cancelled = false;
};

struct Stages final : StageClients {
  template <typename Request, typename Event>
  static std::shared_ptr<StageCall> Open(std::deque<std::shared_ptr<Opened<Request, Event>>>& calls,
                                         WorkerIndex worker, const Request& request,
                                         StageHandlers<Event> handlers) {
    auto call = std::make_shared<Opened<Request, Event>>();
    call->worker = worker;
    call->request = request;
    call->handlers = std::move(handlers);
    calls.push_back(call);
    return call;
  }
  std::shared_ptr<StageCall> Prefill(WorkerIndex worker, const v1::PrefillRequest& request,
                                     std::optional<TimePoint>,
                                     StageHandlers<v1::PrefillEvent> handlers) override {
    return Open(prefills, worker, request, std::move(handlers));
  }
  std::shared_ptr<StageCall> Decode(WorkerIndex worker, const v1::DecodeRequest& request,
                                    std::optional<TimePoint>,
                                    StageHandlers<v1::DecodeEvent> handlers) override {
    return Open(decodes, worker, request, std::move(handlers));
  }
  std::shared_ptr<StageCall> Encode(WorkerIndex worker, const v1::EncodeRequest& request,
                                    std::optional<TimePoint>,
                                    StageHandlers<v1::EncodeEvent> handlers) override {
    return Open(encodes, worker, request, std::move(handlers));
  }
  std::shared_ptr<StageCall> SendPrefix(WorkerIndex, const v1::SendPrefixRequest&,
                                        std::optional<TimePoint>,
                                        StageHandlers<v1::PrefixSent>) override {
    return nullptr;
  }
  void EndChoice(WorkerIndex, const v1::EndChoiceRequest&) override {}

  std::deque<std::shared_ptr<Opened<v1::PrefillRequest, v1::PrefillEvent>>> prefills;
  std::deque<std::shared_ptr<Opened<v1::DecodeRequest, v1::DecodeEvent>>> decodes;
  std::deque<std::shared_ptr<Opened<v1::EncodeRequest, v1::EncodeEvent>>> encodes;
};

// Slices go to `encoders` in turn, to those that have failed only where there are no others.
struct Host final : RunHost {
  void Wait(uint64_t, const RequestShape&, TimePoint) override { ++waits; }
  void WaitApart(uint64_t, std::shared_ptr<RequestRun>, const RequestShape&, TimePoint) override {}
  void Reserved(uint64_t) override {}
  void FirstToken(uint64_t) override {}
  void PrefillEnded(uint64_t) override {}
  void Transferred(uint64_t, int64_t, Duration) override {}
  void Pulled(uint64_t, int64_t, Duration) override {}
  absl::StatusOr<std::vector<PlacedSlice>> PlaceSlices(SlicesShape shape) override {
    std::vector<WorkerIndex> able;
    for (const WorkerIndex worker : encoders) {
      if (std::count(shape.failed.begin(), shape.failed.end(), worker) == 0) able.push_back(worker);
    }
    if (able.empty()) able = encoders;
    if (able.empty()) return Unavailable("no encode worker is reachable");
    std::vector<PlacedSlice> placed;
    for (size_t i = 0; i < shape.slices.size(); ++i) {
      const WorkerIndex worker = able[i % able.size()];
      placed.push_back({.at = {worker, 1, fmt::format("encode-{}", worker), "fast/avx2"},
                        .holder = {.worker = holder},
                        .pull_for = std::chrono::milliseconds(100)});
      ++slices[worker];
    }
    return placed;
  }
  void SlicesEnded(const PlacedWorker& worker, int32_t count) override {
    slices[worker.worker] -= count;
  }
  bool IsGone(const PlacedWorker&) const override { return false; }
  void WorkerFailed(const PlacedWorker& worker, FailureAction, const std::string&) override {
    failed.push_back(worker.worker);
  }
  void Answered(uint64_t) override {}
  void Closed(uint64_t) override {}

  std::vector<WorkerIndex> encoders = {kFirst, kSecond};
  WorkerIndex holder = kNoWorker;         // of all slices
  std::map<WorkerIndex, int32_t> slices;  // placed and not ended
  std::vector<WorkerIndex> failed;
  int waits = 0;
};

class RunEncodeTest : public testing::Test {
 protected:
  RunEncodeTest() : metrics_(&registry_, {}) {
    context_.tokenizer = TinyModel()->tokenizer.get();
    context_.vocab = 320;
    context_.fingerprint = "model";
    context_.tower = "tower";
    context_.stages = &stages_;
    context_.host = &host_;
    context_.metrics = &metrics_;
    context_.clock = &clock_;
    RunRequest request = DispatchFixture::Request(std::vector<int32_t>(100, 5), 4);
    request.deadline = clock_.Now() + kPatience;
    // Two slices of the first picture, two of the second.
    for (int32_t i = 0; i < 4; ++i) {
      request.slices.push_back({.picture = i / 2,
                                .slice = i % 2,
                                .span = {.position = 20 * i, .tokens = 16, .digest = {}}});
    }
    for (const char* file : {"first", "second"}) {
      request.pictures.push_back(std::make_shared<RunPicture>());
      request.pictures.back()->file = file;
    }
    request.pictures[1]->domain = kv::Domain{.key = {}, .token_end = INT32_MAX};
    run_ = std::make_shared<RequestRun>(context_, kTicket, std::move(request), sink_);
    PlacedPair pair;
    pair.prefill = {kPrefill, 1, "prefill-0", "fast/avx2"};
    pair.decode = {kDecode, 1, "decode-0", "fast/avx2"};
    run_->OnPlaced(kTicket, pair);
    v1::DecodeEvent reserved;
    reserved.mutable_ticket();
    stages_.decodes.at(0)->handlers.on_event(reserved);
  }
  ~RunEncodeTest() override {
    run_->Cancel();
    for (const auto& [worker, count] : host_.slices) EXPECT_EQ(count, 0) << worker;
  }

  // The prefill worker asks for these.
  void Ask(const std::vector<int32_t>& slices, uint32_t attempt = 1) {
    v1::PrefillEvent event;
    for (const int32_t slice : slices) {
      v1::SliceTicket* ticket = event.mutable_slice_tickets()->add_tickets();
      ticket->set_slice(slice);
      ticket->set_attempt(attempt);
      ticket->mutable_ticket()->set_landing_id(static_cast<uint64_t>(slice) + 100 * attempt);
    }
    stages_.prefills.at(0)->handlers.on_event(event);
  }
  auto& call(size_t index) { return *stages_.encodes.at(index); }
  void Land(size_t index, int32_t slice) {
    v1::EncodeEvent event;
    event.mutable_sent()->set_slice(slice);
    call(index).handlers.on_event(event);
  }
  // By call, the landings that it was given.
  std::vector<std::vector<uint64_t>> Landings() {
    std::vector<std::vector<uint64_t>> all;
    for (const auto& one : stages_.encodes) {
      all.emplace_back();
      for (const auto& slice : one->request.slices()) {
        all.back().push_back(slice.ticket().landing_id());
      }
    }
    return all;
  }
  void Pass(Duration time) {
    clock_.Advance(time);
    if (run_->due() <= clock_.Now()) run_->OnTimer();
  }
  using Lists = std::vector<std::vector<uint64_t>>;

  telemetry::Metrics registry_;
  RouterMetrics metrics_;
  VirtualClock clock_;
  Stages stages_;
  Host host_;
  RunContext context_;
  std::shared_ptr<RecordingSink> sink_ = std::make_shared<RecordingSink>();
  std::shared_ptr<RequestRun> run_;
};

TEST_F(RunEncodeTest, EachWorkerIsAskedOnceForEachPicture) {
  EXPECT_EQ(stages_.prefills.at(0)->request.slices_size(), 4);
  EXPECT_EQ(stages_.decodes.at(0)->request.slices_size(), 4);
  Ask({0, 1, 2, 3});
  EXPECT_EQ(Landings(), (Lists{{100}, {102}, {101}, {103}}));
  EXPECT_EQ(call(0).worker, kFirst);
  EXPECT_EQ(call(2).worker, kSecond);
  EXPECT_EQ(call(0).request.picture(), "first");
  EXPECT_FALSE(call(0).request.has_domain());
  EXPECT_EQ(call(3).request.picture(), "second");
  EXPECT_TRUE(call(3).request.has_domain());
  EXPECT_EQ(call(3).request.slices(0).slice(), 1);
  EXPECT_EQ(call(3).request.tower(), "tower");
  EXPECT_EQ(call(3).request.key().SerializeAsString(),
            stages_.prefills.at(0)->request.key().SerializeAsString());
  Land(0, 0);
  EXPECT_EQ(host_.slices[kFirst], 1);
}

TEST_F(RunEncodeTest, WhatAFailedWorkerOwesIsAskedOfAnotherAlone) {
  Ask({0, 2, 1, 3});
  ASSERT_EQ(stages_.encodes.size(), 4u);
  host_.encoders = {kFirst, kSecond};
  Land(0, 0);
  call(0).handlers.on_end(absl::OkStatus());
  call(1).handlers.on_end(Unavailable("gone"));
  EXPECT_EQ(host_.failed, std::vector<WorkerIndex>{kFirst});
  EXPECT_EQ(Landings().back(), std::vector<uint64_t>{102});
  EXPECT_EQ(call(4).worker, kSecond);
  EXPECT_EQ(host_.waits, 0) << "the attempt goes on";
}

TEST_F(RunEncodeTest, AHolderIsAskedToSendToWhoPulls) {
  host_.encoders = {kFirst};
  host_.holder = kSecond;
  Ask({2, 3});
  ASSERT_EQ(stages_.encodes.size(), 1u);
  EXPECT_TRUE(call(0).request.slices(1).held_elsewhere());
  EXPECT_EQ(call(0).request.pull_ms(), 200);
  v1::EncodeEvent event;
  event.mutable_elsewhere()->set_picture_key("named");
  v1::WantedSlice* wanted = event.mutable_elsewhere()->add_slices();
  wanted->set_slice(1);
  wanted->mutable_ticket()->set_landing_id(77);
  for (int i = 0; i < 2; ++i) call(0).handlers.on_event(event);
  ASSERT_EQ(stages_.encodes.size(), 2u) << "once";
  EXPECT_EQ(call(1).worker, kSecond);
  EXPECT_EQ(call(1).request.picture_key(), "named");
  EXPECT_TRUE(call(1).request.picture().empty());
  EXPECT_EQ(call(1).request.domain().SerializeAsString(),
            call(0).request.domain().SerializeAsString());
  EXPECT_EQ(Landings().back(), std::vector<uint64_t>{77});
  call(1).handlers.on_end(absl::NotFoundError("not held"));
  EXPECT_TRUE(host_.failed.empty());
  Land(0, 1);
  Land(0, 0);
  EXPECT_EQ(host_.slices[kFirst], 0);
}

TEST_F(RunEncodeTest, AStraySliceWaitsForAnotherTicket) {
  Ask({0, 1});
  call(0).handlers.on_end(absl::AbortedError("not taken"));
  EXPECT_EQ(stages_.encodes.size(), 2u);
  EXPECT_TRUE(host_.failed.empty());
  Ask({0}, 2);
  EXPECT_EQ(Landings().back(), std::vector<uint64_t>{200});
  call(1).handlers.on_end(absl::AbortedError("not taken"));
  Pass(std::chrono::seconds(5));
  EXPECT_EQ(Landings().back(), std::vector<uint64_t>{101}) << "no other came: it is tried again";
}

TEST_F(RunEncodeTest, AStraySliceIsNotAskedForWithTheOthers) {
  Ask({0, 1});
  call(0).handlers.on_end(absl::AbortedError("not taken"));
  call(1).handlers.on_end(Unavailable("gone"));
  Ask({2});
  EXPECT_EQ(Landings(), (Lists{{100}, {101}, {101}, {102}})) << "its ticket may be dead";
  Pass(std::chrono::seconds(3));
  EXPECT_EQ(stages_.encodes.size(), 4u);
  Pass(std::chrono::seconds(2));
  EXPECT_EQ(Landings().back(), std::vector<uint64_t>{100});
}

TEST_F(RunEncodeTest, AnotherWorkerIsAskedAfterOneThatDeliversNothing) {
  Ask({0});
  const WorkerIndex first = call(0).worker;
  call(0).handlers.on_end(absl::AbortedError("not taken"));
  Pass(std::chrono::seconds(5));
  ASSERT_EQ(stages_.encodes.size(), 2u);
  EXPECT_NE(call(1).worker, first);
}

TEST_F(RunEncodeTest, StraySlicesHaveALimit) {
  host_.encoders = {kFirst};
  Ask({0});
  for (size_t i = 0; i < 20 && !sink_->Get().error.has_value(); ++i) {
    ASSERT_EQ(stages_.encodes.size(), i + 1);
    call(i).handlers.on_end(absl::AbortedError("not taken"));
    Pass(std::chrono::seconds(5));
  }
  ASSERT_TRUE(sink_->Get().error.has_value());
  EXPECT_EQ(sink_->Get().error->code(), absl::StatusCode::kUnavailable);
}

TEST_F(RunEncodeTest, AnEncoderThatStaysFullHasALimitAndIsAskedLessOften) {
  host_.encoders = {kFirst};
  Ask({0});
  size_t asked = 0;
  for (int i = 0; i < 1000 && !sink_->Get().error.has_value(); ++i) {
    if (stages_.encodes.size() > asked) call(asked++).handlers.on_end(ResourceExhausted("full"));
    Pass(std::chrono::milliseconds(100));
  }
  ASSERT_TRUE(sink_->Get().error.has_value());
  EXPECT_EQ(sink_->Get().error->code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(asked, 64u);
}

TEST_F(RunEncodeTest, WhoIsCutOffByTheClientsDeadlineIsNotBlamed) {
  Ask({0});
  clock_.Advance(kPatience);
  call(0).handlers.on_end(absl::DeadlineExceededError("too late"));
  ASSERT_TRUE(sink_->Get().error.has_value());
  EXPECT_EQ(sink_->Get().error->code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(host_.failed.empty());
  EXPECT_EQ(stages_.encodes.size(), 1u);
}

TEST_F(RunEncodeTest, ANewTicketOvertakesTheFormerCall) {
  Ask({0});
  Ask({0}, 2);
  ASSERT_EQ(stages_.encodes.size(), 2u);
  call(0).handlers.on_end(Unavailable("gone"));
  EXPECT_EQ(stages_.encodes.size(), 2u) << "its slice is no longer its own";
}

TEST_F(RunEncodeTest, AFullWorkerIsAskedAgainSoon) {
  host_.encoders = {kFirst};
  Ask({0});
  call(0).handlers.on_end(ResourceExhausted("full"));
  EXPECT_EQ(stages_.encodes.size(), 1u);
  Pass(std::chrono::milliseconds(100));
  EXPECT_EQ(Landings(), (Lists{{100}, {100}}));
}

TEST_F(RunEncodeTest, ALostWorkerIsMadeUpForByAnother) {
  Ask({0, 1});
  run_->OnWorkerLost(kTicket, kFirst, 1, "no report");
  EXPECT_TRUE(call(0).is_cancelled);
  EXPECT_EQ(Landings().back(), std::vector<uint64_t>{100});
  EXPECT_EQ(call(2).worker, kSecond);
  call(0).handlers.on_end(absl::CancelledError(""));
  EXPECT_EQ(stages_.encodes.size(), 3u);
}

TEST_F(RunEncodeTest, APrefillWorkerThatEncodesIsLostOnce) {
  host_.encoders = {kPrefill};
  Ask({0, 1});
  run_->OnWorkerLost(kTicket, kPrefill, 1, "no report");
  EXPECT_EQ(host_.waits, 1) << "another attempt";
  EXPECT_EQ(stages_.encodes.size(), 1u);
  EXPECT_TRUE(call(0).is_cancelled);
  EXPECT_TRUE(host_.failed.empty()) << "as an encoder it is not blamed too";
}

TEST_F(RunEncodeTest, ADamagedPictureIsTheClientsFault) {
  Ask({0});
  call(0).handlers.on_end(InvalidArgument("the picture is truncated"));
  ASSERT_TRUE(sink_->Get().error.has_value());
  EXPECT_EQ(sink_->Get().error->code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Message(*sink_->Get().error), "encode worker encode-2: the picture is truncated");
}

TEST_F(RunEncodeTest, WithoutAnEncoderTheRequestEndsAfterItsPatience) {
  host_.encoders = {};
  Ask({0});
  for (int i = 0; i < 20; ++i) Pass(std::chrono::milliseconds(100));
  EXPECT_FALSE(sink_->Get().error.has_value());
  for (int i = 0; i < 20; ++i) Pass(std::chrono::milliseconds(100));
  ASSERT_TRUE(sink_->Get().error.has_value());
  EXPECT_EQ(sink_->Get().error->code(), absl::StatusCode::kUnavailable);
}

TEST_F(RunEncodeTest, FailuresHaveALimit) {
  host_.encoders = {kFirst, kSecond, 4, 5, 6, 7, 8, 9, 10, 11, 12};
  Ask({0});
  for (size_t i = 0; i < 8; ++i) call(i).handlers.on_end(absl::InternalError("broken"));
  ASSERT_TRUE(sink_->Get().error.has_value());
  EXPECT_EQ(sink_->Get().error->code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(Message(*sink_->Get().error).find("encode worker"), std::string::npos);
}

// A worker that is lost, or a prefill worker that cannot be reached for a moment, ends all calls of
// a request at once: that is one event for each slice, however many there are.
TEST_F(RunEncodeTest, ManyCallsThatEndTogetherUseNoLimitUp) {
  for (const absl::Status& why : {absl::InternalError("broken"), absl::AbortedError("not taken")}) {
    const size_t before = stages_.encodes.size();
    const uint32_t attempt = 1 + static_cast<uint32_t>(before);  // a new ticket each time
    for (const int32_t slice : {0, 1, 2, 3}) Ask({slice}, attempt);
    for (int twice = 0; twice < 2; ++twice) {
      const size_t first = stages_.encodes.size() - 4;
      for (size_t i = first; i < first + 4; ++i) call(i).handlers.on_end(why);
      Pass(std::chrono::seconds(5));
      EXPECT_FALSE(sink_->Get().error.has_value()) << why;
      EXPECT_EQ(stages_.encodes.size(), first + 8) << "each is asked for again";
    }
  }
}

TEST_F(RunEncodeTest, TicketsForSlicesThatAreNoneFailThePrefillWorker) {
  Ask({4});
  EXPECT_EQ(host_.waits, 1) << "another attempt";
  EXPECT_TRUE(stages_.encodes.empty());
}

}  // namespace
}  // namespace trivium::router
