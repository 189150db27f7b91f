// n > 1 through real processes: the choices are those of as many requests, for one prefill and one
// transfer.
#include <gtest/gtest.h>

#include "tests/e2e/cluster.h"

namespace trivium::e2e {
namespace {

constexpr int64_t kKvBytesPerToken = 23040;  // SmolLM2-135M: 30 layers x 2 x 3 heads x 64 x 2 bytes
constexpr int kChoices = 4;
constexpr uint64_t kSeed = 71;

v1::GenerateRequest Question(uint64_t seed) {
  v1::GenerateRequest request;
  v1::Message* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("Tell me something about the sea that few people know.");
  request.mutable_sampling()->set_max_tokens(24);
  request.mutable_sampling()->set_temperature(0.9f);
  request.mutable_sampling()->set_seed(seed);
  return request;
}

struct Choice {
  std::string text;
  std::vector<int32_t> ids;
};
struct Group {
  absl::Status status;
  std::vector<Choice> choices{kChoices};
  v1::Done done;
};

Group Ask(Cluster& cluster, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(120));
  Group group;
  const auto reader = cluster.NewStub()->Generate(&context, request);
  for (v1::GenerateResponse response; reader->Read(&response);) {
    if (response.has_done()) group.done = response.done();
    if (!response.has_delta()) continue;
    Choice& choice = group.choices.at(static_cast<size_t>(response.delta().choice()));
    choice.text += response.delta().text();
    for (const v1::OutputToken& token : response.delta().tokens()) {
      EXPECT_EQ(token.index(), static_cast<int>(choice.ids.size()));
      choice.ids.push_back(token.id());
    }
  }
  const grpc::Status status = reader->Finish();
  group.status =
      absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  return group;
}

TEST(ChoicesTest, AreThoseOfAsManySeedsForOnePrefill) {
  if (TestModel().empty()) GTEST_SKIP() << "TRIVIUM_TEST_MODEL is not set: no real model to serve";
  Cluster cluster({});
  ASSERT_TRUE(cluster.Start().ok());
  std::vector<Answer> alone;
  for (int i = 0; i < kChoices; ++i) {
    alone.push_back(cluster.Generate(Question(kSeed + static_cast<uint64_t>(i))));
    ASSERT_TRUE(alone.back().status.ok()) << alone.back().status;
  }
  ASSERT_NE(alone[0].ids, alone[1].ids);
  const double rows_before = cluster.MetricSum("prefill-0", "trivium_rows_total");
  v1::GenerateRequest together = Question(kSeed);
  together.mutable_sampling()->set_n(kChoices);
  const Group group = Ask(cluster, together);
  ASSERT_TRUE(group.status.ok()) << group.status;
  const int prompt_tokens = alone[0].done.usage().prompt_tokens();
  EXPECT_EQ(cluster.MetricSum("prefill-0", "trivium_rows_total") - rows_before, prompt_tokens);
  EXPECT_EQ(group.done.served_by().kv_bytes_moved(), prompt_tokens * kKvBytesPerToken);
  EXPECT_EQ(group.done.usage().prompt_tokens(), prompt_tokens);
  ASSERT_EQ(group.done.choices_size(), kChoices);
  int completion_tokens = 0;
  for (int i = 0; i < kChoices; ++i) {
    const auto at = static_cast<size_t>(i);
    EXPECT_EQ(group.choices[at].ids, alone[at].ids) << i;
    EXPECT_EQ(group.choices[at].text, alone[at].text) << i;
    const v1::ChoiceEnd& end = group.done.choices(i);
    EXPECT_EQ(end.finish_reason(), alone[at].done.finish_reason()) << i;
    EXPECT_EQ(end.completion_tokens(), static_cast<int>(alone[at].ids.size())) << i;
    EXPECT_EQ(end.seed(), kSeed + static_cast<uint64_t>(i));
    completion_tokens += end.completion_tokens();
  }
  EXPECT_EQ(group.done.usage().completion_tokens(), completion_tokens);
  EXPECT_TRUE(cluster.WaitIdle(std::chrono::seconds(10)).ok());
}

}  // namespace
}  // namespace trivium::e2e
