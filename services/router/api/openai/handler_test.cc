// The OpenAI API over a real HTTP server on the loopback interface, with the stages simulated
// behind the real dispatcher.
#include "services/router/api/openai/handler.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "services/router/dispatch/stage_thread.h"
#include "services/router/http/server.h"
#include "services/router/http/test_client.h"
#include "services/router/tenancy/tenancy_fixture.h"

namespace trivium::router::openai {
namespace {

using http::Answer;
using http::TestClient;
using Json = nlohmann::json;

// A router behind its HTTP server, with workers that answer at once.
class HandlerTest : public testing::Test {
 protected:
  HandlerTest() {
    auto started =
        http::Server::Start({.listen = "127.0.0.1:0", .loopback_only = true, .limits = {}},
                            &handler_, &fixture_.registry);
    TRIVIUM_CHECK(started.ok(), "{}", Message(started.status()));
    server_ = *std::move(started);
  }

  Answer Post(const std::string& path, const std::string& body) {
    TestClient client(server_->port());
    client.SendJson(path, body);
    return client.Read();
  }
  Answer Send(const std::string& line, const std::string& headers = "") {
    TestClient client(server_->port());
    client.Send(line + " HTTP/1.1\r\nHost: test\r\n" + headers + "\r\n");
    return client.Read();
  }
  // The events of a stream, without [DONE], which must be the last.
  static std::vector<Json> Events(const std::string& body) {
    std::vector<Json> events;
    for (size_t at = 0; at < body.size();) {
      const size_t end = body.find("\n\n", at);
      EXPECT_EQ(body.substr(at, 6), "data: ");
      const std::string data = body.substr(at + 6, end - at - 6);
      at = end + 2;
      if (data == "[DONE]") {
        EXPECT_EQ(at, body.size());
        return events;
      }
      events.push_back(Json::parse(data));
    }
    ADD_FAILURE() << "no [DONE]: " << body;
    return events;
  }
  DispatchFixture::Wanted Wanted(const v1::GenerateRequest& request) {
    return fixture_.Want(*validator_.Prepare(request));
  }

  DispatchFixture fixture_;
  TenancyFixture tenancy_;
  const RequestValidator& validator_ = tenancy_.validator;
  TaskPool tasks_{2, 8};
  OpenAiHandler handler_{tenancy_.BackendOf(&fixture_, &tasks_), &fixture_.registry};
  StageThread stages_{&fixture_};
  std::unique_ptr<http::Server> server_;
};

constexpr char kChatPath[] = "/v1/chat/completions", kTextPath[] = "/v1/completions";
constexpr char kChat[] =
    R"({"messages":[{"role":"user","content":"hello"}],"seed":5,"max_tokens":8,"ignore_eos":true)";

v1::GenerateRequest ChatRequest() {
  v1::GenerateRequest request;
  v1::Message* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("hello");
  request.mutable_sampling()->set_seed(5);
  request.mutable_sampling()->set_max_tokens(8);
  request.mutable_sampling()->set_ignore_eos(true);
  request.mutable_sampling()->set_temperature(1);  // where a client of OpenAI's API names none
  return request;
}

TEST_F(HandlerTest, AChatIsWhatTheStagesSaid) {
  const DispatchFixture::Wanted wanted = Wanted(ChatRequest());
  const Answer whole = Post(kChatPath, std::string(kChat) + "}");
  ASSERT_EQ(whole.status, 200) << whole.body;
  const Json json = Json::parse(whole.body);
  EXPECT_EQ(json["object"], "chat.completion");
  EXPECT_EQ(json["model"], validator_.model_id());
  EXPECT_EQ(json["id"].get<std::string>().substr(0, 11), "chatcmpl-r-");
  EXPECT_EQ(json["choices"][0]["message"]["content"], wanted.text);
  EXPECT_EQ(json["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(json["usage"]["completion_tokens"], 8);

  const Answer stream = Post(
      kChatPath, std::string(kChat) + R"(,"stream":true,"stream_options":{"include_usage":true}})");
  ASSERT_EQ(stream.status, 200);
  EXPECT_TRUE(stream.Has("Content-Type: text/event-stream"));
  const std::vector<Json> events = Events(stream.body);
  std::string text;
  for (const Json& event : events) {
    EXPECT_EQ(event["object"], "chat.completion.chunk");
    EXPECT_EQ(event["id"], events[0]["id"]);
    for (const Json& choice : event["choices"]) text += choice["delta"].value("content", "");
  }
  EXPECT_EQ(text, wanted.text);
  EXPECT_EQ(events[0]["choices"][0]["delta"]["role"], "assistant");
  EXPECT_EQ(events[events.size() - 2]["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(events.back()["usage"], json["usage"]);
}

TEST_F(HandlerTest, SeveralPromptsAreSeveralChoices) {
  const std::string body = R"("prompt":["hello","world","hello world"],"max_tokens":6,"seed":1)";
  std::vector<std::string> wanted;
  for (const char* prompt : {"hello", "world", "hello world"}) {
    v1::GenerateRequest request;
    request.set_text(prompt);
    request.mutable_sampling()->set_seed(1);
    request.mutable_sampling()->set_max_tokens(6);
    request.mutable_sampling()->set_temperature(1);
    wanted.push_back(Wanted(request).text);
  }
  const Json whole = Json::parse(Post(kTextPath, "{" + body + "}").body);
  std::map<int, std::string> streamed;
  for (const Json& event : Events(Post(kTextPath, "{" + body + R"(,"stream":true})").body)) {
    const Json& choice = event["choices"][0];
    streamed[choice["index"].get<int>()] += choice["text"].get<std::string>();
  }
  ASSERT_EQ(whole["choices"].size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(whole["choices"][i]["index"], i);
    EXPECT_EQ(whole["choices"][i]["text"], wanted[i]);
    EXPECT_EQ(streamed[static_cast<int>(i)], wanted[i]);
  }
}

TEST_F(HandlerTest, ErrorsNameTheClientsField) {
  const std::tuple<const char*, std::string, int, Json> table[] = {
      {kChatPath, std::string(kChat) + R"(,"top_p":7})", 400, "top_p"},
      {kChatPath, std::string(kChat) + R"(,"top_p":"x"})", 400, "top_p"},
      {kChatPath, std::string(kChat) + R"(,"kv_sharing":7})", 400, "kv_sharing"},
      {kChatPath, std::string(kChat) + R"(,"kv_sharing":"group"})", 400, "kv_sharing"},
      {kChatPath, std::string(kChat) + R"(,"max_completion_tokens":0})", 400,
       "max_completion_tokens"},
      {kChatPath, std::string(kChat) + R"(,"logprobs":true,"top_logprobs":21})", 400,
       "top_logprobs"},
      {kChatPath, std::string(kChat) + R"(,"model":"gpt-17"})", 404, "model"},
      {kChatPath, R"({"messages":[]})", 400, "messages"},
      {kChatPath, R"({"messages":[{"role":"a wizard","content":"x"}]})", 400, "messages[0].role"},
      {kTextPath, R"({"prompt":""})", 400, "prompt"},
      {kTextPath, R"({"prompt":["x",[5,320]]})", 400, "prompt[1][1]"},
      {kTextPath, "nonsense", 400, nullptr},
  };
  for (const auto& [path, body, status, param] : table) {
    const Answer answer = Post(path, body);
    EXPECT_EQ(answer.status, status) << body;
    const Json error = Json::parse(answer.body)["error"];
    EXPECT_EQ(error["param"], param) << body << answer.body;
    EXPECT_EQ(error["type"], "invalid_request_error");
    EXPECT_FALSE(error["message"].get<std::string>().empty());
  }
  EXPECT_EQ(Post(kChatPath, std::string(kChat) + "}").status, 200);
}

TEST_F(HandlerTest, OtherPathsAndMethods) {
  const Json models = Json::parse(Send("GET /v1/models").body);
  EXPECT_EQ(models["object"], "list");
  EXPECT_EQ(models["data"][0]["object"], "model");
  EXPECT_EQ(models["data"][0]["id"], validator_.model_id());
  EXPECT_EQ(Json::parse(Send("GET /v1/models/" + validator_.model_id()).body), models["data"][0]);
  EXPECT_EQ(Json::parse(Send("GET /v1/models/other").body)["error"]["code"], "model_not_found");
  EXPECT_EQ(Send("GET /health").body, R"({"status":"ok"})");
  EXPECT_NE(Send("GET /metrics").body.find("trivium_router_http_requests_total"),
            std::string::npos);
  EXPECT_EQ(Json::parse(Send("GET /v1/nothing").body)["error"]["code"], "unknown_url");
  const Answer wrong = Send("GET /v1/chat/completions");
  EXPECT_EQ(wrong.status, 405);
  EXPECT_TRUE(wrong.Has("Allow: POST\r\n"));
  EXPECT_TRUE(Send("DELETE /v1/models", "Content-Length: 0\r\n").Has("Allow: GET, HEAD\r\n"));
  EXPECT_EQ(
      Send("POST /v1/completions", "Content-Length: 2\r\nContent-Type: text/plain\r\n").status,
      415);
  EXPECT_EQ(
      Send("POST /v1/completions",
           "Content-Length: 2\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n")
          .status,
      415);
}

TEST_F(HandlerTest, AClientThatLeavesCancelsItsRuns) {
  stages_.steps_left = 0;
  for (const char* body :
       {R"({"prompt":"hello"})", R"({"prompt":["hello","world"],"stream":true})"}) {
    TestClient client(server_->port());
    client.SendJson(kTextPath, body);
    while (fixture_.cluster.calls_not_cancelled() == 0) std::this_thread::yield();
    client.Close();
    while (fixture_.cluster.calls_not_cancelled() > 0) std::this_thread::yield();
    while (fixture_.dispatcher.counts().running > 0) std::this_thread::yield();
  }
}

TEST_F(HandlerTest, ALostClusterIs503AndInAStreamAnEvent) {
  stages_.steps_left = 0;
  TestClient client(server_->port());
  client.SendJson(kChatPath, std::string(kChat) + "}");
  while (fixture_.cluster.calls_not_cancelled() == 0) std::this_thread::yield();
  for (int i = 0; i < fixture_.cluster.worker_count(); ++i) fixture_.cluster.Kill(i);
  stages_.steps_left = StageThread::kNoLimit;
  const Answer answer = client.Read();
  EXPECT_EQ(answer.status, 503);
  EXPECT_TRUE(answer.Has("Retry-After: 1\r\n"));
  EXPECT_EQ(Json::parse(answer.body)["error"]["type"], "server_error");
}

TEST_F(HandlerTest, AFailureInAStreamIsItsLastEvent) {
  TestClient client(server_->port());
  std::string body = kChat;
  body.replace(body.find("8"), 1, "900");
  stages_.steps_left = 100;  // some tokens, not all
  client.SendJson(kChatPath, body + R"(,"stream":true})");
  EXPECT_EQ(client.ReadHead().status, 200);
  for (int i = 0; i < fixture_.cluster.worker_count(); ++i) fixture_.cluster.Kill(i);
  stages_.steps_left = StageThread::kNoLimit;
  std::string line, last;
  while ((line = client.ReadLine()) != "0") {
    if (line.substr(0, 6) == "data: ") last = line.substr(6);
  }
  EXPECT_EQ(Json::parse(last)["error"]["type"], "server_error") << last;
}

TEST_F(HandlerTest, DrainingRefusesNewRequests) {
  TestClient client(server_->port());
  fixture_.dispatcher.Drain();
  client.SendJson(kChatPath, std::string(kChat) + "}");
  EXPECT_EQ(client.Read().status, 503);
}

}  // namespace
}  // namespace trivium::router::openai
