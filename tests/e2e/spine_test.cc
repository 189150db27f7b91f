// One cluster of real processes and the real model: what a client may expect of a single request.
#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <thread>

#include "common/net/server.h"
#include "tests/e2e/cluster.h"

namespace trivium::e2e {
namespace {

constexpr int64_t kKvBytesPerToken = 23040;  // SmolLM2-135M: 30 layers x 2 x 3 heads x 64 x 2 bytes

class SpineTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (TestModel().empty()) return;
    ClusterOptions options;
    options.numerics = "fast";
    options.cluster_token = "a-token-of-the-test-s-own";
    cluster_ = new Cluster(options);
    start_ = cluster_->Start();
  }
  static void TearDownTestSuite() {
    delete cluster_;
    cluster_ = nullptr;
  }
  void SetUp() override {
    if (TestModel().empty())
      GTEST_SKIP() << "TRIVIUM_TEST_MODEL is not set: no real model to serve";
    ASSERT_TRUE(start_.ok()) << start_;
  }
  static Cluster* cluster_;
  static absl::Status start_;
};
Cluster* SpineTest::cluster_ = nullptr;
absl::Status SpineTest::start_;

v1::GenerateRequest ChatRequest(const std::string& question, int max_tokens) {
  v1::GenerateRequest request;
  v1::Message* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content(question);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  return request;
}

std::vector<int32_t> Tokenize(Cluster& cluster, const v1::TokenizeRequest& request) {
  grpc::ClientContext context;
  v1::TokenizeResponse response;
  EXPECT_TRUE(cluster.NewStub()->Tokenize(&context, request, &response).ok());
  return {response.ids().begin(), response.ids().end()};
}

TEST_F(SpineTest, AnswersFromSeparateProcessesAndAccountsForEveryByte) {
  const v1::GenerateRequest request = ChatRequest("What is the capital of France?", 40);
  const Answer answer = cluster_->Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_NE(answer.text.find("Paris"), std::string::npos) << answer.text;
  EXPECT_EQ(answer.done.finish_reason(), "stop");
  EXPECT_EQ(answer.done.served_by().prefill_worker(), "prefill-0");
  EXPECT_EQ(answer.done.served_by().decode_worker(), "decode-0");
  EXPECT_EQ(answer.done.served_by().attempts(), 1);
  EXPECT_EQ(answer.done.served_by().kv_bytes_moved(),
            answer.done.usage().prompt_tokens() * kKvBytesPerToken);
  EXPECT_GT(answer.done.served_by().kv_header_bytes(), 0);
  EXPECT_EQ(answer.done.usage().completion_tokens(), static_cast<int>(answer.ids.size()));
  const std::set<pid_t> pids = {cluster_->router().pid(), cluster_->worker("prefill", 0).pid(),
                                cluster_->worker("decode", 0).pid()};
  EXPECT_EQ(pids.size(), 3u);
  EXPECT_TRUE(cluster_->WaitIdle(std::chrono::seconds(10)).ok());
}

TEST_F(SpineTest, ChatTextAndTokenIdsAreTheSameRequest) {
  const v1::GenerateRequest chat = ChatRequest("Name three colours.", 24);
  v1::TokenizeRequest tokenize;
  *tokenize.mutable_chat() = chat.chat();
  const std::vector<int32_t> ids = Tokenize(*cluster_, tokenize);
  v1::GenerateRequest by_ids = TokensRequest(ids, 24);
  by_ids.mutable_sampling()->set_ignore_eos(false);
  const Answer first = cluster_->Generate(chat), second = cluster_->Generate(by_ids);
  ASSERT_TRUE(first.status.ok() && second.status.ok()) << first.status << second.status;
  EXPECT_EQ(first.ids, second.ids);
  EXPECT_EQ(first.done.usage().prompt_tokens(), static_cast<int>(ids.size()));
}

TEST_F(SpineTest, SeedsDecideSampledText) {
  v1::GenerateRequest request = TextRequest("Once upon a time", 24);
  request.mutable_sampling()->set_temperature(1.0f);
  request.mutable_sampling()->set_top_p(0.95f);
  request.mutable_sampling()->set_seed(7);
  const Answer first = cluster_->Generate(request), again = cluster_->Generate(request);
  ASSERT_TRUE(first.status.ok()) << first.status;
  EXPECT_EQ(first.ids, again.ids);
  EXPECT_EQ(first.done.seed(), 7u);
  request.mutable_sampling()->set_seed(8);
  EXPECT_NE(first.ids, cluster_->Generate(request).ids);
  request.mutable_sampling()->clear_seed();
  const Answer drawn = cluster_->Generate(request);
  request.mutable_sampling()->set_seed(drawn.done.seed());
  EXPECT_EQ(drawn.ids, cluster_->Generate(request).ids);
}

TEST_F(SpineTest, StopStringEndsTheTextBeforeIt) {
  const Answer whole = cluster_->Generate(TextRequest("1, 2, 3, 4, 5, 6,", 24));
  ASSERT_TRUE(whole.status.ok()) << whole.status;
  const std::string stop = whole.text.substr(whole.text.size() / 2, 4);
  v1::GenerateRequest request = TextRequest("1, 2, 3, 4, 5, 6,", 24);
  request.mutable_sampling()->add_stop(stop);
  const Answer cut = cluster_->Generate(request);
  ASSERT_TRUE(cut.status.ok()) << cut.status;
  EXPECT_EQ(cut.text, whole.text.substr(0, whole.text.find(stop)));
  EXPECT_EQ(cut.done.finish_reason(), "stop");
  EXPECT_TRUE(cluster_->WaitIdle(std::chrono::seconds(10)).ok());
}

TEST_F(SpineTest, OneTokenNeedsNoDecodeStep) {
  const Answer answer = cluster_->Generate(TextRequest("The sky is", 1));
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.ids.size(), 1u);
  EXPECT_EQ(answer.done.finish_reason(), "length");
  EXPECT_TRUE(cluster_->WaitIdle(std::chrono::seconds(10)).ok());
}

TEST_F(SpineTest, CancelAndDeadlineFreeEveryBlock) {
  const std::unique_ptr<v1::Inference::Stub> stub = cluster_->NewStub();
  for (int tokens_before_cancel : {0, 1, 5}) {
    grpc::ClientContext context;
    auto reader = stub->Generate(&context, TextRequest("A long story about the sea:", 2000));
    v1::GenerateResponse response;
    for (int i = 0; i < tokens_before_cancel; ++i) ASSERT_TRUE(reader->Read(&response));
    context.TryCancel();
    while (reader->Read(&response)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
    EXPECT_TRUE(cluster_->WaitIdle(std::chrono::seconds(10)).ok());
  }
  const Answer late = cluster_->Generate(TextRequest("A long story about the sea:", 4000), nullptr,
                                         std::chrono::milliseconds(700));
  EXPECT_EQ(late.status.code(), absl::StatusCode::kDeadlineExceeded) << late.status;
  const absl::Status idle = cluster_->WaitIdle(std::chrono::seconds(10));
  EXPECT_TRUE(idle.ok()) << idle;
}

TEST_F(SpineTest, EveryProcessServesItsMetrics) {
  ASSERT_TRUE(cluster_->Generate(TextRequest("Hello", 4)).status.ok());
  for (const char* name : {"router", "prefill-0", "decode-0"}) {
    EXPECT_NE(cluster_->Metrics(name).find("\ntrivium_"), std::string::npos) << name;
  }
}

}  // namespace
}  // namespace trivium::e2e
