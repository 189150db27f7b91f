#include "services/cli/options.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>

#include "services/cli/prompt.h"

namespace trivium::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

struct Outcome {
  std::optional<int> code;
  Options options;
  std::string out, err;
};

Outcome Parse(std::vector<const char*> args) {
  args.insert(args.begin(), "trivium");
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Outcome outcome;
  outcome.code = ParseOptions(static_cast<int>(args.size()), args.data(), &outcome.options);
  outcome.out = testing::internal::GetCapturedStdout();
  outcome.err = testing::internal::GetCapturedStderr();
  return outcome;
}

TEST(OptionsTest, GenerateCarriesWhatWasSaidAndNothingElse) {
  const Outcome o = Parse({"generate",
                           "--prompt",
                           "hi",
                           "--max-tokens",
                           "9",
                           "--temperature",
                           "0.5",
                           "--top-k",
                           "3",
                           "--top-p",
                           "0.9",
                           "--min-p",
                           "0.05",
                           "--typical-p",
                           "0.8",
                           "--repetition-penalty",
                           "1.1",
                           "--presence-penalty",
                           "-0.5",
                           "--frequency-penalty",
                           "0.25",
                           "--logit-bias",
                           "12=-100",
                           "--logit-bias",
                           "7=1.5",
                           "--prompt-logprobs",
                           "3",
                           "--n",
                           "4",
                           "--seed",
                           "18446744073709551615",
                           "--stop",
                           "a,b",
                           "--stop",
                           "c",
                           "--logprobs",
                           "0",
                           "--ignore-eos",
                           "--priority",
                           "-7",
                           "--json"});
  ASSERT_EQ(o.code, std::nullopt) << o.err;
  const auto request = MakeGenerateRequest(o.options);
  ASSERT_TRUE(request.ok());
  v1::GenerateRequest expected;
  expected.set_text("hi");
  v1::Sampling* sampling = expected.mutable_sampling();
  sampling->set_max_tokens(9);
  sampling->set_temperature(0.5f);
  sampling->set_top_k(3);
  sampling->set_top_p(0.9f);
  sampling->set_seed(18446744073709551615u);
  sampling->add_stop("a,b");
  sampling->add_stop("c");
  sampling->set_logprobs(0);
  sampling->set_ignore_eos(true);
  sampling->set_min_p(0.05f);
  sampling->set_typical_p(0.8f);
  sampling->set_repetition_penalty(1.1f);
  sampling->set_presence_penalty(-0.5f);
  sampling->set_frequency_penalty(0.25f);
  (*sampling->mutable_logit_bias())[12] = -100;
  (*sampling->mutable_logit_bias())[7] = 1.5f;
  sampling->set_prompt_logprobs(3);
  expected.set_priority(-7);
  sampling->set_n(4);
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(*request, expected))
      << request->DebugString();
  EXPECT_TRUE(o.options.json);
}

TEST(OptionsTest, ABiasIsAPair) {
  for (const char* bad : {"7", "7=", "=1", "seven=1", "7=1=2", "7=much", "99999999999=1"}) {
    const Outcome o = Parse({"generate", "--prompt", "hi", "--logit-bias", bad});
    EXPECT_EQ(o.code, 2) << bad;
    EXPECT_THAT(o.err, HasSubstr("--logit-bias")) << bad;
  }
  const Outcome twice =
      Parse({"generate", "--prompt", "hi", "--logit-bias", "7=1", "--logit-bias", "7=2"});
  EXPECT_EQ(twice.code, 2);
  EXPECT_THAT(twice.err, HasSubstr("names token 7 twice"));
}

TEST(OptionsTest, PromptForms) {
  Outcome o = Parse({"generate", "--tokens", "1,2,-3"});
  ASSERT_EQ(o.code, std::nullopt) << o.err;
  EXPECT_THAT(MakeGenerateRequest(o.options)->token_ids().ids(), ElementsAre(1, 2, -3));
  o = Parse({"generate", "--prompt", "", "--chat"});
  ASSERT_EQ(o.code, std::nullopt) << o.err;
  EXPECT_EQ(MakeGenerateRequest(o.options)->chat().messages(0).role(), "user");
  const std::string path = testing::TempDir() + "cli_prompt.txt";
  std::ofstream(path, std::ios::binary) << "line\nline\n";
  o = Parse({"generate", "--file", path.c_str()});
  EXPECT_EQ(MakeGenerateRequest(o.options)->text(), "line\nline\n");
  o = Parse({"generate", "--file", "/nowhere"});
  EXPECT_EQ(MakeGenerateRequest(o.options).status(),
            absl::InvalidArgumentError("/nowhere: No such file or directory"));
  std::ofstream(path, std::ios::binary) << "\xff";
  o = Parse({"generate", "--file", path.c_str()});
  EXPECT_EQ(MakeGenerateRequest(o.options).status(),
            absl::InvalidArgumentError("the prompt is not valid UTF-8"));
}

TEST(OptionsTest, RouterBeforeAfterAndFromTheEnvironment) {
  EXPECT_EQ(Parse({"status"}).options.router, "127.0.0.1:7400");
  EXPECT_EQ(Parse({"--router", "a:1", "status"}).options.router, "a:1");
  EXPECT_EQ(Parse({"status", "--router", "a:1"}).options.router, "a:1");
  setenv("TRIVIUM_ROUTER", "env:1", 1);
  EXPECT_EQ(Parse({"status"}).options.router, "env:1");
  EXPECT_EQ(Parse({"status", "--router", "a:1"}).options.router, "a:1");
  unsetenv("TRIVIUM_ROUTER");
}

TEST(OptionsTest, TheKeyFromAFileOrTheEnvironmentIsNotShown) {
  const std::string path = testing::TempDir() + "cli_api_key";
  std::ofstream(path) << "file-key\n";
  EXPECT_EQ(Parse({"status"}).options.api_key, "");
  EXPECT_EQ(Parse({"--api-key-file", path.c_str(), "status"}).options.api_key, "file-key");
  EXPECT_EQ(Parse({"status", "--api-key-file", path.c_str()}).options.api_key, "file-key");
  setenv("TRIVIUM_API_KEY", "env-key", 1);
  EXPECT_EQ(Parse({"status"}).options.api_key, "env-key");
  EXPECT_EQ(Parse({"status", "--api-key-file", path.c_str()}).options.api_key, "file-key");
  EXPECT_EQ(Parse({"--help"}).out.find("env-key"), std::string::npos);
  setenv("TRIVIUM_API_KEY", "two words", 1);
  EXPECT_EQ(Parse({"status"}).code, 2);
  EXPECT_EQ(Parse({"status"}).err.find("words"), std::string::npos);
  unsetenv("TRIVIUM_API_KEY");
  std::ofstream(path) << " \n";
  EXPECT_EQ(Parse({"status", "--api-key-file", path.c_str()}).code, 2);
  EXPECT_THAT(Parse({"status", "--api-key-file", "/nowhere"}).err,
              HasSubstr("/nowhere: cannot be read: No such file or directory"));
}

TEST(OptionsTest, ValuesThatTheRouterShallJudgeReachIt) {
  EXPECT_TRUE(std::isnan(
      Parse({"generate", "--prompt", "x", "--temperature", "nan"}).options.sampling.temperature()));
  EXPECT_EQ(
      Parse({"generate", "--prompt", "x", "--max-tokens", "-1"}).options.sampling.max_tokens(), -1);
}

TEST(OptionsTest, MistakesAreOneLineAndCodeTwo) {
  const std::vector<std::vector<const char*>> table = {
      {},
      {"sing"},
      {"generate"},
      {"generate", "--prompt", "a", "--file", "b"},
      {"generate", "--prompt", "a", "--tokens", "1"},
      {"generate", "--prompt", "a", "--max-tokens", "many"},
      {"generate", "--prompt", "a", "--max-tokens", "99999999999"},
      {"generate", "--tokens", "1,x"},
      {"generate", "--prompt"},
      {"bench", "--concurrency", "1025"},
      {"bench", "--requests", "0"},
      {"bench", "--token-id-min", "9", "--token-id-max", "8"},
      {"bench", "--rate", "0"},
      {"bench", "--rate", "nan"},
      {"bench", "--rate", "1", "--trace", "x"},
      {"bench", "--rate", "1", "--concurrency", "2"},
      {"bench", "--trace", "x", "--max-tokens", "2"},
      {"status", "--watch", "--json"},
      {"status", "--count", "2"},
      {"status", "--watch", "--interval-s", "0"},
      {"completion"},
      {"completion", "csh"},
      {"status", "extra"},
      {"wait-ready", "--timeout-s", "-1"},
      {"wait-ready", "--timeout-s", "nan"},
      {"generate", "--prompt", "a", "--timeout-s", "nan"},
      {"bench", "--timeout-s", "1e300"},
      {"chat", "generate"},
  };
  for (const auto& args : table) {
    const Outcome o = Parse(args);
    EXPECT_EQ(o.code, 2) << testing::PrintToString(args);
    EXPECT_EQ(o.err.rfind("trivium: ", 0), 0u);
    EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << o.err;
  }
}

TEST(OptionsTest, HelpAndVersion) {
  EXPECT_EQ(Parse({"--version"}).code, 0);
  EXPECT_EQ(Parse({"--version"}).out.rfind("trivium ", 0), 0u);
  EXPECT_THAT(Parse({"--help"}).out, HasSubstr("wait-ready"));
  const Outcome o = Parse({"bench", "--help"});
  EXPECT_EQ(o.code, 0);
  EXPECT_THAT(o.out, HasSubstr("--concurrency"));
}

TEST(OptionsTest, BenchAndWaitReady) {
  Outcome o = Parse({"bench", "--requests", "7", "--concurrency", "2", "--prompt-tokens", "3",
                     "--max-tokens", "4", "--seed", "5", "--json"});
  ASSERT_EQ(o.code, std::nullopt) << o.err;
  EXPECT_EQ(o.options.bench.requests, 7);
  EXPECT_FALSE(o.options.bench.open_loop());
  EXPECT_EQ(o.options.bench.concurrency, 2);
  EXPECT_EQ(o.options.bench.prompt_tokens, 3);
  EXPECT_EQ(o.options.bench.max_tokens, 4);
  EXPECT_EQ(o.options.bench.seed, 5u);
  EXPECT_FALSE(o.options.sampling.has_max_tokens());
  o = Parse({"wait-ready", "--timeout-s", "2.5", "--prefill", "2"});
  EXPECT_EQ(o.options.timeout_s, 2.5);
  EXPECT_EQ(o.options.prefill_workers, 2);
  EXPECT_EQ(o.options.decode_workers, 1);
}

}  // namespace
}  // namespace trivium::cli
