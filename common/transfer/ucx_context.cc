#include "common/transfer/ucx_context.h"

#include <signal.h>
#include <ucs/config/global_opts.h>
#include <ucs/debug/debug.h>
#include <unistd.h>

#include <cstdlib>
#include <mutex>
#include <sstream>
#include <utility>
#include <vector>

#include "common/transfer/shm_directory.h"

namespace trivium::transfer {
namespace {

// UCX prints its own backtrace on a crash, and an error for every peer that goes; the process has
// its own way to end and its own log.
void KeepQuiet() {
  static std::once_flag once;
  std::call_once(once, [] {
    for (const int signal : {SIGILL, SIGSEGV, SIGBUS, SIGFPE}) ucs_debug_disable_signal(signal);
    if (std::getenv("UCX_LOG_LEVEL") == nullptr) ucs_global_opts_set_value("LOG_LEVEL", "fatal");
  });
}

absl::Status CheckTransports(const std::string& transports) {
  std::istringstream names(transports);
  std::string name;
  bool any = false;
  while (std::getline(names, name, ',')) {
    if (name != "posix" && name != "tcp" && name != "self") {
      return InvalidArgument("transfer: transport '{}' is not posix, tcp or self", name);
    }
    any = true;
  }
  if (!any) return InvalidArgument("transfer: no transport named");
  return absl::OkStatus();
}

// UCX looks for TCP devices there, and goes on without any where it finds none: then no peer could
// ever be reached.
absl::Status CheckDevice(const UcxLinkOptions& options) {
  if (options.transports.find("tcp") == std::string::npos) return absl::OkStatus();
  const std::string device = "/sys/class/net/" + options.interface;
  if (access(device.c_str(), R_OK) == 0) return absl::OkStatus();
  return Unavailable("transfer: {} can't be read, and UCX finds no TCP without it", device);
}

using Settings = std::vector<std::pair<const char*, std::string>>;

Settings SettingsFor(const UcxLinkOptions& options) {
  Settings settings = {
      {"TLS", options.transports},
      {"NET_DEVICES", options.interface},
      // Our heartbeats watch the peer; UCX's own probing does not survive a force-close of a
      // stopped peer over TCP.
      {"KEEPALIVE_INTERVAL", "inf"},
  };
  if (options.transports.find("posix") != std::string::npos) {
    // Without it, shared memory is left out as soon as endpoints handle errors.
    settings.emplace_back("MM_ERROR_HANDLING", "y");
    // So many and so large segments that a receiver without a core does not stall its sender.
    settings.emplace_back("MM_FIFO_SIZE", "256");
    settings.emplace_back("MM_SEG_SIZE", "32k");
    // Segments found by descriptor number are other segments once the number is used again: a peer
    // that comes late, with the address of a closed pipe, would write there. A name is never used
    // again.
    settings.emplace_back("USE_PROC_LINK", "n");
    settings.emplace_back("DIR", ShmDirectory());
  }
  if (options.transports.find("tcp") != std::string::npos) {
    // A put would write into the receiver's memory without asking it first.
    settings.emplace_back("PUT_ENABLE", "n");
    // Two messages fit into either: fewer wake-ups while the engine has the cores.
    settings.emplace_back("RX_SEG_SIZE", "512k");
    settings.emplace_back("SNDBUF", "2m");
    settings.emplace_back("RCVBUF", "2m");
    if (options.ports.first != 0) {
      settings.emplace_back(
          "PORT_RANGE",
          fmt::format("{}-{}", options.ports.first, options.ports.first + options.ports.count - 1));
    }
  }
  return settings;
}

absl::Status Configure(ucp_config_t* config, const UcxLinkOptions& options) {
  for (const auto& [name, value] : SettingsFor(options)) {
    const ucs_status_t status = ucp_config_modify(config, name, value.c_str());
    if (status != UCS_OK) {
      return UcxStatus(fmt::format("setting {}={}", name, value).c_str(), status);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status UcxStatus(const char* what, ucs_status_t status) {
  return Unavailable("UCX, {}: {}", what, ucs_status_string(status));
}

absl::StatusOr<std::unique_ptr<UcxContext>> UcxContext::Create(const UcxLinkOptions& options) {
  RETURN_IF_ERROR(CheckTransports(options.transports));
  RETURN_IF_ERROR(CheckDevice(options));
  KeepQuiet();
  std::unique_ptr<UcxContext> context(new UcxContext);
  RETURN_IF_ERROR(context->Init(options));
  return context;
}

absl::Status UcxContext::Init(const UcxLinkOptions& options) {
  ucp_config_t* config = nullptr;
  if (const ucs_status_t s = ucp_config_read(nullptr, nullptr, &config); s != UCS_OK) {
    return UcxStatus("reading its configuration", s);
  }
  absl::Status configured = Configure(config, options);
  ucp_params_t params = {};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  params.mt_workers_shared = 0;
  const ucs_status_t status =
      configured.ok() ? ucp_init(&params, config, &context_) : UCS_ERR_INVALID_PARAM;
  ucp_config_release(config);
  RETURN_IF_ERROR(configured);
  if (status != UCS_OK) {
    return UcxStatus(
        fmt::format("starting with {} on interface '{}'", options.transports, options.interface)
            .c_str(),
        status);
  }
  return absl::OkStatus();
}

UcxContext::~UcxContext() {
  if (context_ != nullptr) ucp_cleanup(context_);
}

}  // namespace trivium::transfer
