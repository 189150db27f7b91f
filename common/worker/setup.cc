#include "common/worker/setup.h"

#include <random>

#include "common/config/flags.h"
#include "kernels/ops.h"

namespace trivium::worker {
namespace {

std::string SupportedIsaNames() {
  std::string names;
  for (kernels::Isa isa : kernels::SupportedIsas()) {
    if (!names.empty()) names += ", ";
    names += kernels::IsaName(isa);
  }
  return names;
}

}  // namespace

absl::StatusOr<std::unique_ptr<kernels::Ops>> CreateOps(const v1::EngineConfig& config) {
  kernels::OpsOptions options{.isa = kernels::BestIsa(), .threads = config.threads()};
  if (config.isa() != "auto" && !kernels::ParseIsa(config.isa(), &options.isa)) {
    return InvalidArgument("engine.isa \"{}\" is none of auto, reference, avx2, avx512, amx",
                           config.isa());
  }
  if (config.numerics() == "batch_invariant") {
    options.numerics = kernels::Numerics::kBatchInvariant;
  } else if (config.numerics() != "fast") {
    return InvalidArgument("engine.numerics \"{}\" is none of fast, batch_invariant",
                           config.numerics());
  }
  std::unique_ptr<kernels::Ops> ops = kernels::MakeOps(options);
  if (ops == nullptr) {
    return FailedPrecondition("engine.isa: this machine cannot run {}; it can run {}",
                              kernels::IsaName(options.isa), SupportedIsaNames());
  }
  return ops;
}

WorkerEpoch DrawEpoch() {
  std::random_device random;
  const uint64_t value = uint64_t{random()} << 32 | random();
  return {value == 0 ? 1 : value};
}

std::string NumericsClassOf(const v1::EngineConfig& config, const kernels::Ops& ops) {
  return fmt::format("{}/{}", config.numerics(), kernels::IsaName(ops.isa()));
}

transfer::TransportOptions TransportOptionsOf(const v1::TransferConfig& config, WorkerEpoch epoch,
                                              PortShare share) {
  transfer::TransportOptions options;
  options.epoch = epoch;
  options.timeouts.scale = config.timeout_scale();
  options.interface = config.interface();
  options.transports = config.transports();
  const int count = config.port_count() / share.parts;
  options.ports = {config.port() == 0 ? 0 : config.port() + share.part * count, count};
  return options;
}

v1::WorkerState StateOf(const WorkerIdentity& worker, const Load& load,
                        const kv::BlockPool::Counts& blocks) {
  v1::WorkerState state;
  state.set_worker_id(worker.worker_id);
  state.set_role(worker.role);
  state.set_epoch(worker.epoch.value);
  state.set_fingerprint(worker.fingerprint);
  state.set_numerics_class(worker.numerics_class);
  state.set_wire_format(static_cast<uint32_t>(worker.wire_format));
  state.set_version(std::string(config::Version()));
  state.set_draining(load.draining);
  state.set_steps(load.steps);
  state.set_requests_running(load.requests_running);
  state.set_requests_waiting(load.requests_waiting);
  state.set_requests_max(load.requests_max);
  state.set_prompt_tokens_waiting(load.prompt_tokens_waiting);
  state.set_expected_output_tokens(load.expected_output_tokens);
  state.set_blocks_total(blocks.total);
  state.set_blocks_free(blocks.free);
  state.set_blocks_spare(load.blocks_spare + blocks.kept);
  state.set_blocks_cached(blocks.cached);
  state.set_blocks_used(blocks.used);
  state.set_blocks_leased(blocks.leased);
  state.set_block_tokens(worker.block_tokens);
  return state;
}

}  // namespace trivium::worker
