#include "common/config/flags.h"

#include <google/protobuf/message.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "common/config/config.h"
#include "common/config/fields.h"
#include "common/net/text.h"

namespace trivium::config {
namespace {

struct FlagSpec {
  const char* flag;
  const char* path;  // of the field it overrides
  const char* help;
};

constexpr FlagSpec kSharedFlags[] = {
    {"--listen", "server.listen", "HOST:PORT of gRPC"},
    {"--metrics-listen", "server.metrics_listen", "HOST:PORT of Prometheus /metrics"},
    {"--log-level", "server.log_level", "trace, debug, info, warning, error"},
    {"--cluster-token-file", "server.cluster_token_file", "secret shared by router and workers"},
    {"--drain-timeout-s", "server.drain_timeout_s", "how long SIGTERM lets requests finish"},
    {"--model", "model.path", "GGUF file"},
};
constexpr FlagSpec kWorkerFlags[] = {
    {"--worker-id", "worker_id", "name of this worker in the cluster"},
    {"--threads", "engine.threads", "threads that compute"},
    {"--isa", "engine.isa", "auto, reference, avx2, avx512, amx"},
    {"--numerics", "engine.numerics", "fast, batch_invariant"},
    {"--kv-memory", "engine.kv_memory_bytes", "memory of the KV cache, for example 512MiB"},
    {"--kv-type", "engine.kv_type", "f16, bf16, int8: how keys and values are kept"},
    {"--kv-tier-memory", "engine.kv_tiers.memory_bytes", "memory of compressed KV; 0: none"},
    {"--kv-disk", "engine.kv_tiers.disk_path", "file of KV blocks on disk"},
    {"--kv-disk-size", "engine.kv_tiers.disk_bytes", "size of that file, for example 64GiB"},
    {"--kv-disk-key-file", "engine.kv_tiers.disk_key_file", "secret that seals that file"},
    {"--step-tokens", "engine.step_tokens", "rows of one step at most"},
    {"--step-target-ms", "engine.step_target_ms", "how long a step with prompts may take; 0: any"},
    {"--prefill-policy", "engine.prefill_policy", "chunked, layered"},
    {"--requests-max", "engine.requests_max", "requests at a time, waiting ones included"},
    {"--admission", "engine.admission", "of decode: expected, full"},
    {"--interface", "transfer.interface", "network device of the KV transfer"},
    {"--transports", "transfer.transports", "UCX transports"},
    {"--transfer-port", "transfer.port", "first TCP port of the KV transfer; 0: any"},
    {"--pictures-memory", "pictures.memory_bytes", "memory of multimedia tokens, like 64MiB"},
    {"--timeout-scale", "transfer.timeout_scale", "stretches every transfer timeout"},
};
constexpr FlagSpec kRouterFlags[] = {
    {"--queue-requests", "queue_requests", "requests that may wait for room"},
    {"--queue-timeout-s", "queue_timeout_s", "how long a request may wait for room"},
    {"--attempts-max", "attempts_max", "tries of a request, the first included"},
    {"--worker-suspect-s", "worker_suspect_s", "silence after which a worker gets no new request"},
    {"--default-max-tokens", "default_max_tokens", "max_tokens of requests that name none"},
    {"--stage-missing-timeout-s", "stage_missing_timeout_s", "wait for a usable worker of a stage"},
    {"--placement", "placement", "predicted_cost, least_loaded, round_robin"},
    {"--master-key-file", "tenancy.master_key_file", "secret that KV is kept apart by"},
    {"--http-listen", "http.listen", "HOST:PORT of the OpenAI-compatible API"},
    {"--tower", "pictures.tower", "mmproj GGUF file of the vision tower; none: no pictures"},
};

// One program's flags as CLI11 fills them.
struct CommandLine {
  explicit CommandLine(const std::string& name) : app("Trivium " + name, name) {}

  CLI::App app;
  std::string config_path;
  bool check = false, print = false, version = false;
  struct Override {
    const FlagSpec* spec;
    CLI::Option* option;
    std::string text;
  };
  std::vector<std::unique_ptr<Override>> overrides;
  std::vector<std::string> workers;

  void AddShared() {
    app.add_option("--config", config_path, "YAML file; flags override it")->type_name("FILE");
    app.add_flag("--check-config", check, "check configuration and files, then end");
    app.add_flag("--print-config", print, "print the complete configuration, then end");
    app.add_flag("--version", version, "print the version, then end");
    Add(kSharedFlags);
  }
  template <size_t n>
  void Add(const FlagSpec (&specs)[n]) {
    for (const FlagSpec& spec : specs) {
      auto& added = *overrides.emplace_back(std::make_unique<Override>());
      added.spec = &spec;
      added.option = app.add_option(spec.flag, added.text, spec.help)->type_name("");
    }
  }
};

int Complain(const CommandLine& line, const std::string& what, int exit_code) {
  std::fprintf(stderr, "%s: %s\n", line.app.get_name().c_str(), what.c_str());
  return exit_code;
}

// nullopt: parsed, go on.
std::optional<int> Parse(CommandLine* line, int argc, const char* const* argv) {
  try {
    line->app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    std::fputs(line->app.help().c_str(), stdout);
    return 0;
  } catch (const CLI::ParseError& error) {
    return Complain(*line, net::Escape(error.what(), 300) + "; see --help", 2);
  }
  if (!line->version) return std::nullopt;
  std::printf("%s %.*s\n", line->app.get_name().c_str(), static_cast<int>(Version().size()),
              Version().data());
  return 0;
}

absl::Status Override(const CommandLine& line, google::protobuf::Message* config) {
  for (const auto& one : line.overrides) {
    if (one->option->count() == 0) continue;
    const absl::Status status = SetByPath(config, one->spec->path, one->text);
    if (!status.ok()) return InvalidArgument("{}: {}", one->spec->flag, Message(status));
  }
  return absl::OkStatus();
}

// "prefill=127.0.0.1:7401". Given once, the workers of the file no longer count.
absl::Status OverrideWorkers(const CommandLine& line, v1::RouterConfig* config) {
  if (!line.workers.empty()) config->clear_workers();
  for (const std::string& text : line.workers) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0) {
      return InvalidArgument(
          "--worker: \"{}\" is not ROLE=HOST:PORT with the role prefill, decode or encode",
          net::Escape(text, 80));
    }
    v1::WorkerEndpoint* worker = config->add_workers();
    absl::Status status = SetByPath(worker, "role", text.substr(0, equals));
    if (status.ok()) status = SetByPath(worker, "address", text.substr(equals + 1));
    if (!status.ok()) return InvalidArgument("--worker: {}", Message(status));
  }
  return absl::OkStatus();
}

absl::Status CheckReadable(std::string_view field, const std::string& path) {
  if (access(path.c_str(), R_OK) == 0) return absl::OkStatus();
  return InvalidArgument("{}: {}: {}", field, net::Escape(path, 300), std::strerror(errno));
}

template <typename Config>
absl::Status CheckSharedFiles(const Config& config) {
  RETURN_IF_ERROR(ReadClusterToken(config.server().cluster_token_file()).status());
  RETURN_IF_ERROR(CheckReadable("model.path", config.model().path()));
  const std::string& tower = config.pictures().tower();
  return tower.empty() ? absl::OkStatus() : CheckReadable("pictures.tower", tower);
}

absl::Status CheckFiles(const v1::WorkerConfig& config) {
  RETURN_IF_ERROR(CheckSharedFiles(config));
  const v1::KvTiersConfig& tiers = config.engine().kv_tiers();
  return tiers.disk_path().empty() ? absl::OkStatus() : ReadDiskKey(tiers).status();
}
absl::Status CheckFiles(const v1::RouterConfig& config) {
  RETURN_IF_ERROR(CheckSharedFiles(config));
  for (const v1::PublicPictureConfig& picture : config.pictures().public_pictures()) {
    RETURN_IF_ERROR(CheckReadable("pictures.public_pictures", picture.file()));
  }
  return ::trivium::config::CheckFiles(config.tenancy());
}

// File, then flags, then defaults; `override_more` and `complete` are the role's own parts.
template <typename Config>
std::optional<int> Assemble(const CommandLine& line, Config* config,
                            const std::function<absl::Status()>& override_more,
                            const std::function<absl::Status()>& complete) {
  absl::Status status = LoadYaml(line.config_path, config);
  if (status.ok()) status = Override(line, config);
  if (status.ok()) status = override_more();
  if (status.ok()) {
    status = complete();
    if (!status.ok() && !line.config_path.empty()) {
      status = InvalidArgument("{}: {}", net::Escape(line.config_path, 300), Message(status));
    }
  }
  if (status.ok() && line.check) status = CheckFiles(*config);
  if (!status.ok()) return Complain(line, Message(status), 1);
  if (line.print) std::fputs(ToYaml(*config).c_str(), stdout);
  if (line.check) std::fprintf(stderr, "configuration is valid\n");
  return line.print || line.check ? std::optional<int>(0) : std::nullopt;
}

}  // namespace

std::string_view Version() { return TRIVIUM_VERSION; }

std::optional<int> ParseWorkerCommandLine(int argc, const char* const* argv, std::string_view role,
                                          v1::WorkerConfig* config) {
  CommandLine line("trivium-" + std::string(role));
  line.AddShared();
  line.Add(kWorkerFlags);
  if (const std::optional<int> code = Parse(&line, argc, argv)) return code;
  return Assemble(
      line, config, [] { return absl::OkStatus(); }, [&] { return Complete(config, role); });
}

std::optional<int> ParseRouterCommandLine(int argc, const char* const* argv,
                                          v1::RouterConfig* config) {
  CommandLine line("trivium-router");
  line.AddShared();
  line.Add(kRouterFlags);
  line.app.add_option("--worker", line.workers, "ROLE=HOST:PORT, once for each worker")
      ->type_name("")
      ->expected(1)
      ->take_all();
  if (const std::optional<int> code = Parse(&line, argc, argv)) return code;
  return Assemble(
      line, config, [&] { return OverrideWorkers(line, config); },
      [&] { return Complete(config); });
}

}  // namespace trivium::config
