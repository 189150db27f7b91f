// What clients and operators get wrong: each time one clear error that names the field, and a
// server that lives on; a start-up that cannot work ends with one readable line.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include "tests/e2e/cluster.h"

namespace trivium::e2e {
namespace {

struct BadRequest {
  const char* name;
  std::function<void(v1::GenerateRequest*)> spoil;
  absl::StatusCode code;
  const char* message_has;
};

std::vector<BadRequest> BadRequests() {
  using R = v1::GenerateRequest;
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  const float nan = std::nanf("");
  return {
      {"no prompt", [](R* r) { r->clear_prompt(); }, kInvalid, "prompt"},
      {"empty text", [](R* r) { r->set_text(""); }, kInvalid, "empty"},
      {"empty chat", [](R* r) { r->mutable_chat(); }, kInvalid, "messages"},
      {"role", [](R* r) { r->mutable_chat()->add_messages()->set_role("a wizard"); }, kInvalid,
       "role"},
      {"unknown model", [](R* r) { r->set_model("gpt-17"); }, absl::StatusCode::kNotFound,
       "gpt-17"},
      {"id too large", [](R* r) { r->mutable_token_ids()->add_ids(49152); }, kInvalid, "49152"},
      {"id negative", [](R* r) { r->mutable_token_ids()->add_ids(-1); }, kInvalid, "-1"},
      {"over context",
       [](R* r) {
         for (int i = 0; i < 9000; ++i) r->mutable_token_ids()->add_ids(5);
       },
       kInvalid, "8192"},
      {"temperature", [nan](R* r) { r->mutable_sampling()->set_temperature(nan); }, kInvalid,
       "temperature"},
      {"temperature", [](R* r) { r->mutable_sampling()->set_temperature(-1); }, kInvalid,
       "temperature"},
      {"top_p", [](R* r) { r->mutable_sampling()->set_top_p(0); }, kInvalid, "top_p"},
      {"top_p", [](R* r) { r->mutable_sampling()->set_top_p(INFINITY); }, kInvalid, "top_p"},
      {"top_k", [](R* r) { r->mutable_sampling()->set_top_k(-5); }, kInvalid, "top_k"},
      {"max_tokens", [](R* r) { r->mutable_sampling()->set_max_tokens(0); }, kInvalid,
       "max_tokens"},
      {"min_tokens", [](R* r) { r->mutable_sampling()->set_min_tokens(-1); }, kInvalid,
       "min_tokens"},
      {"logprobs", [](R* r) { r->mutable_sampling()->set_logprobs(21); }, kInvalid, "logprobs"},
      {"stop id", [](R* r) { r->mutable_sampling()->add_stop_token_ids(-3); }, kInvalid,
       "stop_token_ids"},
      {"empty stop", [](R* r) { r->mutable_sampling()->add_stop(""); }, kInvalid, "stop"},
  };
}

class BadInputTest : public testing::Test {
 protected:
  void SetUp() override {
    if (TestModel().empty())
      GTEST_SKIP() << "TRIVIUM_TEST_MODEL is not set: no real model to serve";
  }
  // Runs a service until it ends by itself; its output is one short line or two.
  std::string FailingStart(const std::string& role, const std::string& yaml) {
    const std::string directory = testing::TempDir();
    const std::string config = directory + "/bad_input.yaml", log = directory + "/bad_input.log";
    std::filesystem::remove(log);
    WriteFile(config, yaml);
    Process process({std::string(TRIVIUM_BIN_DIR) + "/trivium-" + role, "--config", config}, log);
    const int status = process.Wait(std::chrono::seconds(30));
    EXPECT_TRUE(status != -1 && WIFEXITED(status) && WEXITSTATUS(status) != 0)
        << "status " << status;
    const std::string output = ReadFile(log);
    EXPECT_LE(std::count(output.begin(), output.end(), '\n'), 2) << output;
    return output;
  }
};

TEST_F(BadInputTest, RequestsAreRefusedByFieldAndTheServerLivesOn) {
  Cluster cluster({});
  const absl::Status started = cluster.Start();
  ASSERT_TRUE(started.ok()) << started;
  for (const BadRequest& bad : BadRequests()) {
    v1::GenerateRequest request = TextRequest("Hello", 4);
    bad.spoil(&request);
    const Answer answer = cluster.Generate(request);
    EXPECT_EQ(answer.status.code(), bad.code) << bad.name << ": " << answer.status;
    EXPECT_NE(answer.status.message().find(bad.message_has), absl::string_view::npos)
        << bad.name << ": " << answer.status;
  }
  EXPECT_FALSE(cluster.Generate(TextRequest("\xff\xfe broken", 4)).status.ok());
  EXPECT_TRUE(cluster.Generate(TextRequest("Hello", 4)).status.ok());
  const absl::Status idle = cluster.WaitIdle(std::chrono::seconds(10));
  EXPECT_TRUE(idle.ok()) << idle;
}

TEST_F(BadInputTest, HostileModelsEndTheStartWithOneLine) {
  const std::string path = testing::TempDir() + "/hostile.gguf";
  std::string bytes;
  {
    std::ifstream in(TestModel(), std::ios::binary);
    bytes.resize(3 << 20);
    in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  const auto start = [&](const std::string& content) {
    std::ofstream(path, std::ios::binary) << content;
    return FailingStart("decode", "server:\n  listen: 127.0.0.1:0\nmodel:\n  path: " + path + "\n");
  };
  EXPECT_NE(start(bytes).find("hostile.gguf"), std::string::npos);  // tensors cut off
  EXPECT_NE(start(bytes.substr(0, 1000)).find("hostile.gguf"), std::string::npos);
  EXPECT_NE(start("not a model at all").find("GGUF"), std::string::npos);
  std::string counts = bytes;
  counts.replace(8, 8, std::string(8, '\x7f'));  // tensor count near 2^63
  EXPECT_NE(start(counts).find("hostile.gguf"), std::string::npos);
  std::string other = bytes;
  const size_t at = other.find("llama", other.find("general.architecture"));
  other.replace(at, 5, "lambo");
  std::ofstream(path, std::ios::binary) << other;
  std::filesystem::resize_file(path, std::filesystem::file_size(TestModel()));  // sparse
  const std::string output = FailingStart("decode", "model:\n  path: " + path + "\n");
  EXPECT_NE(output.find("lambo"), std::string::npos) << output;
}

TEST_F(BadInputTest, ConfigurationErrorsNameFileLineAndReason) {
  const std::string model = "model:\n  path: " + TestModel() + "\n";
  std::string output = FailingStart("prefill", model + "engine:\n  treads: 2\n");
  EXPECT_NE(output.find("bad_input.yaml:4"), std::string::npos) << output;
  EXPECT_NE(output.find("treads"), std::string::npos) << output;
  output = FailingStart("prefill", model + "engine:\n  numerics: quick\n");
  EXPECT_NE(output.find("numerics"), std::string::npos) << output;
  output = FailingStart("decode", "model:\n  path: /nowhere/model.gguf\n");
  EXPECT_NE(output.find("/nowhere/model.gguf"), std::string::npos) << output;
  output = FailingStart("decode", model + "server:\n  listen: 0.0.0.0:0\n");
  EXPECT_NE(output.find("cluster_token_file"), std::string::npos) << output;
}

TEST_F(BadInputTest, TakenPortEndsTheStart) {
  Cluster cluster({});
  const absl::Status started = cluster.Start();
  ASSERT_TRUE(started.ok()) << started;
  const std::string address = cluster.router_address();
  const std::string output = FailingStart(
      "decode", "server:\n  listen: " + address + "\nmodel:\n  path: " + TestModel() + "\n");
  EXPECT_NE(output.find(address), std::string::npos) << output;
  EXPECT_TRUE(cluster.Generate(TextRequest("Hello", 4)).status.ok());
}

TEST_F(BadInputTest, AWorkerWithAnotherClusterTokenIsRefused) {
  ClusterOptions options;
  options.cluster_token = "the-token-of-the-router";
  options.worker_cluster_token = "the-token-of-someone-else";
  options.ready_timeout = std::chrono::seconds(5);
  Cluster cluster(options);
  EXPECT_FALSE(cluster.Start().ok());
  const v1::ClusterStatusResponse status = cluster.Status();
  ASSERT_EQ(status.workers_size(), 2);
  for (const v1::WorkerStatus& worker : status.workers()) {
    EXPECT_EQ(worker.state(), "refused");
    EXPECT_NE(worker.detail().find("token"), std::string::npos) << worker.detail();
  }
  const Answer answer =
      cluster.Generate(TextRequest("Hello", 4), nullptr, std::chrono::seconds(10));
  EXPECT_EQ(answer.status.code(), absl::StatusCode::kUnavailable) << answer.status;
}

TEST_F(BadInputTest, SigtermDrains) {
  Cluster cluster({});
  ASSERT_TRUE(cluster.Start().ok());
  bool drained = false;
  const Answer answer = cluster.Generate(TextRequest("Count: one, two,", 48), [&](int index) {
    if (index != 2 || drained) return;
    drained = true;
    for (const char* role : {"prefill", "decode"}) cluster.worker(role, 0).Signal(SIGTERM);
    cluster.router().Signal(SIGTERM);
  });
  EXPECT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.ids.size(), 48u);
  for (Process* process :
       {&cluster.router(), &cluster.worker("prefill", 0), &cluster.worker("decode", 0)}) {
    const int status = process->Wait(std::chrono::seconds(20));
    EXPECT_TRUE(status != -1 && WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
}

}  // namespace
}  // namespace trivium::e2e
