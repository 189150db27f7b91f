// What every worker process is made with, from its configuration. Stateless; safe from any thread.
#pragma once

#include <memory>
#include <string>

#include "common/base/ids.h"
#include "common/base/status.h"
#include "common/kv/block_pool.h"
#include "common/transfer/transport.h"
#include "common/worker/load_board.h"
#include "kernels/ops.h"
#include "trivium/v1/config.pb.h"
#include "trivium/v1/stage.pb.h"

namespace trivium::worker {

// INVALID_ARGUMENT, FAILED_PRECONDITION (what this machine cannot run), naming the field.
absl::StatusOr<std::unique_ptr<kernels::Ops>> CreateOps(const v1::EngineConfig& config);
// "batch_invariant/avx2".
std::string NumericsClassOf(const v1::EngineConfig& config, const kernels::Ops& ops);

WorkerEpoch DrawEpoch();

// Of the transports of one process, which share its ports evenly.
struct PortShare {
  int part = 0, parts = 1;
};
// All but the storage.
transfer::TransportOptions TransportOptionsOf(const v1::TransferConfig& config, WorkerEpoch epoch,
                                              PortShare share = {});

// What a worker says of itself to routers, whatever its stage, as of now: all but the sequence
// number.
struct WorkerIdentity {
  std::string worker_id, role;
  WorkerEpoch epoch;
  std::string fingerprint;  // of its model or tower
  std::string numerics_class;
  transfer::WireFormat wire_format = transfer::WireFormat::kF16;
  int32_t block_tokens = 0;
};
v1::WorkerState StateOf(const WorkerIdentity& worker, const Load& load,
                        const kv::BlockPool::Counts& blocks);

}  // namespace trivium::worker
