// Everything that a worker process holds besides its stage: model, engine, KV pool, transport,
// metrics, load. Thread-safety: built on one thread; afterwards all const methods from any thread.
// Members go in reverse order, so that the transport has stopped touching blocks before pool and
// storage go.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "common/base/status.h"
#include "common/engine/engine.h"
#include "common/kv/block_pool.h"
#include "common/kv/kv_storage.h"
#include "common/model/model.h"
#include "common/telemetry/metrics.h"
#include "common/transfer/transport.h"
#include "common/worker/convert.h"
#include "common/worker/kv_tiers.h"
#include "common/worker/load_board.h"
#include "common/worker/loop_context.h"
#include "common/worker/prefix_sender.h"
#include "common/worker/promotion.h"
#include "common/worker/worker_metrics.h"
#include "trivium/v1/config.pb.h"

namespace trivium::v1 {
class WorkerState;
}

namespace trivium::worker {

using TransportFactory =
    std::function<absl::StatusOr<std::unique_ptr<transfer::Transport>>(transfer::TransportOptions)>;

class WorkerRuntime {
 public:
  // Loads the model and takes the memory: about a second for a small model. `config` is complete
  // (config::Complete). Errors are one readable line each.
  static absl::StatusOr<std::unique_ptr<WorkerRuntime>> Create(
      const v1::WorkerConfig& config, std::string_view role,
      const TransportFactory& make_transport);
  WorkerRuntime(const WorkerRuntime&) = delete;
  WorkerRuntime& operator=(const WorkerRuntime&) = delete;

  LoopContext loop_context() const;
  StageLimits limits() const;
  const std::string& worker_id() const { return worker_id_; }
  const std::string& cluster_token() const { return cluster_token_; }
  const std::string& numerics_class() const { return numerics_class_; }
  const v1::WorkerConfig& config() const { return config_; }
  const TransportFactory& make_transport() const { return make_transport_; }
  // All but the storage: the transports of one process share its ports.
  enum class TransportUse : uint8_t { kKv, kPictures, kEncoder };
  transfer::TransportOptions transport_options(TransportUse use) const;
  // Whether the process has a vision tower beside its stage.
  bool encodes() const { return config_.pictures().encode() == "local"; }
  // Of blocks for multimedia tokens that prompts wait for; as much again for the tower's.
  int64_t picture_bytes() const;
  const model::Model& model() const { return *model_; }
  kv::BlockPool& pool() const { return *pool_; }
  transfer::Transport& transport() const { return *transport_; }
  PrefixSender& prefix_sender() const { return *prefix_sender_; }
  telemetry::Metrics& metrics() const { return *metrics_; }
  LoopProbe& probe() const { return *worker_metrics_; }
  // All but the sequence number.
  v1::WorkerState State() const;

 private:
  WorkerRuntime() = default;
  transfer::WireFormat kv_format() const;
  absl::Status CreateEngine();
  absl::Status CreateTransport();
  absl::Status CreateMedia();

  v1::WorkerConfig config_;
  TransportFactory make_transport_;
  std::string role_, worker_id_, cluster_token_, numerics_class_;
  WorkerEpoch epoch_;
  std::shared_ptr<const model::Model> model_;
  std::shared_ptr<kv::KvStorage> storage_;
  std::unique_ptr<kv::BlockPool> pool_;
  // Holds leases of the pool's blocks; null where there are no tiers.
  std::unique_ptr<kv::Offload> offload_;
  std::unique_ptr<engine::Engine> engine_;
  std::unique_ptr<LoadBoard> board_;
  std::unique_ptr<transfer::Transport> transport_;
  std::unique_ptr<PrefixSender> prefix_sender_;
  media::MediaPool media_;  // empty where no pictures are taken
  // Scrapes read all of the above: the registry stops first.
  std::unique_ptr<WorkerMetrics> worker_metrics_;
  std::unique_ptr<TierMetrics> tier_metrics_;
  std::unique_ptr<telemetry::Metrics> metrics_;
  std::unique_ptr<Promotion> promotion_;  // null as offload_
};

}  // namespace trivium::worker
