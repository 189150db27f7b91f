#include "common/config/config.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <fstream>
#include <random>
#include <thread>

#include "common/config/schema.h"

namespace trivium::config {
namespace {

using google::protobuf::Descriptor;

v1::WorkerConfig Worker() {
  v1::WorkerConfig config;
  config.mutable_model()->set_path("m.gguf");
  return config;
}
v1::RouterConfig Router() {
  v1::RouterConfig config;
  config.mutable_model()->set_path("m.gguf");
  for (const char* role : {"prefill", "decode"}) {
    v1::WorkerEndpoint* worker = config.add_workers();
    worker->set_role(role);
    worker->set_address(std::string(role) + ":1");
  }
  return config;
}
// As a worker id holds it.
std::string HostName() {
  char name[256] = {};
  EXPECT_EQ(gethostname(name, sizeof(name) - 1), 0);
  std::string host = name;
  for (char& c : host) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '_') c = '-';
  }
  EXPECT_LE(host.size(), 40u) << "an id holds no more of it";
  return host;
}
std::string TempFile(const std::string& name, const std::string& content) {
  const std::string path = testing::TempDir() + "config_test_" + name;
  std::ofstream(path, std::ios::binary) << content;
  return path;
}

TEST(CompleteTest, WorkerDefaults) {
  v1::WorkerConfig config = Worker();
  ASSERT_TRUE(Complete(&config, "decode").ok());
  cpu_set_t cores;
  ASSERT_EQ(sched_getaffinity(0, sizeof(cores), &cores), 0);
  EXPECT_EQ(config.engine().threads(), std::min(256, CPU_COUNT(&cores)));
  config.mutable_engine()->clear_threads();
  EXPECT_EQ(
      ToYaml(config),
      "worker_id: " + HostName() +
          "-decode-7402\nserver:\n  listen: \"127.0.0.1:7402\"\n  log_level: info\n"
          "  drain_timeout_s: 30\nmodel:\n  path: m.gguf\nengine:\n  isa: auto\n  numerics: fast\n"
          "  kv_memory_bytes: 1073741824\n  step_tokens: 512\n  requests_max: 64\n  admission: "
          "expected\n  kv_tiers:\n    memory_bytes: 0\n    disk_bytes: 0\n"
          "  prefill_policy: chunked\n  step_target_ms: 0\n  kv_type: f16\ntransfer:\n"
          "  interface: lo\n  timeout_scale: 1\n  transports: posix,tcp,self\n"
          "  port: 0\n  port_count: 256\npictures:\n  memory_bytes: 0\n  encode: workers\n");
}

TEST(CompleteTest, PicturesNeedATowerWhereTheyAreEncoded) {
  const auto error_of = [](const std::string& role, const std::string& encode,
                           const std::string& tower, int64_t bytes) {
    v1::WorkerConfig config = Worker();
    config.mutable_pictures()->set_encode(encode);
    config.mutable_pictures()->set_tower(tower);
    config.mutable_pictures()->set_memory_bytes(bytes);
    return Message(Complete(&config, role));
  };
  EXPECT_EQ(error_of("prefill", "local", "tower", 1 << 20), "");
  EXPECT_EQ(error_of("prefill", "workers", "", 1 << 20), "");
  const std::string half = "pictures: needs both tower and \"encode: local\", or neither";
  EXPECT_EQ(error_of("prefill", "local", "", 1 << 20), half);
  EXPECT_EQ(error_of("prefill", "workers", "tower", 1 << 20), half);
  const std::string none = "pictures.memory_bytes: is 0, but this worker encodes pictures";
  EXPECT_EQ(error_of("prefill", "local", "tower", 0), none);
  EXPECT_EQ(error_of("encode", "workers", "", 0), none);
  EXPECT_EQ(error_of("decode", "local", "tower", 1 << 20),
            "pictures: encode and tower are of prefill workers");
  v1::WorkerConfig encode = Worker();
  ASSERT_TRUE(Complete(&encode, "encode").ok());
  EXPECT_EQ(encode.server().listen(), "127.0.0.1:7403");
  EXPECT_EQ(encode.pictures().memory_bytes(), int64_t{256} << 20);
}

TEST(CompleteTest, LayeredPrefillTakesLongSteps) {
  v1::WorkerConfig config = Worker();
  config.mutable_engine()->set_prefill_policy("layered");
  ASSERT_TRUE(Complete(&config, "decode").ok());
  EXPECT_EQ(config.engine().step_tokens(), 8192);
  config.mutable_engine()->set_step_tokens(100);
  ASSERT_TRUE(Complete(&config, "decode").ok());
  EXPECT_EQ(config.engine().step_tokens(), 100);
}

TEST(CompleteTest, ADiskTierHasAFileASizeAndAKey) {
  const auto error_of = [](const std::string& path, int64_t bytes, const std::string& key) {
    v1::WorkerConfig config = Worker();
    v1::KvTiersConfig* tiers = config.mutable_engine()->mutable_kv_tiers();
    tiers->set_disk_path(path);
    tiers->set_disk_bytes(bytes);
    tiers->set_disk_key_file(key);
    return Message(Complete(&config, "decode"));
  };
  EXPECT_EQ(error_of("", 0, ""), "");
  EXPECT_EQ(error_of("blocks", 1 << 30, "key"), "");
  const std::string half = "engine.kv_tiers: needs both disk_path and disk_bytes, or neither";
  EXPECT_EQ(error_of("blocks", 0, "key"), half);
  EXPECT_EQ(error_of("", 1 << 30, "key"), half);
  EXPECT_EQ(error_of("blocks", 1 << 30, ""),
            "engine.kv_tiers.disk_key_file: not set; what is on disk is sealed");
}

TEST(CompleteTest, RouterDefaults) {
  v1::RouterConfig config = Router();
  ASSERT_TRUE(Complete(&config).ok());
  EXPECT_EQ(
      ToYaml(config),
      "server:\n  listen: \"127.0.0.1:7400\"\n  log_level: info\n  drain_timeout_s: 30\n"
      "model:\n  path: m.gguf\nworkers:\n  - address: \"prefill:1\"\n    role: prefill\n"
      "  - address: \"decode:1\"\n    role: decode\nqueue_requests: 1024\nqueue_timeout_s: 60\n"
      "attempts_max: 8\nworker_suspect_s: 1.5\ndefault_max_tokens: 256\n"
      "stage_missing_timeout_s: 3\nhttp:\n  connections_max: 1024\n  header_bytes_max: 16384\n"
      "  body_bytes_max: 8388608\n  body_memory_bytes: 268435456\n  header_timeout_s: 10\n"
      "  body_timeout_s: 60\n  idle_timeout_s: 75\n  write_timeout_s: 30\n"
      "tenancy:\n  key_epoch: 0\n  tenants:\n    - id: default\n      kv_sharing: private\n"
      "      kv_quota: 1\n      kv_floor: 0\n      weight: 1\nplacement: predicted_cost\n"
      "pictures:\n  count_max: 16\n  bytes_max: 8388608\n  total_bytes_max: 12582912\n"
      "  side_max: 16384\n  pixels_max: 37748736\n  memory_bytes: 536870912\n"
      "semantic_cache:\n"
      "  encoder_threads: 1\n  entries_max: 100000\n  bytes_max: 268435456\n"
      "  temperature_max: 0.3\n  store: sqlite\n  load:\n    ttft_low_s: 1\n    ttft_high_s: 5\n"
      "    queue_low: 4\n    queue_high: 32\n");
}

TEST(CompleteTest, CategoriesOfTheSemanticCache) {
  const auto complete = [](const std::string& categories, v1::RouterConfig* config) {
    *config = Router();
    const std::string text = "semantic_cache:\n  enabled: true\n  encoder: e\n" + categories;
    const absl::Status status = ParseYamlInto(text, "r.yaml", config);
    return status.ok() ? Message(Complete(config)) : Message(status);
  };
  v1::RouterConfig config;
  ASSERT_EQ(complete("", &config), "");
  ASSERT_EQ(config.semantic_cache().categories_size(), 6);
  EXPECT_EQ(config.semantic_cache().categories(2).name(), "chat");
  EXPECT_EQ(config.semantic_cache().categories(2).threshold(), 0.75);
  v1::RouterConfig again = config;
  ASSERT_EQ(Message(Complete(&again)), "");
  EXPECT_EQ(ToYaml(again), ToYaml(config));
  ASSERT_EQ(complete("  categories:\n    - {name: recipes, examples: [how to bake bread]}\n"
                     "    - {name: chat, threshold: 0.8, disabled: true}\n",
                     &config),
            "");
  ASSERT_EQ(config.semantic_cache().categories_size(), 7);
  EXPECT_EQ(config.semantic_cache().categories(2).threshold(), 0.8);
  EXPECT_TRUE(config.semantic_cache().categories(2).disabled());
  EXPECT_EQ(config.semantic_cache().categories(6).name(), "recipes");
  EXPECT_EQ(config.semantic_cache().categories(6).ttl_s(), 3600);
  EXPECT_EQ(config.semantic_cache().categories(6).guards(), "strict");
  const auto error = [&](const std::string& text) { return complete(text, &config); };
  EXPECT_EQ(
      error("  categories: [{name: advice, relax: 0.05}]\n"),
      "semantic_cache.categories (advice): relax and stretch must be 0: load never loosens it");
  EXPECT_EQ(error("  categories: [{name: a}, {name: a}]\n"),
            "semantic_cache.categories[1].name: a is listed twice");
  EXPECT_EQ(error("  categories: [{name: a}, {name: b}]\n"),
            "semantic_cache.categories: quota of all is 1.05; allowed: at most 1");
  EXPECT_EQ(error("  store: redis\n"),
            "semantic_cache.redis_address: needed with store: redis, and only there");
  EXPECT_EQ(error("  load: {queue_low: 40}\n"),
            "semantic_cache.load: each low mark must be below its high one");
}

TEST(CompleteTest, ZeroIsAValueWhereTheRangeHasIt) {
  v1::RouterConfig config = Router();
  config.set_queue_requests(0);
  ASSERT_TRUE(Complete(&config).ok());
  EXPECT_EQ(config.queue_requests(), 0);
}

// Every number of the schema has a rule, and the rule's default lies inside its range.
void CheckRules(const Descriptor& type) {
  for (int i = 0; i < type.field_count(); ++i) {
    const auto& field = *type.field(i);
    if (field.message_type() != nullptr) {
      CheckRules(*field.message_type());
      continue;
    }
    if (field.cpp_type() == field.CPPTYPE_STRING || field.cpp_type() == field.CPPTYPE_BOOL)
      continue;
    const FieldRule* rule = FindRule(field);
    ASSERT_NE(rule, nullptr) << field.full_name();
    EXPECT_TRUE(field.has_presence()) << field.full_name();
    EXPECT_LT(rule->min, rule->max);
    if (field.name() != "threads") {
      EXPECT_TRUE(CheckNumber(*rule, rule->value).ok()) << field.name();
    }
    EXPECT_FALSE(CheckNumber(*rule, rule->min - 1).ok());
    EXPECT_FALSE(CheckNumber(*rule, rule->max * 1.01 + 1).ok());
    EXPECT_FALSE(CheckNumber(*rule, std::nan("")).ok());
  }
}
TEST(CompleteTest, EveryNumberHasARange) {
  CheckRules(*v1::WorkerConfig::descriptor());
  CheckRules(*v1::RouterConfig::descriptor());
}

TEST(CompleteTest, LoopbackUnlessTheClusterHasAToken) {
  for (const char* listen : {"0.0.0.0:1", "[::]:1", "10.1.2.3:1", "worker:1"}) {
    v1::WorkerConfig config = Worker();
    config.mutable_server()->set_listen(listen);
    EXPECT_EQ(Message(Complete(&config, "prefill")),
              fmt::format("server.listen: {} can be reached from other machines; set "
                          "server.cluster_token_file (--cluster-token-file FILE), or listen on "
                          "127.0.0.1, [::1] or unix:PATH",
                          listen));
    config.mutable_server()->set_cluster_token_file("token");
    EXPECT_TRUE(Complete(&config, "prefill").ok());
    v1::RouterConfig router = Router();
    router.mutable_server()->set_listen(listen);
    EXPECT_FALSE(Complete(&router).ok());
  }
  for (const char* listen : {"127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/tmp/s"}) {
    v1::WorkerConfig config = Worker();
    config.mutable_server()->set_listen(listen);
    EXPECT_TRUE(Complete(&config, "prefill").ok()) << listen;
  }
}

TEST(CompleteTest, TheHttpDoorIsBoundLikeTheOther) {
  v1::RouterConfig config = Router();
  config.mutable_http()->set_listen("0.0.0.0:8080");
  EXPECT_EQ(
      Message(Complete(&config)),
      "http.listen: 0.0.0.0:8080 can be reached from other machines; set "
      "server.cluster_token_file (--cluster-token-file FILE), or listen on 127.0.0.1 or [::1]");
  config.mutable_server()->set_cluster_token_file("token");
  EXPECT_TRUE(Complete(&config).ok());
  config.mutable_http()->set_listen("unix:/tmp/s");
  EXPECT_EQ(Message(Complete(&config)), "http.listen: must be host:port");
  config.mutable_http()->set_listen("localhost:1");
  config.mutable_http()->set_body_bytes_max(2048);
  config.mutable_http()->set_body_memory_bytes(2047);
  EXPECT_EQ(Message(Complete(&config)),
            "http.body_bytes_max: 2048 is above http.body_memory_bytes, 2047");
  config.mutable_http()->set_header_bytes_max(1023);
  EXPECT_EQ(Message(Complete(&config)),
            "http.header_bytes_max: 1023 is out of range; allowed: 1 KiB to 1 MiB, as a number or "
            "like \"512MiB\"");
}

TEST(CompleteTest, WorkerIdNamesHostRoleAndPort) {
  v1::WorkerConfig config = Worker();
  config.mutable_server()->set_listen("127.0.0.1:9");
  ASSERT_TRUE(Complete(&config, "prefill").ok());
  EXPECT_EQ(config.worker_id(), HostName() + "-prefill-9");
  config = Worker();
  config.mutable_server()->set_listen("127.0.0.1:0");
  ASSERT_TRUE(Complete(&config, "prefill").ok());
  EXPECT_EQ(config.worker_id(), HostName() + fmt::format("-prefill-pid{}", getpid()));
  const FieldRule* rule = FindRule(*v1::WorkerConfig::descriptor()->FindFieldByName("worker_id"));
  EXPECT_TRUE(CheckText(*rule, config.worker_id()).ok());
}

TEST(CompleteTest, TransferPortsLieInOneRange) {
  const auto complete = [](int port, int count) {
    v1::WorkerConfig config = Worker();
    config.mutable_transfer()->set_port(port);
    config.mutable_transfer()->set_port_count(count);
    return Message(Complete(&config, "prefill"));
  };
  EXPECT_EQ(complete(0, 16384), "");
  EXPECT_EQ(complete(1024, 16), "");
  EXPECT_EQ(complete(65520, 16), "");
  EXPECT_EQ(complete(65521, 16),
            "transfer.port: 65521 with 16 ports; allowed: 0, or ports from 1024 to 65535");
  EXPECT_EQ(complete(1023, 16),
            "transfer.port: 1023 with 16 ports; allowed: 0, or ports from 1024 to 65535");
}

TEST(CompleteTest, RefusesWhatCannotRun) {
  v1::WorkerConfig worker;
  EXPECT_EQ(Message(Complete(&worker, "decode")),
            "model.path: not set; name a GGUF file (--model FILE)");
  worker = Worker();
  worker.mutable_engine()->set_step_tokens(15);
  EXPECT_EQ(Message(Complete(&worker, "decode")),
            "engine.step_tokens: 15 is out of range; allowed: 16 to 65536");
  v1::RouterConfig router = Router();
  router.mutable_workers(1)->set_address("prefill:1");
  EXPECT_EQ(Message(Complete(&router)), "workers[1].address: prefill:1 is listed twice");
  router = Router();
  router.mutable_workers(1)->clear_role();
  EXPECT_EQ(Message(Complete(&router)),
            "workers[1].role: not set; allowed: prefill, decode, encode");
  router.mutable_workers(1)->set_role("cook");
  EXPECT_EQ(Message(Complete(&router)),
            "workers[1].role: \"cook\" is not known; allowed: prefill, decode, encode");
  router.clear_workers();
  EXPECT_EQ(Message(Complete(&router)),
            "workers: none; list each as address and role (--worker prefill=HOST:PORT)");
}

TEST(ToYamlTest, RoundTripOfAwkwardText) {
  std::mt19937 random(99);
  const std::string pieces[] = {"a",
                                " ",
                                ":",
                                "#",
                                "'",
                                "\"",
                                "\\",
                                "\n",
                                "\t",
                                "-",
                                "[",
                                "{",
                                "&",
                                "*",
                                "null",
                                "~",
                                "true",
                                "\xc3\xa9",
                                "%",
                                "@",
                                "\r",
                                "?",
                                "|",
                                ">",
                                "!",
                                "0",
                                "1e3",
                                "\x1b",
                                "\x7f",
                                ",",
                                ".",
                                "\xe2\x80\xa8",
                                "\xef\xbb\xbf",
                                "\xc2\x85"};
  for (int round = 0; round < 3000; ++round) {
    v1::WorkerConfig config;
    std::string text;
    for (int i = random() % 6; i >= 0; --i) text += pieces[random() % std::size(pieces)];
    config.mutable_model()->set_path(text);
    config.mutable_engine()->set_threads(1 + random() % 256);
    config.mutable_transfer()->set_timeout_scale(0.05 + (random() % 100000) / 1001.0);
    if (round % 3 == 0) config.mutable_server();
    v1::WorkerConfig again;
    const absl::Status status = ParseYamlInto(ToYaml(config), "x", &again);
    ASSERT_TRUE(status.ok()) << status.message() << "\n" << ToYaml(config);
    ASSERT_EQ(again.SerializeAsString(), config.SerializeAsString()) << ToYaml(config);
  }
}

TEST(ParseBytesTest, Table) {
  EXPECT_EQ(*ParseBytes("0"), 0);
  EXPECT_EQ(*ParseBytes("1000000"), 1000000);
  EXPECT_EQ(*ParseBytes("512MiB"), 536870912);
  EXPECT_EQ(*ParseBytes("3KiB"), 3072);
  EXPECT_EQ(*ParseBytes("2GiB"), int64_t{2} << 30);
  EXPECT_EQ(*ParseBytes("8388607TiB"), int64_t{8388607} << 40);
  for (const char* bad : {"", "MiB", "-1", "+1", " 1", "1 ", "1 MiB", "1.5GiB", "1mib", "1MB", "1M",
                          "8388608TiB", "9223372036854775808", "0x10", "1e3"}) {
    EXPECT_EQ(ParseBytes(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(ClusterTokenTest, Files) {
  EXPECT_EQ(*ReadClusterToken(""), "");
  EXPECT_EQ(*ReadClusterToken(TempFile("good", "0123456789abcdef\n")), "0123456789abcdef");
  EXPECT_TRUE(ReadClusterToken(TempFile("long", std::string(4096, 'x') + " \r\n")).ok());
  for (const std::string& bad :
       {std::string("short\n"), std::string(4097, 'x'), std::string(16, ' '),
        std::string("two words of text here"), std::string(20, '\0')}) {
    const auto token = ReadClusterToken(TempFile("bad", bad));
    EXPECT_EQ(token.status().code(), absl::StatusCode::kInvalidArgument);
    if (bad.find("words") != std::string::npos) {
      EXPECT_EQ(Message(token.status()).find("words"), std::string::npos) << "the token is secret";
    }
  }
  EXPECT_EQ(Message(ReadClusterToken("/nowhere/token").status()),
            "/nowhere/token: cannot be read: No such file or directory");
}

TEST(LoadYamlTest, Files) {
  v1::WorkerConfig config;
  EXPECT_TRUE(LoadYaml("", &config).ok());
  EXPECT_EQ(Message(LoadYaml("/nowhere.yaml", &config)),
            "/nowhere.yaml: cannot be read: No such file or directory");
  EXPECT_EQ(Message(LoadYaml("/", &config)), "/: cannot be read: Is a directory");
  EXPECT_EQ(Message(LoadYaml("/dev/zero", &config)), "/dev/zero: larger than 1 MiB");
  const std::string path = TempFile("file.yaml", "engine:\n  threads: 300\n");
  EXPECT_EQ(Message(LoadYaml(path, &config)),
            path + ":2: engine.threads: 300 is out of range; allowed: 1 to 256");
}

}  // namespace
}  // namespace trivium::config
