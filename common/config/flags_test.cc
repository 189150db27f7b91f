#include "common/config/flags.h"

#include <gtest/gtest.h>

#include <fstream>

#include "common/config/config.h"

namespace trivium::config {
namespace {

struct Outcome {
  std::optional<int> code;
  std::string out, err;
};

template <typename Call>
Outcome Capture(std::vector<const char*> args, const Call& call) {
  args.insert(args.begin(), "program");
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Outcome outcome;
  outcome.code = call(static_cast<int>(args.size()), args.data());
  outcome.out = testing::internal::GetCapturedStdout();
  outcome.err = testing::internal::GetCapturedStderr();
  return outcome;
}
Outcome Worker(const std::vector<const char*>& args, v1::WorkerConfig* config) {
  return Capture(args, [&](int argc, const char* const* argv) {
    return ParseWorkerCommandLine(argc, argv, "decode", config);
  });
}
Outcome Router(const std::vector<const char*>& args, v1::RouterConfig* config) {
  return Capture(args, [&](int argc, const char* const* argv) {
    return ParseRouterCommandLine(argc, argv, config);
  });
}

std::string WriteYaml(const std::string& content) {
  const std::string path = testing::TempDir() + "flags_test.yaml";
  std::ofstream(path) << content;
  return path;
}

TEST(FlagsTest, FlagsOverrideTheFile) {
  const std::string path = WriteYaml("engine: {threads: 3, isa: avx2}\nmodel: {path: file.gguf}\n");
  v1::WorkerConfig config;
  const Outcome outcome =
      Worker({"--config", path.c_str(), "--threads", "5", "--kv-memory", "64MiB", "--listen",
              "127.0.0.1:0", "--worker-id=w", "--timeout-scale", "4"},
             &config);
  EXPECT_EQ(outcome.code, std::nullopt) << outcome.err;
  EXPECT_EQ(outcome.out + outcome.err, "");
  EXPECT_EQ(config.engine().threads(), 5);
  EXPECT_EQ(config.engine().isa(), "avx2");
  EXPECT_EQ(config.engine().kv_memory_bytes(), 64 << 20);
  EXPECT_EQ(config.model().path(), "file.gguf");
  EXPECT_EQ(config.worker_id(), "w");
  EXPECT_EQ(config.transfer().timeout_scale(), 4);
  EXPECT_EQ(config.engine().step_tokens(), 512);
}

TEST(FlagsTest, WorkersOfTheRouter) {
  const std::string path =
      WriteYaml("model: {path: m}\nworkers:\n- {address: old:1, role: decode}\n");
  v1::RouterConfig config;
  Outcome outcome = Router({"--config", path.c_str(), "--worker", "prefill=127.0.0.1:1", "--worker",
                            "decode=127.0.0.1:2", "--queue-requests", "0"},
                           &config);
  EXPECT_EQ(outcome.code, std::nullopt) << outcome.err;
  ASSERT_EQ(config.workers_size(), 2);
  EXPECT_EQ(config.workers(0).role(), "prefill");
  EXPECT_EQ(config.workers(1).address(), "127.0.0.1:2");
  EXPECT_EQ(config.queue_requests(), 0);
  for (const char* bad : {"prefill", "=a:1", "cook=a:1", "prefill=a"}) {
    outcome = Router({"--model", "m", "--worker", bad}, &config);
    EXPECT_EQ(outcome.code, 1) << bad;
    EXPECT_EQ(outcome.err.substr(0, 26), "trivium-router: --worker: ") << outcome.err;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1);
  }
}

TEST(FlagsTest, OneLineAndACodeForEveryMistake) {
  v1::WorkerConfig config;
  const std::string path = WriteYaml("server:\n  listen: 0.0.0.0:1\nmodel: {path: m}\n");
  const std::tuple<std::vector<const char*>, int, std::string> table[] = {
      {{"--thread", "1"}, 2, "trivium-decode: The following argument"},
      {{"--threads"}, 2, "trivium-decode: --threads: "},
      {{"--threads", "1", "--threads", "2"}, 2, "trivium-decode: --threads"},
      {{"--threads", "0"}, 1, "trivium-decode: --threads: 0 is out of range; allowed: 1 to 256"},
      {{"--isa", "mmx"}, 1, "trivium-decode: --isa: \"mmx\" is not known"},
      {{}, 1, "trivium-decode: model.path: not set"},
      {{"--config", "/nowhere.yaml"}, 1, "trivium-decode: /nowhere.yaml: cannot be read"},
      {{"--config", path.c_str()}, 1, "trivium-decode: " + path + ": server.listen: 0.0.0.0:1 can"},
      {{"--model", "/nowhere.gguf", "--check-config"},
       1,
       "trivium-decode: model.path: /nowhere.gguf: No such file"},
  };
  for (const auto& [args, code, error] : table) {
    config.Clear();
    const Outcome outcome = Worker(args, &config);
    EXPECT_EQ(outcome.code, code) << outcome.err;
    EXPECT_EQ(outcome.err.substr(0, error.size()), error);
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
  }
}

TEST(FlagsTest, QuestionsEndTheProgram) {
  v1::WorkerConfig config;
  Outcome outcome = Worker({"--version"}, &config);
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.out, "trivium-decode " + std::string(Version()) + "\n");
  outcome = Worker({"--help"}, &config);
  EXPECT_EQ(outcome.code, 0);
  EXPECT_NE(outcome.out.find("--kv-memory"), std::string::npos);
  outcome = Worker({"--model", "m.gguf", "--threads", "7", "--print-config"}, &config);
  EXPECT_EQ(outcome.code, 0);
  v1::WorkerConfig printed;
  ASSERT_TRUE(ParseYamlInto(outcome.out, "printed", &printed).ok());
  EXPECT_EQ(printed.SerializeAsString(), config.SerializeAsString());
  config.Clear();
  const std::string model = WriteYaml("any file");
  outcome = Worker({"--model", model.c_str(), "--check-config"}, &config);
  EXPECT_EQ(outcome.code, 0);
}

}  // namespace
}  // namespace trivium::config
