// The router's Prometheus series. Thread-safety: all methods, any thread.
#pragma once

#include <array>
#include <functional>
#include <span>
#include <unordered_map>
#include <vector>

#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/telemetry/metrics.h"
#include "services/router/prefix_index/prefix_index.h"
#include "services/router/scheduler/decision.h"
#include "services/router/scheduler/placement.h"
#include "trivium/v1/inference.pb.h"

namespace trivium::router {

enum class RetryReason : uint8_t { kNoRoom, kPreempted, kFailed, kRefused, kLost, kCount };
enum class DropReason : uint8_t { kDuplicate, kLateAttempt, kMismatch, kCount };
// Of a prefix that another worker held; kPart: it held less by then.
enum class PullEnd : uint8_t { kWhole, kPart, kFailed, kCount };
enum class RefuseReason : uint8_t {
  kInvalid,
  kQueueFull,
  kOverShare,
  kDraining,
  kBusy,
  kUnauthenticated,
  kCount
};

class RouterMetrics {
 public:
  // The first kTenantsShown of `tenants` get a label of their own, the others one together.
  explicit RouterMetrics(telemetry::Metrics* metrics, std::span<const TenantId> tenants = {});
  static constexpr size_t kTenantsShown = 64;

  void Submitted(const TenantId& tenant);
  void Ended(absl::StatusCode code);
  void Retried(Role stage, RetryReason reason);
  void Dropped(DropReason reason);
  void Refused(RefuseReason reason);
  void Placed(PlacementReason reason);
  void Answered(Duration in_queue, Duration total);
  // Sent to a client; `since` the token before it, or for index 0 since the submission.
  void Token(int32_t index, Duration since);
  uint64_t output_tokens() const { return static_cast<uint64_t>(output_tokens_.Value()); }
  void PerToken(Duration mean);
  void Transferred(Duration first_send_to_last_ack);
  void Pulled(PullEnd end);
  void Encoded(Duration first_asked_to_last_landed);
  void Prompt(int32_t tokens, int32_t cached);
  void Cluster(int32_t waiting, int32_t running, const std::vector<v1::WorkerStatus>& workers);
  void Index(const PrefixIndex::Counts& counts);

 private:
  telemetry::Metrics& metrics_;
  std::array<std::array<telemetry::Counter*, size_t(RetryReason::kCount)>, 3> retries_;
  std::array<telemetry::Counter*, size_t(DropReason::kCount)> dropped_;
  std::array<telemetry::Counter*, size_t(RefuseReason::kCount)> refused_;
  std::array<telemetry::Counter*, size_t(PlacementReason::kCount)> placed_;
  std::array<telemetry::Counter*, size_t(PullEnd::kCount)> pulled_;
  std::array<telemetry::Counter*, 17> ended_;  // by status code
  std::unordered_map<TenantId, telemetry::Counter*> of_tenant_;
  telemetry::Counter& of_other_tenants_;
  telemetry::Histogram &queue_seconds_, &request_seconds_, &first_token_seconds_,
      &per_token_seconds_, &token_gap_seconds_, &transfer_seconds_, &encode_seconds_;
  telemetry::Counter &prompt_tokens_, &cached_tokens_, &output_tokens_;
  telemetry::Gauge &waiting_, &running_;
  telemetry::Gauge &index_pairs_, &index_bytes_, &index_expected_;
  telemetry::Counter &index_refused_, &index_gaps_;
  PrefixIndex::Counts index_before_;  // of the scrape before, which is one at a time
};

}  // namespace trivium::router
