#include "services/cli/answer.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "services/cli/client.h"

namespace trivium::cli {
namespace {

v1::GenerateResponse Delta(const std::string& text, const std::vector<int>& ids, int first_index,
                           bool logprobs = false) {
  v1::GenerateResponse response;
  response.mutable_delta()->set_text(text);
  for (const int id : ids) {
    v1::OutputToken* token = response.mutable_delta()->add_tokens();
    token->set_index(first_index++);
    token->set_id(id);
    if (!logprobs) continue;
    token->set_logprob(-0.5f);
    v1::TokenLogprob* top = token->add_top();
    top->set_id(id + 1);
    top->set_logprob(-2);
  }
  return response;
}

v1::GenerateResponse Done(int completion_tokens) {
  v1::GenerateResponse response;
  v1::Done* done = response.mutable_done();
  done->set_request_id("r-1");
  done->set_finish_reason("stop");
  done->set_seed(18446744073709551615u);
  done->mutable_usage()->set_prompt_tokens(5);
  done->mutable_usage()->set_cached_prompt_tokens(4);
  done->mutable_usage()->set_completion_tokens(completion_tokens);
  done->mutable_timings()->set_queue_ms(1);
  done->mutable_timings()->set_reserve_ms(2);
  done->mutable_timings()->set_prefill_ms(3);
  done->mutable_timings()->set_transfer_ms(4);
  done->mutable_timings()->set_time_to_first_token_ms(5.5);
  done->mutable_timings()->set_decode_ms(6);
  done->mutable_timings()->set_tokens_per_second(33.25);
  done->mutable_served_by()->set_prefill_worker("p");
  done->mutable_served_by()->set_decode_worker("d");
  done->mutable_served_by()->set_attempts(1);
  done->mutable_served_by()->set_kv_bytes_moved(115200);
  done->mutable_served_by()->set_kv_header_bytes(640);
  return response;
}

v1::GenerateResponse PromptDelta(const std::vector<int>& ids, int first_index) {
  v1::GenerateResponse response;
  for (const int id : ids) {
    v1::OutputToken* token = response.mutable_delta()->add_prompt_tokens();
    token->set_index(first_index++);
    token->set_id(id);
    if (token->index() > 0) token->set_logprob(-1.5f);
  }
  return response;
}

TEST(AnswerTest, TokensOfThePromptComeInOrderBeforeTheAnswer) {
  Answer answer;
  ASSERT_TRUE(answer.Add(PromptDelta({5, 6}, 0)).ok());
  EXPECT_FALSE(answer.Add(PromptDelta({7}, 1)).ok());
  EXPECT_FALSE(answer.Add(PromptDelta({7}, 3)).ok());
  ASSERT_TRUE(answer.Add(PromptDelta({7}, 2)).ok());
  ASSERT_TRUE(answer.Add(Delta("a", {10}, 0)).ok());
  EXPECT_FALSE(answer.Add(PromptDelta({8}, 3)).ok());
  EXPECT_EQ(nlohmann::json::parse(answer.Json())["prompt_logprobs"], nlohmann::json::parse(R"([
    {"id": 5, "logprob": null, "top": []},
    {"id": 6, "logprob": -1.5, "top": []},
    {"id": 7, "logprob": -1.5, "top": []}])"));
}

TEST(AnswerTest, RecordedStreamAsJson) {
  Answer answer;
  ASSERT_TRUE(answer.Add(Delta("", {10}, 0, true)).ok());
  ASSERT_TRUE(answer.Add(Delta("Par\"is\n", {11, 12}, 1, true)).ok());
  ASSERT_TRUE(answer.Add(Done(3)).ok());
  ASSERT_TRUE(answer.CheckComplete().ok());
  const auto expected = nlohmann::ordered_json::parse(R"({
    "request_id": "r-1", "text": "Par\"is\n", "finish_reason": "stop", "seed": 18446744073709551615,
    "token_ids": [10, 11, 12],
    "logprobs": [{"id": 10, "logprob": -0.5, "top": [{"id": 11, "logprob": -2.0}]},
                 {"id": 11, "logprob": -0.5, "top": [{"id": 12, "logprob": -2.0}]},
                 {"id": 12, "logprob": -0.5, "top": [{"id": 13, "logprob": -2.0}]}],
    "prompt_logprobs": null,
    "usage": {"prompt_tokens": 5, "completion_tokens": 3, "cached_prompt_tokens": 4},
    "timings": {"queue_ms": 1.0, "reserve_ms": 2.0, "prefill_ms": 3.0, "transfer_ms": 4.0,
                "time_to_first_token_ms": 5.5, "decode_ms": 6.0, "tokens_per_second": 33.25},
    "workers": {"prefill": "p", "decode": "d", "attempts": 1, "preemptions": 0},
    "kv": {"bytes_moved": 115200, "header_bytes": 640}})");
  EXPECT_EQ(nlohmann::ordered_json::parse(answer.Json()), expected);
  EXPECT_EQ(
      answer.Figures(),
      "5 prompt tokens, 3 tokens, first after 6 ms, 33.2 tokens/s; p to d; KV 115,200 bytes moved, "
      "640 of headers");
}

v1::GenerateResponse OfChoice(int choice, v1::GenerateResponse response) {
  response.mutable_delta()->set_choice(choice);
  return response;
}

TEST(AnswerTest, ChoicesAreKeptApart) {
  Answer answer;
  ASSERT_TRUE(answer.Add(OfChoice(1, Delta("x", {20}, 0))).ok());
  ASSERT_TRUE(answer.Add(OfChoice(0, Delta("a", {10}, 0))).ok());
  ASSERT_TRUE(answer.Add(OfChoice(1, Delta("yz", {21, 22}, 1))).ok());
  EXPECT_FALSE(answer.Add(OfChoice(0, Delta("b", {11}, 2))).ok());
  EXPECT_FALSE(answer.Add(OfChoice(16, Delta("b", {11}, 0))).ok());
  EXPECT_FALSE(answer.Add(OfChoice(-1, Delta("b", {11}, 0))).ok());
  v1::GenerateResponse done = Done(4);
  for (const int tokens : {1, 3}) {
    v1::ChoiceEnd* end = done.mutable_done()->add_choices();
    end->set_finish_reason("length");
    end->set_completion_tokens(tokens);
    end->set_seed(7);
  }
  Answer wrong = answer;
  ASSERT_TRUE(answer.Add(done).ok());
  EXPECT_TRUE(answer.CheckComplete().ok());
  EXPECT_EQ(nlohmann::json::parse(answer.Json())["choices"], nlohmann::json::parse(R"([
    {"text": "a", "finish_reason": "length", "seed": 7, "token_ids": [10], "logprobs": null},
    {"text": "xyz", "finish_reason": "length", "seed": 7, "token_ids": [20, 21, 22],
     "logprobs": null}])"));
  done.mutable_done()->mutable_choices()->SwapElements(0, 1);
  ASSERT_TRUE(wrong.Add(done).ok());
  EXPECT_FALSE(wrong.CheckComplete().ok());
}

TEST(AnswerTest, WithoutLogprobsTheyAreNull) {
  Answer answer;
  ASSERT_TRUE(answer.Add(Delta("a", {1}, 0)).ok());
  EXPECT_TRUE(nlohmann::json::parse(answer.Json())["logprobs"].is_null());
}

TEST(AnswerTest, BrokenStreamsAreSeen) {
  {
    Answer answer;
    ASSERT_TRUE(answer.Add(Delta("", {1}, 0)).ok());
    EXPECT_EQ(answer.Add(Delta("", {1}, 0)).code(), absl::StatusCode::kDataLoss) << "repeated";
  }
  {
    Answer answer;
    EXPECT_EQ(answer.Add(Delta("", {1}, 1)).code(), absl::StatusCode::kDataLoss) << "gap";
  }
  {
    Answer answer;
    ASSERT_TRUE(answer.Add(Delta("a", {1}, 0)).ok());
    EXPECT_EQ(answer.CheckComplete().code(), absl::StatusCode::kDataLoss) << "no result";
    ASSERT_TRUE(answer.Add(Done(2)).ok());
    EXPECT_EQ(answer.CheckComplete().code(), absl::StatusCode::kDataLoss) << "a token is missing";
    EXPECT_EQ(answer.Add(Delta("", {2}, 1)).code(), absl::StatusCode::kDataLoss) << "after the end";
  }
}

TEST(AnswerTest, TerminalsGetNoCommands) {
  EXPECT_EQ(ForTerminal("a\x1b[31mb\x07\n\tc\"\\\r\x7f"), "a[31mb\n\tc\"\\");
  EXPECT_EQ(ForTerminal("caf\xc3\xa9\xc2\x9b"
                        "31m \xff \xf0\x9f\x98\x80"),
            "caf\xc3\xa9"
            "31m  \xf0\x9f\x98\x80");
}

TEST(AnswerTest, GroupedDigits) {
  EXPECT_EQ(Grouped(0), "0");
  EXPECT_EQ(Grouped(999), "999");
  EXPECT_EQ(Grouped(1000), "1,000");
  EXPECT_EQ(Grouped(1234567), "1,234,567");
  EXPECT_EQ(Grouped(-123456), "-123,456");
}

TEST(ExplainTest, NobodyThereAndTryAgain) {
  const absl::Status nobody =
      Explain(grpc::Status(grpc::UNAVAILABLE, "failed to connect to all addresses; last error: x"),
              "127.0.0.1:1");
  EXPECT_EQ(nobody,
            absl::UnavailableError(
                "no router answers at 127.0.0.1:1; start one, or name another with --router"));
  EXPECT_EQ(
      Explain(net::ToGrpc(absl::ResourceExhaustedError("full"), std::chrono::milliseconds(1500)),
              "a"),
      absl::ResourceExhaustedError("full (try again in 1.5 s)"));
  EXPECT_EQ(Explain(grpc::Status(grpc::UNAVAILABLE, "no prefill worker"), "a"),
            absl::UnavailableError("no prefill worker"));
  EXPECT_TRUE(Explain(grpc::Status::OK, "a").ok());
}

TEST(ClientTest, UnreachableRouterIsOneClearError) {
  Client client("127.0.0.1:1", 0, "");
  const auto status = client.ClusterStatus();
  EXPECT_EQ(status.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(Message(status.status()).find("no router answers at 127.0.0.1:1"), std::string::npos)
      << status.status();
  Answer answer;
  EXPECT_EQ(client.Generate({}, &answer, nullptr).code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace trivium::cli
