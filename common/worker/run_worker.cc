#include "common/worker/run_worker.h"

#include <cstdio>

#include "common/config/flags.h"
#include "common/net/server.h"
#include "common/telemetry/log.h"
#include "common/worker/prefix_service.h"
#include "common/worker/watch_service.h"

namespace trivium::worker {
namespace {

absl::Status Serve(const v1::WorkerConfig& config, WorkerRuntime& runtime, Stage& stage) {
  // Not before there is a stage: scrapes read it, and one that could not be made is gone again.
  if (!config.server().metrics_listen().empty()) {
    RETURN_IF_ERROR(runtime.metrics().Serve(config.server().metrics_listen()));
  }
  const auto report = [&runtime, &stage] {
    v1::WorkerState state = runtime.State();
    stage.Report(&state);
    return state;
  };
  WatchService watch(report, runtime.pool().events(), runtime.cluster_token());
  PrefixService prefixes(runtime);
  std::vector<grpc::Service*> services = stage.services();
  services.insert(services.end(), {&watch, &prefixes});
  ASSIGN_OR_RETURN(std::unique_ptr<net::Server> server,
                   net::Server::Start({.listen = config.server().listen(),
                                       .services = std::move(services),
                                       .loopback_only = runtime.cluster_token().empty(),
                                       .drain_timeout_s = config.server().drain_timeout_s()}));
  server->SetServing(true);
  const v1::WorkerState state = runtime.State();
  telemetry::Log(telemetry::Level::kInfo, "ready",
                 {{"worker_id", runtime.worker_id()},
                  {"port", server->port()},
                  {"model", runtime.model().config.name},
                  {"fingerprint", runtime.model().fingerprint.substr(0, 16)},
                  {"numerics_class", runtime.numerics_class()},
                  {"threads", config.engine().threads()},
                  {"kv_blocks", state.blocks_total()},
                  {"requests_max", state.requests_max()},
                  {"epoch", state.epoch()}});
  server->WaitForShutdown([&stage] { stage.Drain(); });
  server.reset();
  return absl::OkStatus();
}

absl::Status Run(const v1::WorkerConfig& config, std::string_view role,
                 const StageFactory& make_stage) {
  ASSIGN_OR_RETURN(const std::unique_ptr<WorkerRuntime> runtime,
                   WorkerRuntime::Create(config, role, transfer::MakeUcxTransport));
  ASSIGN_OR_RETURN(const std::unique_ptr<Stage> stage, make_stage(*runtime));
  const absl::Status status = Serve(config, *runtime, *stage);
  stage->Stop();
  runtime->metrics().StopServing();  // scrapes read what the stage has
  return status;
}

}  // namespace

int RunWorker(int argc, const char* const* argv, std::string_view role,
              const StageFactory& make_stage) {
  net::BlockShutdownSignals();
  v1::WorkerConfig config;
  if (const auto code = config::ParseWorkerCommandLine(argc, argv, role, &config)) return *code;
  telemetry::InitLog(role, config.server().log_level());
  const absl::Status status = Run(config, role, make_stage);
  if (!status.ok()) {
    std::fprintf(stderr, "trivium-%.*s: %s\n", static_cast<int>(role.size()), role.data(),
                 Message(status).c_str());
    return 1;
  }
  telemetry::Log(telemetry::Level::kInfo, "stopped");
  return 0;
}

}  // namespace trivium::worker
