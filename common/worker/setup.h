// What every worker process is made with, from its configuration. Stateless; safe from any thread.
#pragma once

#include <memory>
#include <string>

#include "common/base/ids.h"
#include "common/base/status.h"
#include "common/transfer/transport.h"
#include "kernels/ops.h"
#include "trivium/v1/config.pb.h"

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

}  // namespace trivium::worker
