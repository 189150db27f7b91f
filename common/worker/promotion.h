// Decides which blocks of a prompt are loaded from the tiers below the pool instead of being
// computed, and has them loaded: both stages use it when a request has its blocks, so that loading
// goes on beside the steps of others.
//
// Thread-safety: all methods, any thread.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>

#include "common/engine/step_cost.h"
#include "common/kv/block_pool.h"
#include "common/kv/tiers/offload.h"

namespace trivium::worker {

// How many leading blocks are worth it, where loading block i takes load_s[i] and computing it
// compute_s[i], and nothing is loaded before `wait_s` is over: as many as save most.
int32_t BlocksWorthLoading(double wait_s, std::span<const double> load_s,
                           std::span<const double> compute_s);

class Promotion {
 public:
  // `offload` and `cost` outlive it.
  Promotion(kv::Offload& offload, const engine::StepCost& cost) : offload_(offload), cost_(cost) {}

  // Blocks behind those of the reservation that held their KV already, to be given to Begin;
  // nothing where there are none, or to compute them costs less. Before anything has been measured,
  // loading is tried.
  std::optional<kv::Offload::Wanted> Plan(const kv::Reservation& blocks,
                                          const kv::PrefixUse& prefix) const;
  // `done`: see Wanted; never after `asker` is gone.
  void Begin(kv::Offload::Wanted wanted, std::weak_ptr<const void> asker,
             std::function<void(int32_t blocks)> done);

 private:
  kv::Offload& offload_;
  const engine::StepCost& cost_;
};

}  // namespace trivium::worker
