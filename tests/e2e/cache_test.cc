// The semantic cache before real workers: an answer given before comes without them, to its tenant
// alone, until policy changes. The encoder is a tiny one with random weights, so that equal words,
// however they are written, are near.
#include <gtest/gtest.h>
#include <signal.h>

#include <fstream>
#include <sstream>
#include <thread>

#include "tests/e2e/cluster.h"

namespace trivium::e2e {
namespace {

constexpr char kQuestion[] = "What is the capital of France?";

v1::GenerateRequest Ask(const std::string& question) {
  v1::GenerateRequest request;
  v1::Message* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content(question);
  request.mutable_sampling()->set_max_tokens(40);
  request.mutable_cache()->set_category("chat");
  return request;
}

// Until `done`, at most 20 s.
bool Await(const std::function<bool()>& done) {
  for (int i = 0; i < 2000 && !done(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return done();
}

class CacheTest : public testing::Test {
 protected:
  void SetUp() override {
    if (TestModel().empty())
      GTEST_SKIP() << "TRIVIUM_TEST_MODEL is not set: no real model to serve";
    ClusterOptions options;
    options.router_config = std::string(kTwoTenants) +
                            "semantic_cache:\n  enabled: true\n  encoder: " TRIVIUM_TINY_BERT
                            "\n  categories: [{name: chat, disabled: false}]\n";
    options.api_key = "alice-key";
    cluster_ = std::make_unique<Cluster>(options);
    const absl::Status started = cluster_->Start();
    ASSERT_TRUE(started.ok()) << started;
  }
  double Rows() {
    return cluster_->MetricSum("prefill-0", "trivium_rows_total") +
           cluster_->MetricSum("decode-0", "trivium_rows_total");
  }
  // Rewrites "disabled: `from`" of the router's file and has it read again.
  void Reload(const std::string& from, const std::string& to) {
    const std::string path = cluster_->directory() + "/router.yaml";
    std::stringstream text;
    text << std::ifstream(path).rdbuf();
    std::string file = text.str();
    const size_t at = file.find("disabled: " + from);
    ASSERT_NE(at, std::string::npos);
    file.replace(at + 10, from.size(), to);
    std::ofstream(path, std::ios::trunc) << file;
    cluster_->router().Signal(SIGHUP);
  }
  std::unique_ptr<Cluster> cluster_;
};

TEST_F(CacheTest, AnAnswerGivenBeforeNeedsNoWorkerAndStaysWithItsTenant) {
  const Answer first = cluster_->Generate(Ask(kQuestion));
  ASSERT_TRUE(first.status.ok()) << first.status;
  EXPECT_FALSE(first.done.has_cached());
  ASSERT_TRUE(
      Await([&] { return cluster_->MetricSum("router", "trivium_router_cache_entries") == 1; }));
  const double rows = Rows();
  for (const std::string again : {kQuestion, "what is the capital of France"}) {
    const Answer answer = cluster_->Generate(Ask(again));
    ASSERT_TRUE(answer.status.ok()) << answer.status;
    ASSERT_TRUE(answer.done.has_cached()) << again;
    EXPECT_EQ(answer.done.cached().same_words(), again == kQuestion);
    EXPECT_EQ(answer.text, first.text);
    EXPECT_EQ(answer.ids, first.ids);
    EXPECT_FALSE(answer.done.has_served_by());
  }
  EXPECT_EQ(Rows(), rows) << "a worker computed something";
  EXPECT_FALSE(cluster_->Generate(Ask("What is the capital of Spain?")).done.has_cached());

  cluster_->set_api_key("bob-key");
  const Answer others = cluster_->Generate(Ask(kQuestion));
  EXPECT_FALSE(others.done.has_cached());
  EXPECT_EQ(others.text, first.text) << "the same model answers";
  EXPECT_GT(Rows(), rows);
  cluster_->set_api_key("alice-key");

  const auto is_found = [&] { return cluster_->Generate(Ask(kQuestion)).done.has_cached(); };
  Reload("false", "nonsense");
  EXPECT_TRUE(is_found()) << "a configuration with an error changes nothing";
  Reload("nonsense", "true");
  EXPECT_TRUE(Await([&] { return !is_found(); }));
  Reload("true", "false");
  EXPECT_TRUE(Await(is_found));
}

}  // namespace
}  // namespace trivium::e2e
