// A prefill worker gets a prefix from another worker at the router's request, and no end of that
// call is an end of the client's request.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "services/router/dispatch/kv_placement_fixture.h"

namespace trivium::router {
namespace {

// The decode workers hold the beginning of a prompt that is too long for them to compute the rest.
class RunPullTest : public KvPlacementTest {
 protected:
  RunPullTest() {
    for (const WorkerIndex worker : {2, 3}) EXPECT_TRUE(Send(worker, Holds(1)));
  }

  static std::vector<int32_t> LongIds() {
    std::vector<int32_t> ids = Ids(0);
    for (int32_t i = 0; i < 300; ++i) ids.push_back(3 + i * 7 % 300);
    return ids;
  }

  std::shared_ptr<RecordingSink> Submit(RunRequest request) {
    const auto sink = std::make_shared<RecordingSink>();
    runs_.push_back(all_.dispatcher.Submit(std::move(request), sink));
    return sink;
  }
  RunRequest Request() const {
    RunRequest request = DispatchFixture::Request(LongIds(), 20);
    request.kv_domains = DomainOf(1);
    return request;
  }

  void RunToEnd(const RecordingSink& sink) {
    for (int i = 0; i < 2000 && !sink.has_ended(); ++i) {
      if (!all_.cluster.StepRandomCall(random_, 0) || i % 16 == 0) {
        all_.Pass(Dispatcher::kTickInterval);
      }
    }
    ASSERT_TRUE(sink.has_ended());
  }

  void ExpectRight(const RunRequest& request, const RecordingSink& sink) {
    const RecordingSink::Record record = sink.Get();
    ASSERT_TRUE(record.done.has_value()) << *record.error;
    EXPECT_EQ(record.ids, all_.Want(request).ids);
    EXPECT_EQ(record.done->served_by().attempts(), 1);
  }

  std::mt19937_64 random_{7};
};

TEST_F(RunPullTest, TheHolderIsAskedToSendWhereThePrefillWorkerSaid) {
  const RunRequest request = Request();
  const auto sink = Submit(request);
  const auto why = all_.dispatcher.Explain(request.id);
  ASSERT_EQ(why.size(), 1u);
  EXPECT_THAT(why[0].text, testing::AllOf(testing::StartsWith("pull: prefill prefill-"),
                                          testing::HasSubstr("holds 0 tokens, 96 from decode-2")));
  RunToEnd(*sink);
  ExpectRight(request, *sink);
  ASSERT_EQ(all_.cluster.pulls().size(), 1u);
  const v1::SendPrefixRequest asked = all_.cluster.pulls().front();
  const v1::PrefillRequest prefill = all_.cluster.prefills().back();
  EXPECT_EQ(prefill.pull_tokens(), 96);
  EXPECT_GT(prefill.pull_ms(), 0);
  EXPECT_EQ(asked.key().SerializeAsString(), prefill.key().SerializeAsString());
  EXPECT_EQ(asked.numerics_class(), all_.options.numerics_class);
  EXPECT_EQ(asked.fingerprint(), SimCluster::kFingerprint);
  const std::vector<int32_t> ids = LongIds();
  EXPECT_EQ(std::vector<int32_t>(asked.token_ids().begin(), asked.token_ids().end()),
            std::vector<int32_t>(ids.begin(), ids.begin() + 96));
  ASSERT_EQ(asked.kv_domains_size(), 1);
  EXPECT_EQ(asked.kv_domains(0).key(), prefill.kv_domains(0).key());
  EXPECT_THAT(all_.registry.Text(), testing::HasSubstr("router_pulls_total{reason=\"whole\"} 1"));
}

TEST_F(RunPullTest, NoEndOfTheCallIsAnEndOfTheRequest) {
  for (const absl::StatusCode code :
       {absl::StatusCode::kUnavailable, absl::StatusCode::kResourceExhausted,
        absl::StatusCode::kInvalidArgument, absl::StatusCode::kFailedPrecondition,
        absl::StatusCode::kUnimplemented, absl::StatusCode::kUnauthenticated,
        absl::StatusCode::kDeadlineExceeded, absl::StatusCode::kInternal,
        absl::StatusCode::kAborted}) {
    const RunRequest request = Request();
    const auto sink = Submit(request);
    // Its decode call is open by now.
    const size_t asked = all_.cluster.pulls().size();
    const auto refuse = [this](const absl::Status& status) {
      for (const WorkerIndex worker : {2, 3}) all_.cluster.SetRefusing(worker, status);
    };
    refuse(absl::Status(code, "fingerprint"));
    for (int i = 0; i < 1000 && all_.cluster.pulls().size() == asked; ++i) {
      all_.cluster.StepRandomCall(random_, 0);
    }
    ASSERT_EQ(all_.cluster.pulls().size(), asked + 1);
    refuse(absl::OkStatus());
    RunToEnd(*sink);
    ExpectRight(request, *sink);
    // Nobody expects any more that its prefill worker will hold the prompt.
    all_.Pass(std::chrono::seconds(6));
  }
  EXPECT_THAT(all_.registry.Text(), testing::HasSubstr("router_pulls_total{reason=\"failed\"} 9"));
}

TEST_F(RunPullTest, ACancelledRequestCancelsItsPull) {
  const auto sink = Submit(Request());
  for (int i = 0; i < 1000 && all_.cluster.pulls().empty(); ++i) {
    all_.cluster.StepRandomCall(random_, 0);
  }
  ASSERT_EQ(all_.cluster.pulls().size(), 1u);
  runs_.back()->Cancel();
  EXPECT_EQ(all_.cluster.calls_not_cancelled(), 0);
}

TEST_F(RunPullTest, NobodyIsAskedForAnotherTenantsPrefix) {
  RunRequest request = Request();
  request.kv_domains = DomainOf(2);
  const auto sink = Submit(request);
  RunToEnd(*sink);
  ExpectRight(request, *sink);
  EXPECT_TRUE(all_.cluster.pulls().empty());
  EXPECT_EQ(all_.cluster.prefills().back().pull_tokens(), 0);
}

}  // namespace
}  // namespace trivium::router
