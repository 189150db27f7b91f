#include "services/router/dispatch/router_metrics.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>

namespace trivium::router {
namespace {

constexpr const char* kRetryReasons[] = {"no_room", "preempted", "failed", "refused", "lost"};
constexpr const char* kDropReasons[] = {"duplicate", "late_attempt", "mismatch"};
constexpr const char* kRefuseReasons[] = {"invalid",  "queue_full", "over_share",
                                          "draining", "busy",       "unauthenticated"};

constexpr const char* kPullEnds[] = {"whole", "part", "failed"};

// A tenant may be named "other" as well: its counter is then that of the others.
telemetry::Counter& TenantCounter(telemetry::Metrics* metrics, const std::string& tenant) {
  return metrics->AddCounter("router_tenant_requests_total", "Requests by tenant",
                             {{"tenant", tenant}});
}

double Seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }

std::string CodeName(int code) {
  std::string name = absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return name;
}

template <size_t n>
void AddReasons(telemetry::Metrics* metrics, const char* name, const char* help,
                const char* const (&reasons)[n], const telemetry::Labels& labels,
                std::array<telemetry::Counter*, n>* counters) {
  for (size_t i = 0; i < n; ++i) {
    telemetry::Labels all = labels;
    all["reason"] = reasons[i];
    (*counters)[i] = &metrics->AddCounter(name, help, all);
  }
}

telemetry::Histogram& Latency(telemetry::Metrics* metrics, const char* name, const char* help) {
  return metrics->AddHistogram(name, help, telemetry::Metrics::LatencyBuckets());
}

}  // namespace

RouterMetrics::RouterMetrics(telemetry::Metrics* metrics, std::span<const TenantId> tenants)
    : metrics_(*metrics),
      of_other_tenants_(TenantCounter(metrics, "other")),
      queue_seconds_(
          Latency(metrics, "router_queue_seconds", "Wait for a placement, of answered requests")),
      request_seconds_(Latency(metrics, "router_request_seconds",
                               "Submission to the end, of answered requests")),
      first_token_seconds_(
          Latency(metrics, "router_first_token_seconds", "Submission to first token")),
      per_token_seconds_(
          Latency(metrics, "router_token_seconds", "Mean time between the tokens of a request")),
      token_gap_seconds_(
          Latency(metrics, "router_token_gap_seconds", "Time between two tokens of a request")),
      transfer_seconds_(Latency(metrics, "router_transfer_seconds",
                                "First KV message of a request to its last acknowledgement")),
      encode_seconds_(Latency(
          metrics, "router_encode_seconds",
          "First slice of a request's pictures that was asked for to the last that landed")),
      prompt_tokens_(metrics->AddCounter("router_prompt_tokens_total",
                                         "Prompt tokens of requests that have ended")),
      cached_tokens_(metrics->AddCounter("router_cached_prompt_tokens_total",
                                         "Of the prompt tokens, those whose KV was there already")),
      output_tokens_(metrics->AddCounter("router_output_tokens_total", "Tokens sent to clients")),
      waiting_(metrics->AddGauge("router_requests_waiting", "Requests in the queue")),
      running_(metrics->AddGauge("router_requests_running", "Requests placed on workers")),
      index_pairs_(metrics->AddGauge("router_index_block_holders",
                                     "KV blocks known to be at workers, once for each worker")),
      index_bytes_(metrics->AddGauge("router_index_bytes", "Memory of the prefix index")),
      index_expected_(metrics->AddGauge("router_index_expected_blocks",
                                        "KV blocks that running requests will leave at workers")),
      index_refused_(metrics->AddCounter("router_index_refused_total",
                                         "KV blocks beyond the bounds of the prefix index")),
      index_gaps_(metrics->AddCounter("router_index_gaps_total",
                                      "Watch messages with missing or bad KV events")) {
  for (const Role role : {Role::kPrefill, Role::kDecode, Role::kEncode}) {
    AddReasons(metrics, "router_retries_total", "Attempts given up for another one", kRetryReasons,
               {{"stage", RoleName(role)}}, &retries_[static_cast<size_t>(role)]);
  }
  AddReasons(metrics, "router_tokens_dropped_total", "Stage tokens that no client may see again",
             kDropReasons, {}, &dropped_);
  AddReasons(metrics, "router_requests_refused_total", "Requests that were never run",
             kRefuseReasons, {}, &refused_);
  AddReasons(metrics, "router_pulls_total", "Prefixes that one worker was to send to another",
             kPullEnds, {}, &pulled_);
  for (size_t i = 0; i < placed_.size(); ++i) {
    placed_[i] = &metrics->AddCounter("router_placements_total", "Attempts placed on workers",
                                      {{"reason", ReasonName(static_cast<PlacementReason>(i))}});
  }
  for (const TenantId& tenant : tenants.first(std::min(tenants.size(), kTenantsShown))) {
    of_tenant_[tenant] = &TenantCounter(metrics, tenant.value);
  }
  for (size_t code = 0; code < ended_.size(); ++code) {
    ended_[code] = &metrics->AddCounter("router_requests_total", "Requests by their final status",
                                        {{"code", CodeName(static_cast<int>(code))}});
  }
}

void RouterMetrics::Submitted(const TenantId& tenant) {
  const auto found = of_tenant_.find(tenant);
  (found == of_tenant_.end() ? of_other_tenants_ : *found->second).Add();
}
void RouterMetrics::Ended(absl::StatusCode code) {
  ended_[std::clamp(static_cast<int>(code), 0, static_cast<int>(ended_.size()) - 1)]->Add();
}
void RouterMetrics::Retried(Role stage, RetryReason reason) {
  retries_[static_cast<size_t>(stage)][static_cast<size_t>(reason)]->Add();
}
void RouterMetrics::Dropped(DropReason reason) { dropped_[static_cast<size_t>(reason)]->Add(); }
void RouterMetrics::Refused(RefuseReason reason) { refused_[static_cast<size_t>(reason)]->Add(); }
void RouterMetrics::Placed(PlacementReason reason) { placed_[static_cast<size_t>(reason)]->Add(); }
void RouterMetrics::Answered(Duration in_queue, Duration total) {
  queue_seconds_.Observe(Seconds(in_queue));
  request_seconds_.Observe(Seconds(total));
}
void RouterMetrics::Token(int32_t index, Duration since) {
  (index == 0 ? first_token_seconds_ : token_gap_seconds_).Observe(Seconds(since));
  output_tokens_.Add();
}
void RouterMetrics::PerToken(Duration mean) { per_token_seconds_.Observe(Seconds(mean)); }
void RouterMetrics::Transferred(Duration first_send_to_last_ack) {
  transfer_seconds_.Observe(Seconds(first_send_to_last_ack));
}
void RouterMetrics::Pulled(PullEnd end) { pulled_[static_cast<size_t>(end)]->Add(); }
void RouterMetrics::Encoded(Duration first_asked_to_last_landed) {
  encode_seconds_.Observe(Seconds(first_asked_to_last_landed));
}

void RouterMetrics::Prompt(int32_t tokens, int32_t cached) {
  prompt_tokens_.Add(tokens);
  cached_tokens_.Add(cached);
}

void RouterMetrics::Index(const PrefixIndex::Counts& counts) {
  index_pairs_.Set(static_cast<double>(counts.pairs));
  index_bytes_.Set(static_cast<double>(counts.bytes));
  index_expected_.Set(static_cast<double>(counts.expected));
  const auto add = [](telemetry::Counter& counter, int64_t before, int64_t now) {
    counter.Add(static_cast<double>(now - before));
  };
  add(index_refused_, index_before_.refused_total, counts.refused_total);
  add(index_gaps_, index_before_.gaps_total, counts.gaps_total);
  index_before_ = counts;
}

void RouterMetrics::Cluster(int32_t waiting, int32_t running,
                            const std::vector<v1::WorkerStatus>& workers) {
  waiting_.Set(waiting);
  running_.Set(running);
  std::map<std::pair<std::string, std::string>, int> count;
  std::set<std::string> roles = {RoleName(Role::kPrefill), RoleName(Role::kDecode)};
  for (const v1::WorkerStatus& worker : workers) {
    roles.insert(worker.role());  // an encode stage is missed only where there should be one
    ++count[{worker.role(), worker.state()}];
  }
  for (const std::string& role : roles) {
    for (int i = 0; i <= static_cast<int>(WorkerCondition::kRefused); ++i) {
      const char* state = ConditionName(static_cast<WorkerCondition>(i));
      metrics_
          .AddGauge("router_workers", "Workers of the list by state",
                    {{"role", role}, {"state", state}})
          .Set(count[{role, state}]);
    }
  }
}

}  // namespace trivium::router
