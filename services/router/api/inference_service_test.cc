// The public API over a real gRPC server on the loopback interface, with the stages simulated
// behind the real dispatcher: what is refused and by which field, and that the server lives on.
#include "services/router/api/inference_service.h"

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>
#include <thread>

#include "common/net/server.h"
#include "services/router/dispatch/stage_thread.h"
#include "services/router/tenancy/tenancy_fixture.h"

namespace trivium::router {
namespace {

using testing::HasSubstr;

// A router behind its gRPC server, with workers that answer at once.
class ServiceTest : public testing::Test {
 protected:
  ServiceTest() {
    auto started = net::Server::Start(
        {.listen = "127.0.0.1:0", .services = {&service_}, .loopback_only = true});
    TRIVIUM_CHECK(started.ok(), "{}", Message(started.status()));
    server_ = *std::move(started);
    channel_ = net::MakeChannel("127.0.0.1:" + std::to_string(server_->port()));
    stub_ = v1::Inference::NewStub(channel_);
  }

  struct Answer {
    grpc::Status status;
    std::vector<int32_t> ids;
    std::string text;
    v1::Done done;
  };
  Answer Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    auto reader = stub_->Generate(&context, request);
    Answer answer;
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
      answer.text += response.delta().text();
      for (const v1::OutputToken& token : response.delta().tokens()) {
        EXPECT_EQ(token.index(), static_cast<int>(answer.ids.size()));
        answer.ids.push_back(token.id());
      }
      if (response.has_done()) answer.done = response.done();
    }
    answer.status = reader->Finish();
    return answer;
  }
  static v1::GenerateRequest Good() {
    v1::GenerateRequest request;
    request.set_text("hello world");
    request.mutable_sampling()->set_max_tokens(8);
    request.mutable_sampling()->set_ignore_eos(true);
    return request;
  }

  DispatchFixture fixture_;
  TenancyFixture tenancy_;
  const RequestValidator& validator_ = tenancy_.validator;
  TaskPool tasks_{2, 8};
  InferenceService service_{tenancy_.BackendOf(&fixture_, &tasks_), "test"};
  StageThread stages_{&fixture_};
  std::unique_ptr<net::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

struct BadRequest {
  const char* message_has;
  std::function<void(v1::GenerateRequest*)> spoil;
  grpc::StatusCode code = grpc::StatusCode::INVALID_ARGUMENT;
};

using R = v1::GenerateRequest;

std::vector<BadRequest> BadPrompts() {
  return {
      {"prompt", [](R* r) { r->clear_prompt(); }},
      {"text", [](R* r) { r->set_text(""); }},
      {"cannot fit", [](R* r) { r->set_text(std::string(1 << 20, 'x')); }},
      {"chat.messages", [](R* r) { r->mutable_chat(); }},
      {"chat.messages: 2049",
       [](R* r) {
         for (int i = 0; i < 2049; ++i) r->mutable_chat()->add_messages()->set_role("user");
       }},
      {"messages[0].role", [](R* r) { r->mutable_chat()->add_messages()->set_role("a wizard"); }},
      {"token_ids", [](R* r) { r->mutable_token_ids(); }},
      {"token_ids.ids[1]: is 320",
       [](R* r) {
         r->mutable_token_ids()->add_ids(1);
         r->mutable_token_ids()->add_ids(320);
       }},
      {"token_ids.ids[0]: is -1", [](R* r) { r->mutable_token_ids()->add_ids(-1); }},
      {"2048 tokens, at most 2047",
       [](R* r) {
         for (int i = 0; i < 2048; ++i) r->mutable_token_ids()->add_ids(5);
       }},
      {"priority", [](R* r) { r->set_priority(101); }},
      {"priority", [](R* r) { r->set_priority(-101); }},
      {"kv_sharing: \"all\" is not known", [](R* r) { r->set_kv_sharing("all"); }},
      {"kv_sharing: is group, which is wider", [](R* r) { r->set_kv_sharing("group"); }},
      {"\"gpt-17\" is not served", [](R* r) { r->set_model("gpt-17"); },
       grpc::StatusCode::NOT_FOUND},
  };
}

std::vector<BadRequest> BadSampling() {
  const auto on = [](const char* field, std::function<void(v1::Sampling*)> spoil) {
    return BadRequest{field, [spoil](R* r) { spoil(r->mutable_sampling()); }};
  };
  using S = v1::Sampling;
  std::vector<BadRequest> bad;
  for (const float value : {std::nanf(""), -0.1f, 100.5f, INFINITY, -INFINITY}) {
    bad.push_back(on("sampling.temperature", [=](S* s) { s->set_temperature(value); }));
  }
  for (const float value : {std::nanf(""), 0.0f, -1.0f, 1.001f, INFINITY}) {
    bad.push_back(on("sampling.top_p", [=](S* s) { s->set_top_p(value); }));
    bad.push_back(on("sampling.typical_p", [=](S* s) { s->set_typical_p(value); }));
  }
  bad.push_back(on("sampling.top_k", [](S* s) { s->set_top_k(-1); }));
  bad.push_back(on("sampling.max_tokens", [](S* s) { s->set_max_tokens(0); }));
  bad.push_back(on("sampling.min_tokens", [](S* s) { s->set_min_tokens(-1); }));
  for (const int32_t n : {-1, 0, 17}) bad.push_back(on("sampling.n", [=](S* s) { s->set_n(n); }));
  bad.push_back(on("sampling.min_tokens", [](S* s) { s->set_min_tokens(9); }));
  bad.push_back(on("sampling.logprobs", [](S* s) { s->set_logprobs(21); }));
  bad.push_back(on("sampling.logprobs", [](S* s) { s->set_logprobs(-1); }));
  bad.push_back(on("sampling.prompt_logprobs", [](S* s) { s->set_prompt_logprobs(21); }));
  bad.push_back(on("sampling.prompt_logprobs", [](S* s) { s->set_prompt_logprobs(-1); }));
  for (const float value : {std::nanf(""), -2.01f, 2.01f, INFINITY}) {
    bad.push_back(on("sampling.presence_penalty", [=](S* s) { s->set_presence_penalty(value); }));
    bad.push_back(on("sampling.frequency_penalty", [=](S* s) { s->set_frequency_penalty(value); }));
  }
  for (const float value : {std::nanf(""), 0.0f, -1.0f, 10.1f}) {
    bad.push_back(
        on("sampling.repetition_penalty", [=](S* s) { s->set_repetition_penalty(value); }));
  }
  for (const float value : {std::nanf(""), -0.01f, 1.01f}) {
    bad.push_back(on("sampling.min_p", [=](S* s) { s->set_min_p(value); }));
  }
  for (const float value : {std::nanf(""), -100.5f, 101.0f}) {
    bad.push_back(on("sampling.logit_bias[7]", [=](S* s) {
      (*s->mutable_logit_bias())[7] = value;
      (*s->mutable_logit_bias())[9] = value;
    }));
  }
  for (const int32_t id : {-1, 320}) {
    bad.push_back(
        on("sampling.logit_bias: has token", [=](S* s) { (*s->mutable_logit_bias())[id] = 1; }));
  }
  bad.push_back(on("sampling.logit_bias: 1025", [](S* s) {
    for (int i = 0; i < 1025; ++i) (*s->mutable_logit_bias())[i] = 1;
  }));
  bad.push_back(on("sampling.stop_token_ids[0]", [](S* s) { s->add_stop_token_ids(320); }));
  bad.push_back(on("sampling.stop_token_ids: 17 are given", [](S* s) {
    for (int i = 0; i < 17; ++i) s->add_stop_token_ids(5);
  }));
  bad.push_back(on("sampling.stop[1]", [](S* s) {
    s->add_stop("a");
    s->add_stop("");
  }));
  bad.push_back(on("sampling.stop[0]", [](S* s) { s->add_stop(std::string(257, 'a')); }));
  bad.push_back(on("sampling.stop: 17", [](S* s) {
    for (int i = 0; i < 17; ++i) s->add_stop("a");
  }));
  return bad;
}

TEST_F(ServiceTest, BadRequestsAreRefusedByFieldAndTheServerLivesOn) {
  std::vector<BadRequest> all = BadPrompts();
  for (const BadRequest& bad : BadSampling()) all.push_back(bad);
  for (const BadRequest& bad : all) {
    v1::GenerateRequest request = Good();
    bad.spoil(&request);
    const Answer answer = Generate(request);
    EXPECT_EQ(answer.status.error_code(), bad.code) << bad.message_has;
    EXPECT_THAT(answer.status.error_message(), HasSubstr(bad.message_has));
    EXPECT_TRUE(answer.ids.empty());
  }
  EXPECT_TRUE(Generate(Good()).status.ok());
}

TEST_F(ServiceTest, TextThatIsNotUtf8IsRefused) {
  const std::string broken = "broken \xff\xfe";
  const std::pair<const char*, std::function<void(v1::GenerateRequest*)>> cases[] = {
      {"text: is not valid UTF-8", [&](R* r) { r->set_text(broken); }},
      {"model: is not valid UTF-8", [&](R* r) { r->set_model(broken); }},
      {"sampling.stop[1]: is not valid UTF-8",
       [&](R* r) {
         r->mutable_sampling()->add_stop("good");
         r->mutable_sampling()->add_stop(broken);
       }},
      {"chat.messages[1].content: is not valid UTF-8",
       [&](R* r) {
         r->mutable_chat()->add_messages()->set_content("good");
         r->mutable_chat()->add_messages()->set_content(broken);
       }},
      {"not valid UTF-8", [&](R* r) { r->set_text(std::string(2 << 20, 'x') + broken); }},
  };
  for (const auto& [message, spoil] : cases) {
    v1::GenerateRequest request = Good();
    spoil(&request);
    const grpc::Status status = Generate(request).status;
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << message;
    EXPECT_THAT(status.error_message(), HasSubstr(message));
  }
  v1::TokenizeRequest request;
  v1::TokenizeResponse tokens;
  request.set_text(broken);
  grpc::ClientContext context;
  const grpc::Status status = stub_->Tokenize(&context, request, &tokens);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("text: is not valid UTF-8"));
  EXPECT_TRUE(Generate(Good()).status.ok());
}

TEST_F(ServiceTest, AnswersAreThoseOfTheStages) {
  for (const char* model : {"", TinyModel()->config.name.c_str(), validator_.model_id().c_str()}) {
    v1::GenerateRequest request = Good();
    request.set_model(model);
    request.mutable_sampling()->set_seed(17);
    const Answer answer = Generate(request);
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    RunRequest run = *validator_.Prepare(request);
    const DispatchFixture::Wanted wanted = fixture_.Want(run);
    EXPECT_EQ(answer.ids, wanted.ids);
    EXPECT_EQ(answer.text, wanted.text);
    EXPECT_EQ(answer.done.finish_reason(), "length");
    EXPECT_EQ(answer.done.seed(), 17u);
    EXPECT_EQ(answer.done.usage().prompt_tokens(), static_cast<int>(run.prompt_ids.size()));
  }
}

TEST_F(ServiceTest, MaxTokensIsCutToWhatTheContextLeaves) {
  v1::GenerateRequest request = Good();
  for (int i = 0; i < 2040; ++i) request.mutable_token_ids()->add_ids(5);
  request.mutable_sampling()->set_max_tokens(1000000);
  EXPECT_EQ(validator_.Prepare(request)->sampling.max_tokens(), 8);
  request.mutable_sampling()->clear_max_tokens();
  request.set_text("short");
  EXPECT_EQ(validator_.Prepare(request)->sampling.max_tokens(), 16);
}

TEST_F(ServiceTest, ChoicesComeEachWithItsOwnEnd) {
  v1::GenerateRequest request = Good();
  EXPECT_EQ(validator_.Prepare(request)->choices, 1);
  request.mutable_sampling()->set_n(3);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_seed(~uint64_t{0});
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse response;
  std::map<int32_t, std::vector<int32_t>> ids;
  v1::Done done;
  while (reader->Read(&response)) {
    for (const v1::OutputToken& token : response.delta().tokens()) {
      ids[response.delta().choice()].push_back(token.id());
    }
    if (response.has_done()) done = response.done();
  }
  ASSERT_TRUE(reader->Finish().ok());
  ASSERT_EQ(done.choices_size(), 3);
  EXPECT_EQ(done.usage().completion_tokens(), 24);
  for (int i = 0; i < 3; ++i) {
    RunRequest solo = *validator_.Prepare(request);
    solo.sampling.set_seed(solo.sampling.seed() + static_cast<uint64_t>(i));
    EXPECT_EQ(ids[i], fixture_.Want(solo).ids) << "choice " << i;
    EXPECT_EQ(done.choices(i).seed(), solo.sampling.seed());
    EXPECT_EQ(done.choices(i).completion_tokens(), 8);
    EXPECT_EQ(done.choices(i).finish_reason(), "length");
  }
}

TEST_F(ServiceTest, NoRoomCarriesARetryHint) {
  DispatchFixture full({.sim = {}, .attempts_max = 8, .queue = {.requests_max = 0}});
  for (int i = 0; i < 4; ++i) full.cluster.Kill(i);
  InferenceService service(tenancy_.BackendOf(&full, &tasks_), "test");
  auto server =
      *net::Server::Start({.listen = "127.0.0.1:0", .services = {&service}, .loopback_only = true});
  const auto stub =
      v1::Inference::NewStub(net::MakeChannel("127.0.0.1:" + std::to_string(server->port())));
  grpc::ClientContext context;
  auto reader = stub->Generate(&context, Good());
  v1::GenerateResponse response;
  EXPECT_FALSE(reader->Read(&response));
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(net::RetryAfter(status).has_value());
}

TEST_F(ServiceTest, CancelAndDeadlineReachTheStages) {
  stages_.steps_left = 0;
  for (const bool by_deadline : {false, true}) {
    grpc::ClientContext context;
    if (by_deadline) {
      context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
    }
    auto reader = stub_->Generate(&context, Good());
    while (fixture_.cluster.calls_not_cancelled() == 0) std::this_thread::yield();
    if (!by_deadline) context.TryCancel();
    v1::GenerateResponse response;
    EXPECT_FALSE(reader->Read(&response));
    EXPECT_EQ(reader->Finish().error_code(),
              by_deadline ? grpc::StatusCode::DEADLINE_EXCEEDED : grpc::StatusCode::CANCELLED);
    while (fixture_.cluster.calls_not_cancelled() > 0) std::this_thread::yield();
  }
}

TEST_F(ServiceTest, TokenizeListModelsAndClusterStatus) {
  ASSERT_EQ(Generate(Good()).ids.size(), 8u);
  v1::TokenizeRequest request;
  v1::TokenizeResponse tokens;
  request.set_text("hello wörld");
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->Tokenize(&context, request, &tokens).ok());
  }
  std::string joined;
  for (const std::string& piece : tokens.pieces()) joined += piece;
  EXPECT_EQ(joined, "hello wörld");
  {
    grpc::ClientContext context;
    request.clear_input();
    EXPECT_EQ(stub_->Tokenize(&context, request, &tokens).error_code(),
              grpc::StatusCode::INVALID_ARGUMENT);
  }
  {
    grpc::ClientContext context;
    v1::ListModelsResponse models;
    ASSERT_TRUE(stub_->ListModels(&context, {}, &models).ok());
    ASSERT_EQ(models.models_size(), 1);
    EXPECT_EQ(models.models(0).context_tokens(), 2048);
    EXPECT_EQ(models.models(0).fingerprint(), TinyModel()->fingerprint);
  }
  grpc::ClientContext context;
  v1::ClusterStatusResponse status;
  ASSERT_TRUE(stub_->ClusterStatus(&context, {}, &status).ok());
  ASSERT_EQ(status.workers_size(), 4);
  for (const v1::WorkerStatus& worker : status.workers()) EXPECT_EQ(worker.state(), "ready");
  EXPECT_EQ(status.output_tokens(), 8u);
}

TEST(SlugTest, KeepsWhatAUrlMayHold) {
  EXPECT_EQ(Slug("SmolLM2 135M  Instruct!"), "smollm2-135m-instruct");
  EXPECT_EQ(Slug("--"), "");
  EXPECT_EQ(Slug("a.b_c"), "a.b_c");
}

}  // namespace
}  // namespace trivium::router
