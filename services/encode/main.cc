// trivium-encode: the encode worker. It has a vision tower and no language model.
#include <cstdio>
#include <utility>

#include "common/config/config.h"
#include "common/config/flags.h"
#include "common/encode/encode_stage.h"
#include "common/net/server.h"
#include "common/telemetry/log.h"
#include "common/telemetry/process_metrics.h"
#include "common/worker/setup.h"
#include "common/worker/watch_service.h"

namespace trivium::encode {
namespace {

constexpr char kRole[] = "encode";

class EncodeWorker {
 public:
  static absl::StatusOr<std::unique_ptr<EncodeWorker>> Create(const v1::WorkerConfig& config) {
    std::unique_ptr<EncodeWorker> worker(new EncodeWorker());
    worker->config_ = config;
    worker->epoch_ = worker::DrawEpoch();
    ASSIGN_OR_RETURN(worker->cluster_token_,
                     config::ReadClusterToken(config.server().cluster_token_file()));
    ASSIGN_OR_RETURN(std::unique_ptr<kernels::Ops> ops, worker::CreateOps(config.engine()));
    worker->numerics_class_ = worker::NumericsClassOf(config.engine(), *ops);
    telemetry::AddProcessMetrics(&worker->metrics_, kRole, config::Version());
    ASSIGN_OR_RETURN(worker->stage_,
                     EncodeStage::Create({.tower_path = config.model().path(),
                                          .memory_bytes = config.pictures().memory_bytes(),
                                          .requests_max = config.engine().requests_max(),
                                          .numerics_class = worker->numerics_class_,
                                          .ops = std::move(ops),
                                          .transport = worker::TransportOptionsOf(config.transfer(),
                                                                                  worker->epoch_),
                                          .cluster_token = worker->cluster_token_},
                                         transfer::MakeUcxTransport, &worker->metrics_));
    if (!config.server().metrics_listen().empty()) {
      RETURN_IF_ERROR(worker->metrics_.Serve(config.server().metrics_listen()));
    }
    return worker;
  }
  ~EncodeWorker() { metrics_.StopServing(); }

  absl::Status Serve() {
    worker::WatchService watch([this] { return State(); }, stage_->media().blocks->events(),
                               cluster_token_);
    ASSIGN_OR_RETURN(std::unique_ptr<net::Server> server,
                     net::Server::Start({.listen = config_.server().listen(),
                                         .services = {stage_->service(), &watch},
                                         .loopback_only = cluster_token_.empty(),
                                         .drain_timeout_s = config_.server().drain_timeout_s()}));
    server->SetServing(true);
    telemetry::Log(telemetry::Level::kInfo, "ready",
                   {{"worker_id", config_.worker_id()},
                    {"port", server->port()},
                    {"tower", stage_->tower().config.kind},
                    {"fingerprint", stage_->tower().fingerprint.substr(0, 16)},
                    {"numerics_class", numerics_class_},
                    {"threads", config_.engine().threads()},
                    {"blocks", stage_->media().blocks->counts().total},
                    {"epoch", epoch_.value}});
    server->WaitForShutdown([this] { stage_->Drain(); });
    server.reset();
    stage_->Stop();
    return absl::OkStatus();
  }

 private:
  EncodeWorker() = default;

  // All but the sequence number.
  v1::WorkerState State() const {
    v1::WorkerState state = worker::StateOf({.worker_id = config_.worker_id(),
                                             .role = kRole,
                                             .epoch = epoch_,
                                             .fingerprint = stage_->tower().fingerprint,
                                             .numerics_class = numerics_class_,
                                             .block_tokens = media::kBlockTokens},
                                            stage_->load(), stage_->media().blocks->counts());
    stage_->Report(&state);
    return state;
  }

  v1::WorkerConfig config_;
  WorkerEpoch epoch_;
  std::string cluster_token_, numerics_class_;
  std::unique_ptr<EncodeStage> stage_;
  telemetry::Metrics metrics_;  // the first to go: scrapes read all of the above
};

int Main(int argc, char** argv) {
  net::BlockShutdownSignals();
  v1::WorkerConfig config;
  if (const auto code = config::ParseWorkerCommandLine(argc, argv, kRole, &config)) return *code;
  telemetry::InitLog(kRole, config.server().log_level());
  absl::StatusOr<std::unique_ptr<EncodeWorker>> worker = EncodeWorker::Create(config);
  const absl::Status status = worker.ok() ? (*worker)->Serve() : worker.status();
  if (!status.ok()) {
    std::fprintf(stderr, "trivium-encode: %s\n", Message(status).c_str());
    return 1;
  }
  telemetry::Log(telemetry::Level::kInfo, "stopped");
  return 0;
}

}  // namespace
}  // namespace trivium::encode

int main(int argc, char** argv) { return trivium::encode::Main(argc, argv); }
