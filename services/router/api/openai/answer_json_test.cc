#include "services/router/api/openai/answer_json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "services/router/api/openai/error.h"
#include "services/router/dispatch/dispatch_fixture.h"

namespace trivium::router::openai {
namespace {

AnswerHead Head(Endpoint endpoint, bool has_logprobs = false, bool wants_usage = false) {
  return {.endpoint = endpoint,
          .id = "id-1",
          .model = "m",
          .fingerprint = "fp_0",
          .created = 7,
          .has_logprobs = has_logprobs,
          .wants_usage = wants_usage,
          .tokenizer = TinyModel()->tokenizer.get(),
          .end_ids = {2}};
}
v1::Delta Delta(int choice, const std::string& text, std::vector<int32_t> ids = {}) {
  v1::Delta delta;
  delta.set_choice(choice);
  delta.set_text(text);
  for (const int32_t id : ids) {
    v1::OutputToken* token = delta.add_tokens();
    token->set_id(id);
    token->set_logprob(-0.5);
    v1::TokenLogprob* top = token->add_top();
    top->set_id(id);
    top->set_logprob(-0.5);
  }
  return delta;
}
v1::Done Done(std::vector<const char*> reasons) {
  v1::Done done;
  done.mutable_usage()->set_prompt_tokens(5);
  done.mutable_usage()->set_cached_prompt_tokens(4);
  done.mutable_usage()->set_completion_tokens(3);
  for (const char* reason : reasons) done.add_choices()->set_finish_reason(reason);
  return done;
}
// The id of a token that is this one byte.
int32_t ByteToken(char byte) {
  const model::Tokenizer& tokenizer = *TinyModel()->tokenizer;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (tokenizer.Piece(id, true) == std::string_view(&byte, 1)) return id;
  }
  return -1;
}

constexpr char kChunk[] =
    R"(data: {"id":"id-1","object":"chat.completion.chunk","created":7,"model":"m","system_fingerprint":"fp_0","choices":)";

TEST(StreamJsonTest, Chat) {
  StreamJson json(Head(Endpoint::kChat, false, true));
  EXPECT_EQ(
      json.Add(Delta(0, "Hi")),
      std::string(kChunk) +
          R"([{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null})" +
          "\n\n" + kChunk +
          R"([{"index":0,"delta":{"content":"Hi"},"logprobs":null,"finish_reason":null}],"usage":null})" +
          "\n\n");
  EXPECT_EQ(json.Add(Delta(0, "")), "");
  EXPECT_EQ(
      json.Finish(Done({"stop"})),
      std::string(kChunk) +
          R"([{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null})" +
          "\n\n" + kChunk +
          R"([],"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"prompt_tokens_details":{"cached_tokens":4}}})" +
          "\n\ndata: [DONE]\n\n");
}

TEST(StreamJsonTest, EachChoiceOpensOnceAndAnEmptyOneToo) {
  StreamJson json(Head(Endpoint::kChat));
  const auto count = [](const std::string& text, const std::string& what) {
    int found = 0;
    for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; ++at) ++found;
    return found;
  };
  const std::string events = json.Add(Delta(1, "a")) + json.Add(Delta(0, "b")) +
                             json.Add(Delta(1, "c")) +
                             json.Finish(Done({"stop", "length", "stop"}));
  EXPECT_EQ(count(events, R"("role":"assistant")"), 3);
  EXPECT_EQ(count(events, R"("usage")"), 0);
  EXPECT_EQ(count(events, R"([{"index":2,)"), 2);
  EXPECT_EQ(count(events, "data: [DONE]"), 1);
}

TEST(StreamJsonTest, Completions) {
  StreamJson json(Head(Endpoint::kCompletions, true));
  const int32_t a = ByteToken('a'), b = ByteToken('b');
  const std::string frame =
      R"(data: {"id":"id-1","object":"text_completion","created":7,"model":"m","system_fingerprint":"fp_0","choices":)";
  EXPECT_EQ(
      json.Add(Delta(0, "a", {a})),
      frame +
          R"([{"index":0,"text":"a","logprobs":{"tokens":["a"],"token_logprobs":[-0.5],"top_logprobs":[{"a":-0.5}],"text_offset":[0]},"finish_reason":null}]})" +
          "\n\n");
  EXPECT_NE(json.Add(Delta(0, "b", {b})).find(R"("text_offset":[1])"), std::string::npos);
  EXPECT_EQ(json.Finish(Done({"length"})),
            frame + R"([{"index":0,"text":"","logprobs":null,"finish_reason":"length"}]})" +
                "\n\ndata: [DONE]\n\n");
}

TEST(WholeJsonTest, Chat) {
  WholeJson json(Head(Endpoint::kChat));
  json.Add(Delta(1, "\"x\"\n"));
  json.Add(Delta(0, "a"));
  json.Add(Delta(0, "b"));
  EXPECT_EQ(
      json.Finish(Done({"stop", "length"})),
      R"({"id":"id-1","object":"chat.completion","created":7,"model":"m","system_fingerprint":"fp_0","choices":[)"
      R"({"index":0,"message":{"role":"assistant","content":"ab","refusal":null},"logprobs":null,"finish_reason":"stop"},)"
      R"({"index":1,"message":{"role":"assistant","content":"\"x\"\n","refusal":null},"logprobs":null,"finish_reason":"length"}],)"
      R"("usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"prompt_tokens_details":{"cached_tokens":4}}})");
}

TEST(WholeJsonTest, LogprobsHaveBytesAndNoEndToken) {
  WholeJson json(Head(Endpoint::kChat, true));
  const int32_t broken = ByteToken('\xc3'), a = ByteToken('a');
  ASSERT_GE(broken, 0);
  v1::Delta delta = Delta(0, "a", {a, broken, 2});
  delta.mutable_tokens(1)->set_logprob(-INFINITY);
  json.Add(delta);
  const auto whole = nlohmann::json::parse(json.Finish(Done({"stop"})));
  const auto content = whole["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(content.size(), 2u);
  EXPECT_EQ(
      content[0].dump(),
      R"({"bytes":[97],"logprob":-0.5,"token":"a","top_logprobs":[{"bytes":[97],"logprob":-0.5,"token":"a"}]})");
  EXPECT_EQ(content[1]["token"], "\xef\xbf\xbd");
  EXPECT_EQ(content[1]["bytes"].dump(), "[195]");
  EXPECT_EQ(content[1]["logprob"], -9999.0);
}

TEST(WholeJsonTest, CompletionsOfChoicesWithoutText) {
  WholeJson json(Head(Endpoint::kCompletions, true));
  EXPECT_EQ(
      json.Finish(Done({"stop"})),
      R"({"id":"id-1","object":"text_completion","created":7,"model":"m","system_fingerprint":"fp_0","choices":[)"
      R"({"index":0,"text":"","logprobs":{"tokens":[],"token_logprobs":[],"top_logprobs":[],"text_offset":[]},"finish_reason":"stop"}],)"
      R"("usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"prompt_tokens_details":{"cached_tokens":4}}})");
}

TEST(ErrorTest, StatusParamAndCode) {
  const auto error = [](const absl::Status& status) {
    const http::Response response = ErrorResponse(status);
    return std::to_string(response.status) + " " + response.body;
  };
  EXPECT_EQ(
      error(InvalidArgument("messages[0].content: must be a string")),
      R"(400 {"error":{"message":"messages[0].content: must be a string","type":"invalid_request_error","param":"messages[0].content","code":null}})");
  EXPECT_EQ(
      error(InvalidArgument("the prompt: too long")),
      R"(400 {"error":{"message":"the prompt: too long","type":"invalid_request_error","param":null,"code":null}})");
  EXPECT_EQ(
      error(absl::NotFoundError("model \"x\" is not served here")),
      R"(404 {"error":{"message":"model \"x\" is not served here","type":"invalid_request_error","param":"model","code":"model_not_found"}})");
  EXPECT_EQ(
      error(ResourceExhausted("the queue is full")),
      R"(503 {"error":{"message":"the queue is full","type":"server_error","param":null,"code":"overloaded"}})");
  EXPECT_EQ(ErrorResponse(Unavailable("x")).headers[0].first, "Retry-After");
  EXPECT_EQ(ErrorResponse(absl::InternalError("x")).status, 500);
  EXPECT_EQ(ErrorResponse(absl::DeadlineExceededError("x")).status, 504);
  EXPECT_EQ(
      ErrorResponse(405, "bytes \xff", "c").body,
      "{\"error\":{\"message\":\"bytes \xef\xbf\xbd\",\"type\":\"invalid_request_error\",\"param\":"
      "null,\"code\":\"c\"}}");
}

}  // namespace
}  // namespace trivium::router::openai
