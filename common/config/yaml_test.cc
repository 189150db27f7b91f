#include <gtest/gtest.h>

#include <random>

#include "common/config/config.h"
#include "common/config/yaml_tree.h"

namespace trivium::config {
namespace {

std::string ErrorOf(const std::string& text) {
  v1::WorkerConfig config;
  const absl::Status status = ParseYamlInto(text, "w.yaml", &config);
  EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kInvalidArgument);
  return Message(status);
}
std::string RouterErrorOf(const std::string& text) {
  v1::RouterConfig config;
  return Message(ParseYamlInto(text, "r.yaml", &config));
}

TEST(YamlTest, GoldenErrors) {
  const std::pair<const char*, const char*> table[] = {
      {"engine:\n  thread: 2\n",
       "w.yaml:2: engine: unknown key \"thread\"; allowed: threads, isa, numerics, "
       "kv_memory_bytes, "
       "step_tokens, requests_max, admission, kv_tiers, prefill_policy, step_target_ms, "
       "kv_type"},
      {"modle: x\n",
       "w.yaml:1: unknown key \"modle\"; allowed: worker_id, server, model, engine, transfer, pictures"},
      {"engine:\n  threads: 2\n\n  threads: 3\n",
       "w.yaml:4: engine.threads: repeated; first on line 2"},
      {"engine:\n  threads: many\n",
       "w.yaml:2: engine.threads: \"many\" is not a whole number; allowed: 1 to 256"},
      {"engine:\n  threads: \"2\"\n",
       "w.yaml:2: engine.threads: \"2\" is not a whole number; allowed: 1 to 256"},
      {"engine: {threads: 0}\n", "w.yaml:1: engine.threads: 0 is out of range; allowed: 1 to 256"},
      {"engine: {threads: 1.5}\n",
       "w.yaml:1: engine.threads: \"1.5\" is not a whole number; allowed: 1 to 256"},
      {"engine: {threads: 99999999999999999999}\n",
       "w.yaml:1: engine.threads: 99999999999999999999 does not fit; allowed: 1 to 256"},
      {"engine: {threads: 4294967297}\n",
       "w.yaml:1: engine.threads: 4294967297 is out of range; allowed: 1 to 256"},
      {"engine: {isa: avx3}\n",
       "w.yaml:1: engine.isa: \"avx3\" is not known; allowed: auto, reference, avx2, avx512, amx"},
      {"engine: {kv_memory_bytes: 512MB}\n",
       "w.yaml:1: engine.kv_memory_bytes: \"512MB\" is no size; allowed: a whole number, alone or "
       "with "
       "KiB, MiB, GiB, TiB"},
      {"engine: {kv_memory_bytes: 1KiB}\n",
       "w.yaml:1: engine.kv_memory_bytes: 1024 is out of range; allowed: 1 MiB to 16 TiB, as a "
       "number or "
       "like \"512MiB\""},
      {"transfer:\n  timeout_scale: .nan\n",
       "w.yaml:2: transfer.timeout_scale: \".nan\" is not a number; allowed: 0.05 to 100"},
      {"transfer:\n  timeout_scale: nan\n",
       "w.yaml:2: transfer.timeout_scale: \"nan\" is not a number; allowed: 0.05 to 100"},
      {"transfer:\n  timeout_scale: -1\n",
       "w.yaml:2: transfer.timeout_scale: -1 is out of range; allowed: 0.05 to 100"},
      {"server:\n  listen: nowhere\n",
       "w.yaml:2: server.listen: \"nowhere\" is not an address; allowed: host:port, [IPv6]:port, "
       "unix:PATH"},
      {"server: 7\n", "w.yaml:1: server: must be a map of \"key: value\" lines"},
      {"- 1\n", "w.yaml:1: must be a map of \"key: value\" lines"},
      {"worker_id: [a]\n", "w.yaml:1: worker_id: must be a single value"},
      {"worker_id: \"a b\"\n",
       "w.yaml:1: worker_id: \"a b\" is no name; allowed: at most 64 of A-Z a-z 0-9 . _ -"},
      {"a: &x 1\nb: *x\n", "w.yaml:1: YAML anchors are not allowed"},
      {"worker_id: !!str a\n", "w.yaml:1: YAML tags are not allowed"},
      {"worker_id: a\n---\nworker_id: b\n", "w.yaml:3: a second YAML document; one is allowed"},
      {"server:\n  listen: [1\n", "w.yaml:3: not valid YAML: end of sequence flow not found"},
      {"worker_id: \xff\n", "w.yaml:1: not valid UTF-8"},
      {"\nworker_id: a\x01\n", "w.yaml:2: control character 0x01"},
      {"? [a]\n: 1\n",
       "w.yaml:1: unknown key \"\"; allowed: worker_id, server, model, engine, transfer, pictures"},
  };
  for (const auto& [text, error] : table) EXPECT_EQ(ErrorOf(text), error) << text;
  EXPECT_EQ(RouterErrorOf("workers:\n  - address: a:1\n    role: cook\n"),
            "r.yaml:3: workers[0].role: \"cook\" is not known; allowed: prefill, decode, encode");
  EXPECT_EQ(RouterErrorOf("workers: {address: a:1}\n"),
            "r.yaml:1: workers: must be a list: one \"- …\" an item");
}

TEST(YamlTest, ReadsWhatItShould) {
  v1::WorkerConfig config;
  ASSERT_TRUE(ParseYamlInto("# a comment\nworker_id: 007\nserver:\n  listen: \"127.0.0.1:1\"\n"
                            "engine: {kv_memory_bytes: 512MiB, threads: 3, isa:}\nmodel:\n"
                            "transfer:\n  timeout_scale: 2.5\n  transports: posix,tcp\n",
                            "w.yaml", &config)
                  .ok());
  EXPECT_EQ(config.worker_id(), "007");
  EXPECT_EQ(config.server().listen(), "127.0.0.1:1");
  EXPECT_EQ(config.engine().kv_memory_bytes(), int64_t{512} << 20);
  EXPECT_EQ(config.engine().threads(), 3);
  EXPECT_EQ(config.engine().isa(), "");
  EXPECT_FALSE(config.has_model());
  EXPECT_EQ(config.transfer().timeout_scale(), 2.5);
  for (const char* empty : {"", "\n\n", "# nothing\n", "---\n", "~\n", "null\n", "{}\n"}) {
    v1::WorkerConfig nothing;
    EXPECT_TRUE(ParseYamlInto(empty, "w.yaml", &nothing).ok()) << empty;
    EXPECT_EQ(nothing.ByteSizeLong(), 0u) << empty;
  }
}

std::string Repeat(const std::string& text, size_t bytes) {
  std::string out;
  while (out.size() + text.size() <= bytes) out += text;
  return out;
}

// Shapes that overflowed stacks or took quadratic time in YAML readers.
TEST(YamlTest, HostileShapesAreRefused) {
  constexpr size_t kBytes = 1 << 20;
  for (const char* unit : {"[",    "{",   "[{",   "- ",    "? ",     ": ",   "- ? ", "{? ", "[[],",
                           "{a: ", "!",   "! ",   "!!",    "&a ",    "*a ",  "%a\n", "'",   "\"",
                           "|\n",  ">\n", "[a, ", "---\n", "a:\n- ", "<<: ", "\t",   "#"}) {
    v1::WorkerConfig config;
    const absl::Status status = ParseYamlInto(Repeat(unit, kBytes), "w.yaml", &config);
    const std::string_view shape = unit;
    if (shape != "#" && shape != "\t" && shape != "%a\n") {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << unit;
    }
    EXPECT_LT(status.message().size(), 1000u);
  }
  std::string stairs;
  for (int i = 0; i < 1000; ++i) stairs += std::string(i, ' ') + "a:\n";
  EXPECT_EQ(ErrorOf(stairs).substr(0, 11), "w.yaml:17: ");
  EXPECT_EQ(ErrorOf(std::string(kBytes + 1, ' ')), "w.yaml: larger than 1 MiB");
  EXPECT_LT(ErrorOf(std::string(kBytes - 2, 'k') + ": 1").size(), 300u);
}

TEST(YamlTest, MutationsNeitherCrashNorPassUnchecked) {
  const std::string seeds[] = {
      "worker_id: w-1\nserver:\n  listen: 127.0.0.1:7401\n  log_level: info\nengine:\n  threads: "
      "2\n"
      "  kv_memory_bytes: 1GiB\ntransfer: {interface: lo, timeout_scale: 1.5}\n",
      "? [a, 'b', \"c\\x41\"]\n: {d: |\n  e\n, f: >-\n  g}\n"};
  constexpr char kBytes[] = "\n\0\t \"'[]{}:-?&*!|>%@`#,.\\~aZ09\x80\xff\xc3\xa9";
  std::mt19937 random(12345);
  for (int round = 0; round < 20000; ++round) {
    std::string text = seeds[round % 2];
    for (int change = random() % 6; change >= 0; --change) {
      const size_t at = random() % (text.size() + 1);
      const char byte = kBytes[random() % (sizeof(kBytes) - 1)];
      switch (random() % 4) {
        case 0:
          text.insert(at, 1, byte);
          break;
        case 1:
          if (at < text.size()) text[at] = byte;
          break;
        case 2:
          text.erase(at, random() % 8);
          break;
        default:
          text.insert(at, text.substr(random() % text.size(), random() % 40));
      }
      if (text.empty()) text = "a";
    }
    v1::WorkerConfig config;
    const absl::Status status = ParseYamlInto(text, "w.yaml", &config);
    ASSERT_LT(status.message().size(), 1000u);
    if (!status.ok()) continue;
    v1::WorkerConfig again;
    ASSERT_TRUE(ParseYamlInto(ToYaml(config), "again", &again).ok()) << text << "\n"
                                                                     << ToYaml(config);
    ASSERT_EQ(again.SerializeAsString(), config.SerializeAsString()) << text;
  }
}

}  // namespace
}  // namespace trivium::config
