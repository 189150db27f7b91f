// The tiers below a worker's KV pool: as its configuration wants them, and what is told of them.
#pragma once

#include <memory>

#include "common/base/status.h"
#include "common/kv/tiers/offload.h"
#include "common/telemetry/metrics.h"

namespace trivium::v1 {
class KvTiersConfig;
class WorkerState;
}  // namespace trivium::v1

namespace trivium::worker {

bool HasTiers(const v1::KvTiersConfig& config);
// Null where none is configured. `events` outlives what is made.
absl::StatusOr<std::unique_ptr<kv::Offload>> OpenTiers(const v1::KvTiersConfig& config,
                                                       std::shared_ptr<kv::KvStorage> storage,
                                                       kv::EventLog& events);

// How fast blocks come back, as far as it has been measured.
void ReportTiers(const kv::Offload& offload, v1::WorkerState* state);

// The metrics of the tiers; of a worker without them, too. Thread-safety: built on one thread; then
// scrapes come from any.
class TierMetrics {
 public:
  // `offload`, which may be null, outlives the scrapes.
  TierMetrics(telemetry::Metrics& metrics, const kv::Offload* offload);
  ~TierMetrics();

 private:
  struct Handles;
  void Refresh();

  const kv::Offload* const offload_;
  const std::unique_ptr<Handles> handles_;
};

}  // namespace trivium::worker
