// What encodes pictures in a process: tower, blocks, loop, service and metrics. An encode worker is
// this and nothing else; a prefill worker may have one beside its own stage.
// Thread-safety: built on one thread; afterwards all methods from any thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "common/encode/encode_service.h"
#include "common/telemetry/metrics.h"
#include "common/worker/load_board.h"
#include "kernels/ops.h"

namespace trivium::encode {

struct EncodeStageOptions {
  std::string tower_path;
  int64_t memory_bytes = 0;  // of blocks
  int32_t requests_max = 64;
  std::string numerics_class;
  std::unique_ptr<kernels::Ops> ops;
  transfer::TransportOptions transport;  // all but the storage
  std::string cluster_token;
};

class EncodeStage {
 public:
  // Loads the tower and takes the memory. Errors are one readable line each.
  static absl::StatusOr<std::unique_ptr<EncodeStage>> Create(
      EncodeStageOptions options, const media::TransportFactory& make_transport,
      telemetry::Metrics* metrics);
  ~EncodeStage();

  grpc::Service* service() { return service_.get(); }
  const vision::Tower& tower() const { return encoder_->tower(); }
  const media::MediaPool& media() const { return media_; }
  worker::Load load() const { return board_.Get(); }
  void Drain() { loop_->Drain(); }
  void Stop() { loop_->Stop(); }  // after the server is gone
  // Fills in what routers know an encoder by.
  void Report(v1::WorkerState* state) const;

 private:
  class Probe;
  EncodeStage();

  std::unique_ptr<vision::PictureEncoder> encoder_;
  media::MediaPool media_;
  worker::LoadBoard board_;
  std::unique_ptr<Probe> probe_;
  std::unique_ptr<EncodeLoop> loop_;
  std::unique_ptr<EncodeService> service_;
};

}  // namespace trivium::encode
