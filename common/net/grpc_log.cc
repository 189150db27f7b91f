#include "common/net/grpc_log.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>

#include <cstdlib>
#include <mutex>

#include "common/telemetry/log.h"

namespace trivium::net {

void RedirectGrpcLog() {
  static std::once_flag once;
  std::call_once(once, [] {
    google::protobuf::SetLogHandler(
        [](google::protobuf::LogLevel, const char*, int, const std::string& message) {
          telemetry::Log(telemetry::Level::kDebug, "protobuf", {{"message", message}});
        });
    if (std::getenv("GRPC_VERBOSITY") != nullptr) return;
    gpr_set_log_function([](gpr_log_func_args* args) {
      telemetry::Log(telemetry::Level::kDebug, "grpc", {{"message", args->message}});
    });
  });
}

}  // namespace trivium::net
