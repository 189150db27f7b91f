#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <climits>
#include <limits>
#include <set>

#include "common/config/config.h"
#include "common/config/fields.h"
#include "common/config/schema.h"
#include "common/config/yaml_tree.h"
#include "common/net/address.h"
#include "common/net/text.h"

namespace trivium::config {
namespace {

constexpr int kWorkersMax = 1024;
constexpr int kThreadsMax = 256;
constexpr int kLayeredStepTokens = 8192;
constexpr int64_t kEncodeMemoryBytes = int64_t{256} << 20;
constexpr int kPublicPicturesMax = 256;
constexpr size_t kTokenBytesMin = 16, kTokenBytesMax = 4096;

int UsableCores() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (sched_getaffinity(0, sizeof(cores), &cores) != 0) {
    return std::clamp(static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)), 1, kThreadsMax);
  }
  return std::clamp(CPU_COUNT(&cores), 1, kThreadsMax);
}

// Without a cluster token nobody on another machine may reach `listen`, the field at `path`.
absl::Status CheckReach(std::string_view path, const std::string& listen, const char* allowed,
                        const v1::ServerConfig& server) {
  ASSIGN_OR_RETURN(const net::Address address, net::ParseAddress(listen));
  if (!server.cluster_token_file().empty() || address.IsLoopback()) return absl::OkStatus();
  return InvalidArgument(
      "{}: {} can be reached from other machines; set server.cluster_token_file "
      "(--cluster-token-file FILE), or listen on {}",
      path, listen, allowed);
}

absl::Status CheckHostPort(std::string_view path, const std::string& listen) {
  if (listen.substr(0, 5) != "unix:") return absl::OkStatus();
  return InvalidArgument("{}: must be host:port", path);
}

absl::Status CheckServer(const v1::ServerConfig& server) {
  RETURN_IF_ERROR(
      CheckReach("server.listen", server.listen(), "127.0.0.1, [::1] or unix:PATH", server));
  return CheckHostPort("server.metrics_listen", server.metrics_listen());
}

absl::Status CheckHttp(const v1::HttpConfig& http, const v1::ServerConfig& server) {
  if (http.body_bytes_max() > http.body_memory_bytes()) {
    return InvalidArgument("http.body_bytes_max: {} is above http.body_memory_bytes, {}",
                           http.body_bytes_max(), http.body_memory_bytes());
  }
  if (http.listen().empty()) return absl::OkStatus();
  RETURN_IF_ERROR(CheckHostPort("http.listen", http.listen()));
  return CheckReach("http.listen", http.listen(), "127.0.0.1 or [::1]", server);
}

absl::Status CheckModel(const v1::ModelFileConfig& model) {
  if (!model.path().empty()) return absl::OkStatus();
  return InvalidArgument("model.path: not set; name a GGUF file (--model FILE)");
}

absl::Status CheckPorts(const v1::TransferConfig& transfer) {
  constexpr int kPrivileged = 1024, kPortsEnd = 65536;
  const int port = transfer.port();
  if (port == 0) return absl::OkStatus();
  if (port >= kPrivileged && port + transfer.port_count() <= kPortsEnd) return absl::OkStatus();
  return InvalidArgument("transfer.port: {} with {} ports; allowed: 0, or ports from {} to {}",
                         port, transfer.port_count(), kPrivileged, kPortsEnd - 1);
}

absl::Status CheckTiers(const v1::KvTiersConfig& tiers) {
  const bool has_disk = !tiers.disk_path().empty();
  if (has_disk && tiers.disk_key_file().empty()) {
    return InvalidArgument("engine.kv_tiers.disk_key_file: not set; what is on disk is sealed");
  }
  if (has_disk == (tiers.disk_bytes() > 0)) return absl::OkStatus();
  return InvalidArgument("engine.kv_tiers: needs both disk_path and disk_bytes, or neither");
}

absl::Status CheckPictures(const v1::WorkerPicturesConfig& pictures, std::string_view role) {
  const bool is_local = pictures.encode() == "local";
  if (role != "prefill" && (is_local || !pictures.tower().empty())) {
    return InvalidArgument("pictures: encode and tower are of prefill workers");
  }
  if (is_local == pictures.tower().empty()) {
    return InvalidArgument("pictures: needs both tower and \"encode: local\", or neither");
  }
  if ((is_local || role == "encode") && pictures.memory_bytes() == 0) {
    return InvalidArgument("pictures.memory_bytes: is 0, but this worker encodes pictures");
  }
  return absl::OkStatus();
}

absl::Status CheckPictures(const v1::RouterPicturesConfig& pictures) {
  if (pictures.bytes_max() > pictures.total_bytes_max()) {
    return InvalidArgument("pictures.bytes_max: {} is above pictures.total_bytes_max, {}",
                           pictures.bytes_max(), pictures.total_bytes_max());
  }
  if (pictures.public_pictures_size() > kPublicPicturesMax) {
    return InvalidArgument("pictures.public_pictures: {}; allowed: 0 to {}",
                           pictures.public_pictures_size(), kPublicPicturesMax);
  }
  std::set<std::string> seen;
  for (int i = 0; i < pictures.public_pictures_size(); ++i) {
    const v1::PublicPictureConfig& one = pictures.public_pictures(i);
    if (one.id().empty() || one.file().empty()) {
      return InvalidArgument("pictures.public_pictures[{}]: needs id and file", i);
    }
    if (!seen.insert(one.id()).second) {
      return InvalidArgument("pictures.public_pictures[{}].id: {} is listed twice", i, one.id());
    }
  }
  return absl::OkStatus();
}

// The machine's name as far as a worker id can hold it: letters, digits, . _ -. What tells the pods
// of one set apart stands at the end of their names.
std::string HostName(size_t bytes_max) {
  char name[HOST_NAME_MAX + 1] = {};
  if (gethostname(name, HOST_NAME_MAX) != 0) return "host";
  std::string host = name;
  for (char& c : host) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (!plain && c != '.' && c != '_') c = '-';
  }
  if (host.size() > bytes_max) host.erase(0, host.size() - bytes_max);
  return host;
}

// Unique in the cluster, also where the port is not known yet.
std::string DefaultWorkerId(std::string_view role, const std::string& listen) {
  const absl::StatusOr<net::Address> address = net::ParseAddress(listen);
  const bool has_port = address.ok() && address->port != 0;
  const std::string place = has_port ? fmt::format("-{}-{}", role, address->port)
                                     : fmt::format("-{}-pid{}", role, getpid());
  return HostName(kNameBytesMax - place.size()) + place;
}

absl::Status CheckWorkers(const v1::RouterConfig& config) {
  if (config.workers_size() == 0) {
    return InvalidArgument(
        "workers: none; list each as address and role (--worker prefill=HOST:PORT)");
  }
  if (config.workers_size() > kWorkersMax) {
    return InvalidArgument("workers: {}; allowed: 1 to {}", config.workers_size(), kWorkersMax);
  }
  std::set<std::string> seen;
  for (int i = 0; i < config.workers_size(); ++i) {
    const v1::WorkerEndpoint& worker = config.workers(i);
    if (worker.address().empty()) return InvalidArgument("workers[{}].address: not set", i);
    if (worker.role().empty()) {
      return InvalidArgument("workers[{}].role: not set; allowed: prefill, decode, encode", i);
    }
    if (!seen.insert(worker.address()).second) {
      return InvalidArgument("workers[{}].address: {} is listed twice", i, worker.address());
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Complete(v1::WorkerConfig* config, std::string_view role) {
  TRIVIUM_CHECK(role == "prefill" || role == "decode" || role == "encode", "no such role: {}",
                role);
  if (config->server().listen().empty()) {
    config->mutable_server()->set_listen(role == "prefill"  ? "127.0.0.1:7401"
                                         : role == "decode" ? "127.0.0.1:7402"
                                                            : "127.0.0.1:7403");
  }
  if (role == "encode" && !config->pictures().has_memory_bytes()) {
    config->mutable_pictures()->set_memory_bytes(kEncodeMemoryBytes);
  }
  if (!config->engine().has_threads()) config->mutable_engine()->set_threads(UsableCores());
  if (!config->engine().has_step_tokens() && config->engine().prefill_policy() == "layered") {
    config->mutable_engine()->set_step_tokens(kLayeredStepTokens);
  }
  RETURN_IF_ERROR(CompleteFields(config, ""));
  if (config->worker_id().empty()) {
    config->set_worker_id(DefaultWorkerId(role, config->server().listen()));
  }
  RETURN_IF_ERROR(CheckServer(config->server()));
  RETURN_IF_ERROR(CheckPorts(config->transfer()));
  RETURN_IF_ERROR(CheckTiers(config->engine().kv_tiers()));
  RETURN_IF_ERROR(CheckPictures(config->pictures(), role));
  return CheckModel(config->model());
}

absl::Status Complete(v1::RouterConfig* config) {
  if (config->server().listen().empty()) config->mutable_server()->set_listen("127.0.0.1:7400");
  RETURN_IF_ERROR(AddShippedCategories(config->mutable_semantic_cache()));
  RETURN_IF_ERROR(CompleteFields(config, ""));
  RETURN_IF_ERROR(CheckServer(config->server()));
  RETURN_IF_ERROR(CheckHttp(config->http(), config->server()));
  RETURN_IF_ERROR(Complete(config->mutable_tenancy()));
  RETURN_IF_ERROR(CheckSemanticCache(config->semantic_cache()));
  RETURN_IF_ERROR(CheckModel(config->model()));
  RETURN_IF_ERROR(CheckPictures(config->pictures()));
  return CheckWorkers(*config);
}

absl::StatusOr<int64_t> ParseBytes(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string_view unit(end, text.data() + text.size() - end);
  int shift = -1;
  for (const auto& [name, bits] : {std::pair<std::string_view, int>{"", 0},
                                   {"KiB", 10},
                                   {"MiB", 20},
                                   {"GiB", 30},
                                   {"TiB", 40}}) {
    if (unit == name) shift = bits;
  }
  if (error == std::errc::invalid_argument || value < 0 || shift < 0) {
    return InvalidArgument(
        "\"{}\" is no size; allowed: a whole number, alone or with KiB, MiB, GiB, TiB",
        net::Escape(text, 40));
  }
  if (error != std::errc() || value > std::numeric_limits<int64_t>::max() >> shift) {
    return InvalidArgument("{} does not fit in 64 bits", net::Escape(text, 40));
  }
  return value << shift;
}

absl::StatusOr<std::string> ReadClusterToken(const std::string& path) {
  if (path.empty()) return std::string();
  ASSIGN_OR_RETURN(std::string token, ReadSmallFile(path));
  token.erase(token.find_last_not_of(" \t\r\n") + 1);
  const auto visible = [](char c) { return c > 0x20 && c < 0x7f; };
  if (token.size() < kTokenBytesMin || token.size() > kTokenBytesMax ||
      !std::all_of(token.begin(), token.end(), visible)) {
    return InvalidArgument(
        "server.cluster_token_file: {} must hold {} to {} visible ASCII characters, for example "
        "from "
        "`openssl rand -hex 32`",
        net::Escape(path, 300), kTokenBytesMin, kTokenBytesMax);
  }
  return token;
}

}  // namespace trivium::config
