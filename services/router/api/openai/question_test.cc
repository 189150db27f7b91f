#include "services/router/api/openai/question.h"

#include <gtest/gtest.h>

#include <random>

namespace trivium::router::openai {
namespace {

constexpr Endpoint kChat = Endpoint::kChat, kText = Endpoint::kCompletions;
const std::string kHi = R"("messages": [{"role": "user", "content": "Hi"}])";

Question Good(Endpoint endpoint, const std::string& body) {
  absl::StatusOr<Question> question = ParseQuestion(endpoint, body);
  EXPECT_TRUE(question.ok()) << question.status() << "\n" << body;
  return question.ok() ? *std::move(question) : Question{.requests = {{}}};
}
std::string ErrorOf(Endpoint endpoint, const std::string& body) {
  const absl::StatusOr<Question> question = ParseQuestion(endpoint, body);
  if (question.ok()) return "accepted";
  EXPECT_EQ(question.status().code(), absl::StatusCode::kInvalidArgument);
  return Message(question.status());
}

TEST(QuestionTest, EveryFieldOfAChat) {
  const Question question = Good(kChat, R"({
    "model": "m", "messages": [
      {"role": "developer", "content": "Be brief.", "name": "ignored"},
      {"role": "user", "content": [{"type": "text", "text": "Wha"}, {"text": "t?", "type": "text"}]},
      {"role": "assistant", "content": "", "refusal": null, "tool_calls": null},
      {"role": "tool", "content": "42"}],
    "temperature": 0.5, "top_p": 1, "top_k": 7, "min_p": 0.25, "typical_p": 0.75,
    "repetition_penalty": 1.5, "presence_penalty": -1, "frequency_penalty": 2, "seed": -1,
    "logit_bias": {"5": -100, "6": 1.5}, "n": 3, "max_completion_tokens": 9, "min_tokens": 2,
    "ignore_eos": true, "stop": ["a", "b"], "stop_token_ids": [1, 2], "logprobs": true,
    "top_logprobs": 4, "priority": -3, "stream": true, "stream_options": {"include_usage": true},
    "user": "u", "tools": [], "response_format": {"type": "text"}, "modalities": ["text"],
    "metadata": {"deep": [[[{}]]]}, "store": false})");
  ASSERT_EQ(question.requests.size(), 1u);
  EXPECT_TRUE(question.is_stream);
  EXPECT_TRUE(question.wants_usage);
  v1::GenerateRequest request = question.requests[0];
  const auto bias = request.sampling().logit_bias();
  EXPECT_EQ(bias.size(), 2u);
  EXPECT_EQ(bias.at(5), -100);
  EXPECT_EQ(bias.at(6), 1.5);
  request.mutable_sampling()->clear_logit_bias();
  EXPECT_EQ(
      request.ShortDebugString(),
      "model: \"m\" chat { messages { role: \"system\" content: \"Be brief.\" } messages { "
      "role: \"user\" content: \"What?\" } messages { role: \"assistant\" } messages { role: "
      "\"tool\" content: \"42\" } } sampling { temperature: 0.5 top_k: 7 top_p: 1 seed: "
      "18446744073709551615 max_tokens: 9 min_tokens: 2 ignore_eos: true stop_token_ids: 1 "
      "stop_token_ids: 2 stop: \"a\" stop: \"b\" logprobs: 4 min_p: 0.25 typical_p: 0.75 "
      "repetition_penalty: 1.5 presence_penalty: -1 frequency_penalty: 2 n: 3 } priority: -3");
}

TEST(QuestionTest, DefaultsAreThoseOfTheApi) {
  EXPECT_EQ(Good(kChat, "{" + kHi + "}").requests[0].sampling().ShortDebugString(),
            "temperature: 1");
  EXPECT_EQ(Good(kChat, "{" + kHi + R"(, "temperature": 0, "top_k": -1, "logprobs": true})")
                .requests[0]
                .sampling()
                .ShortDebugString(),
            "temperature: 0 top_k: 0 logprobs: 0");
  EXPECT_EQ(Good(kText, R"({"prompt": "x", "logprobs": 2, "best_of": 2, "n": 2, "suffix": "",
                            "echo": false, "model": null})")
                .requests[0]
                .ShortDebugString(),
            "text: \"x\" sampling { temperature: 1 logprobs: 2 n: 2 }");
}

TEST(QuestionTest, PromptsOfAllShapes) {
  const auto prompts = [](const std::string& prompt) {
    std::string all;
    for (const v1::GenerateRequest& request :
         Good(kText, "{\"prompt\": " + prompt + "}").requests) {
      v1::GenerateRequest bare = request;
      bare.clear_sampling();
      all += bare.ShortDebugString() + "; ";
    }
    return all;
  };
  EXPECT_EQ(prompts(R"("one")"), "text: \"one\"; ");
  EXPECT_EQ(prompts(R"(["one", "two"])"), "text: \"one\"; text: \"two\"; ");
  EXPECT_EQ(prompts("[1, 2]"), "token_ids { ids: 1 ids: 2 }; ");
  EXPECT_EQ(prompts("[[1], [2, 3]]"), "token_ids { ids: 1 }; token_ids { ids: 2 ids: 3 }; ");
  EXPECT_EQ(prompts(R"([[7], "mixed"])"), "token_ids { ids: 7 }; text: \"mixed\"; ");
}

struct Bad {
  Endpoint endpoint;
  std::string fields;  // beside a good message or prompt
  std::string error;
};

TEST(QuestionTest, WrongTypesNameTheField) {
  const Bad table[] = {
      {kChat, R"("temperature": "hot")", "temperature: must be a number, is a string"},
      {kChat, R"("temperature": [1])", "temperature: must be a number, is an array"},
      {kChat, R"("max_tokens": 1.5)", "max_tokens: must be a whole number"},
      {kChat, R"("max_tokens": 99999999999)", "max_tokens: does not fit in 32 bits"},
      {kChat, R"("max_tokens": 18446744073709551615)", "max_tokens: does not fit in 32 bits"},
      {kChat, R"("n": true)", "n: must be a whole number, is a truth value"},
      {kChat, R"("seed": "x")", "seed: must be a whole number, is a string"},
      {kChat, R"("stream": 1)", "stream: must be true or false, is a number"},
      {kChat, R"("stop": 1)", "stop: must be a string or an array of strings, is a number"},
      {kChat, R"("stop": ["a", null])", "stop[1]: must be a string, is null"},
      {kChat, R"("stop_token_ids": [1, "2"])",
       "stop_token_ids[1]: must be a whole number, is a string"},
      {kChat, R"("logit_bias": {"x": 1})", "logit_bias: \"x\" is no token id"},
      {kChat, R"("logit_bias": {"7": "x"})", "logit_bias[7]: must be a number, is a string"},
      {kChat, R"("logprobs": 5)", "logprobs: must be true or false, is a number"},
      {kText, R"("logprobs": true)", "logprobs: must be a whole number, is a truth value"},
      {kChat, R"("top_logprobs": 2)", "top_logprobs: needs logprobs to be true"},
      {kChat, R"("stream_options": {})", "stream_options: needs stream to be true"},
      {kChat, R"("stream": true, "stream_options": {"include_usage": 1})",
       "stream_options.include_usage: must be true or false, is a number"},
      {kChat, R"("tools": [{}])",
       "tools: are not supported; \"tool_choice\": \"none\" lets them be"},
      {kChat, R"("tool_choice": "required")",
       "tool_choice: \"required\" is not supported; \"none\" and \"auto\" are"},
      {kChat, R"("response_format": {"type": "json_object"})",
       "response_format: \"json_object\" is not supported; \"text\" is"},
      {kChat, R"("modalities": ["text", "audio"])", "modalities: \"text\" alone is supported"},
      {kText, R"("echo": true)", "echo: is not supported"},
      {kText, R"("suffix": "x")", "suffix: is not supported"},
      {kText, R"("best_of": 2)", "best_of: is 2, must be n, which is 1"},
      {kText, R"("prompt": 5)", "prompt: must be a string or an array of token ids, is a number"},
      {kText, R"("prompt": [])", "prompt: is empty"},
      {kText, R"("prompt": ["a", {}])",
       "prompt[1]: must be a string or an array of token ids, is an object"},
      {kText, R"("prompt": [1, "a"])", "prompt[1]: must be a whole number, is a string"},
      {kText, R"("prompt": [[1], [2, 0.5]])", "prompt[1][1]: must be a whole number"},
      {kChat, R"("messages": {})", "messages: must be an array of messages, is an object"},
      {kChat, R"("messages": [5])", "messages[0]: must be an object, is a number"},
      {kChat, R"("messages": [{"content": "x"}])", "messages[0].role: is required"},
      {kChat, R"("messages": [{"role": "user"}])", "messages[0].content: is required"},
      {kChat, R"("messages": [{"role": "user", "content": 1}])",
       "messages[0].content: must be a string or an array of parts, is a number"},
      {kChat, R"("messages": [{"role": "user", "content": [{"type": "image_url"}]}])",
       "messages[0].content[0].image_url: is required"},
      {kChat, R"("messages": [{"role": "user", "content": [{"type": "input_audio"}]}])",
       "messages[0].content[0].type: is \"input_audio\"; \"text\" and \"image_url\" are supported"},
      {kChat,
       R"("messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])",
       "messages[0].content[0].image_url.url: is required"},
      {kChat,
       R"("messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/b.png"}}]}])",
       "messages[0].content[0].image_url.url: must be a data URI with base64; other addresses are "
       "not fetched"},
      {kChat,
       R"("messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:;base64,a"}}]}])",
       "messages[0].content[0].image_url.url: is no base64: not whole groups of four"},
      {kChat,
       R"("messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:;base64,aa*="}}]}])",
       "messages[0].content[0].image_url.url: is no base64: a character that is no digit"},
      {kChat, R"("messages": [{"role": "user", "content": [{"type": "text"}]}])",
       "messages[0].content[0].text: is required"},
      {kChat, R"("messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}])",
       "messages[0].tool_calls: calls of tools are not supported"},
  };
  for (const Bad& bad : table) {
    const std::string start = bad.endpoint == kChat ? kHi : R"("prompt": "Hi")";
    EXPECT_EQ(ErrorOf(bad.endpoint, "{" + start + ", " + bad.fields + "}"), bad.error);
  }
  EXPECT_EQ(ErrorOf(kChat, "{}"), "messages: is required");
  EXPECT_EQ(ErrorOf(kText, R"({"prompt": null})"), "prompt: is required");
  std::string many = R"({"prompt": ["x")";
  for (int i = 0; i < 64; ++i) many += R"(, "x")";
  EXPECT_EQ(ErrorOf(kText, many + "]}"), "prompt: at most 64 prompts are allowed in one request");
}

TEST(QuestionTest, WhatIsNoJsonObject) {
  EXPECT_EQ(ErrorOf(kChat, "[]"), "the body must be a JSON object");
  for (const std::string& body :
       {std::string(), std::string("{"), std::string("{\"a\": \xff\"\"}"),
        std::string("{\"\xff\": 1}"), std::string("{} {}"), std::string("{\"a\": 1e999}"),
        std::string("{\"a\": \"\\ud800\"}"),
        "{\"a\": " + std::string(100, '[') + std::string(100, ']') + "}", std::string(1 << 20, '['),
        std::string("{\"a\0\": 1}", 9)}) {
    const std::string error = ErrorOf(kChat, body);
    EXPECT_EQ(error.substr(0, 28), "the body is not valid JSON: ") << body.substr(0, 20);
  }
}

// Whatever the bytes are: an error that is short, or a request whose texts are UTF-8.
TEST(QuestionTest, MutationsNeverBreakIt) {
  const std::string seeds[] = {
      "{" + kHi + R"(, "temperature": 0.5, "stop": ["a"], "logit_bias": {"5": 1}, "stream": true})",
      R"({"prompt": [[1, 2], "x"], "n": 2, "logprobs": 3, "seed": 18446744073709551615})"};
  constexpr char kBytes[] = "\"{}[]:,\\u0019eE.-+tfn \xc3\xa9\xff";
  constexpr uint32_t kSeed = 99;
  std::mt19937 random(kSeed);
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string body = seeds[round % 2];
    for (int i = random() % 3; i >= 0; --i) {
      const size_t at = random() % body.size();
      if (random() % 2 == 0) body.erase(at, random() % 3);
      if (random() % 2 == 0) body.insert(at, 1, kBytes[random() % (sizeof(kBytes) - 1)]);
    }
    const auto question = ParseQuestion(round % 4 < 2 ? kChat : kText, body);
    accepted += question.ok();
    if (!question.ok()) {
      ASSERT_LT(question.status().message().size(), 300u) << kSeed << ": " << body;
      continue;
    }
    for (const v1::GenerateRequest& request : question->requests) {
      v1::GenerateRequest again;
      ASSERT_TRUE(again.ParseFromString(request.SerializeAsString())) << kSeed << ": " << body;
    }
  }
  EXPECT_GT(accepted, 1000);
}

TEST(InClientTermsTest, Table) {
  Question chat{.endpoint = kChat, .requests = {{}}};
  Question text{.endpoint = kText, .requests = {{}, {}}};
  const auto in = [](const Question& question, const char* message, size_t prompt = 0) {
    return Message(InClientTerms(InvalidArgument("{}", message), question, prompt));
  };
  EXPECT_EQ(in(chat, "sampling.top_p: is 7"), "top_p: is 7");
  EXPECT_EQ(in(chat, "sampling.logprobs: is 21"), "top_logprobs: is 21");
  EXPECT_EQ(in(text, "sampling.logprobs: is 21"), "logprobs: is 21");
  EXPECT_EQ(in(chat, "sampling.max_tokens: is 0"), "max_tokens: is 0");
  chat.names_completion_tokens = true;
  EXPECT_EQ(in(chat, "sampling.max_tokens: is 0"), "max_completion_tokens: is 0");
  EXPECT_EQ(in(chat, "chat.messages[1].role: \"x\" is unknown"),
            "messages[1].role: \"x\" is unknown");
  EXPECT_EQ(in(chat, "prompt: has 9 tokens"), "messages: has 9 tokens");
  EXPECT_EQ(in(text, "text: is empty", 1), "prompt[1]: is empty");
  EXPECT_EQ(in(text, "token_ids.ids[3]: is -1", 1), "prompt[1][3]: is -1");
  text.requests.resize(1);
  EXPECT_EQ(in(text, "prompt: has 9 tokens"), "prompt: has 9 tokens");
  EXPECT_EQ(in(text, "no field here"), "no field here");
}

}  // namespace
}  // namespace trivium::router::openai
