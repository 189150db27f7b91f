#include "common/worker/kv_tiers.h"

#include <array>
#include <mutex>
#include <string>
#include <utility>

#include "common/config/config.h"
#include "common/worker/followed.h"
#include "trivium/v1/config.pb.h"
#include "trivium/v1/stage.pb.h"

namespace trivium::worker {
namespace {

constexpr std::array<std::pair<kv::Tier, const char*>, 2> kNames = {
    {{kv::Tier::kMemory, "memory"}, {kv::Tier::kDisk, "disk"}}};

}  // namespace

bool HasTiers(const v1::KvTiersConfig& config) {
  return config.memory_bytes() > 0 || !config.disk_path().empty();
}

absl::StatusOr<std::unique_ptr<kv::Offload>> OpenTiers(const v1::KvTiersConfig& config,
                                                       std::shared_ptr<kv::KvStorage> storage,
                                                       kv::EventLog& events) {
  kv::OffloadOptions options{.memory_bytes = config.memory_bytes(),
                             .disk_path = config.disk_path(),
                             .disk_bytes = config.disk_bytes(),
                             .disk_secret = {},
                             .events = &events};
  if (!HasTiers(config)) return nullptr;
  if (!options.disk_path.empty()) {
    ASSIGN_OR_RETURN(options.disk_secret, config::ReadDiskKey(config));
  }
  auto offload = kv::Offload::Open(std::move(storage), std::move(options));
  if (offload.ok()) return offload;
  return absl::Status(offload.status().code(), "engine.kv_tiers: " + Message(offload.status()));
}

void ReportTiers(const kv::Offload& offload, v1::WorkerState* state) {
  const auto bytes_per_s = [&offload](kv::Tier tier) {
    const double load_s = offload.load_s(tier);
    return load_s > 0 ? static_cast<double>(offload.block_bytes()) / load_s : 0;
  };
  state->set_memory_load_bytes_per_s(bytes_per_s(kv::Tier::kMemory));
  state->set_disk_load_bytes_per_s(bytes_per_s(kv::Tier::kDisk));
}

struct TierMetrics::Handles {
  struct OfTier {
    telemetry::Gauge *blocks, *bytes;
    Followed hits, misses, broken, failed, load_seconds;
  };
  std::mutex mutex;  // for scrapes at the same time
  std::array<OfTier, kNames.size()> tiers;
  Followed dropped_saves, dropped_loads;
};

TierMetrics::TierMetrics(telemetry::Metrics& metrics, const kv::Offload* offload)
    : offload_(offload), handles_(std::make_unique<Handles>()) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    const telemetry::Labels labels = {{"tier", kNames[i].second}};
    Handles::OfTier& tier = handles_->tiers[i];
    tier.blocks = &metrics.AddGauge("kv_tier_blocks", "KV blocks in a tier below the pool", labels);
    tier.bytes = &metrics.AddGauge("kv_tier_bytes", "Bytes that they take there", labels);
    tier.hits.counter =
        &metrics.AddCounter("kv_tier_hits_total", "KV blocks loaded from a tier", labels);
    tier.misses.counter = &metrics.AddCounter(
        "kv_tier_misses_total", "KV blocks that could not be loaded when they were wanted", labels);
    tier.broken.counter = &metrics.AddCounter(
        "kv_tier_broken_total", "KV blocks that were not as they had been stored", labels);
    tier.failed.counter = &metrics.AddCounter("kv_tier_failures_total",
                                              "Reads and writes of KV blocks that failed", labels);
    tier.load_seconds.counter = &metrics.AddCounter("kv_tier_load_seconds_total",
                                                    "Time spent on loading KV blocks", labels);
  }
  const auto dropped = [&metrics](const char* what) {
    return &metrics.AddCounter("kv_tier_dropped_total",
                               "KV blocks not saved, and loads not begun, because too many waited",
                               {{"what", what}});
  };
  handles_->dropped_saves.counter = dropped("save");
  handles_->dropped_loads.counter = dropped("load");
  if (offload != nullptr) metrics.OnScrape([this] { Refresh(); });
}

TierMetrics::~TierMetrics() = default;

void TierMetrics::Refresh() {
  const kv::Offload::Counts counts = offload_->counts();
  std::lock_guard lock(handles_->mutex);
  for (size_t i = 0; i < kNames.size(); ++i) {
    const auto at = static_cast<size_t>(kNames[i].first);
    const kv::TierCounts& from = counts.tiers[at];
    Handles::OfTier& tier = handles_->tiers[i];
    tier.blocks->Set(static_cast<double>(from.blocks));
    tier.bytes->Set(static_cast<double>(from.bytes));
    tier.hits.Follow(static_cast<double>(from.hits));
    tier.misses.Follow(static_cast<double>(from.misses));
    tier.broken.Follow(static_cast<double>(from.broken));
    tier.failed.Follow(static_cast<double>(from.failed_reads + from.failed_writes));
    tier.load_seconds.Follow(counts.load_s[at]);
  }
  handles_->dropped_saves.Follow(static_cast<double>(counts.dropped_saves));
  handles_->dropped_loads.Follow(static_cast<double>(counts.dropped_loads));
}

}  // namespace trivium::worker
