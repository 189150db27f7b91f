#include "common/encode/encode_stage.h"

#include <map>
#include <mutex>
#include <utility>

#include "common/worker/followed.h"
#include "common/worker/worker_metrics.h"

namespace trivium::encode {
namespace {

using telemetry::Metrics;

}  // namespace

// One place that knows the metrics' names.
class EncodeStage::Probe final : public EncodeProbe {
 public:
  Probe(Metrics& metrics, const media::MediaPool& media, const worker::LoadBoard& board)
      : media_(media), board_(board) {
    batch_seconds_ = &metrics.AddHistogram("encode_batch_seconds", "Time of one batch of slices",
                                           Metrics::LatencyBuckets());
    batch_slices_ = &metrics.AddHistogram("encode_batch_slices", "Slices of one batch",
                                          {1, 2, 4, 8, 16, 32, 64, 128});
    decode_seconds_ = &metrics.AddHistogram(
        "encode_decode_seconds", "From a picture's file to its slices", Metrics::LatencyBuckets());
    rows_ = &metrics.AddCounter("encode_rows_total", "Rows of all batches");
    const auto slices = [&](const char* source) {
      return &metrics.AddCounter("encode_slices_total",
                                 "Slices sent, by where their tokens came from",
                                 {{"source", source}});
    };
    encoded_ = slices("encoded");
    cached_ = slices("cached");
    pulled_ = slices("pulled");
    for (const auto& [code, name] : worker::EndNames("not_taken")) {
      ends_[code] = &metrics.AddCounter("encode_requests_total", "Encode calls that have ended",
                                        {{"outcome", name}});
    }
    waiting_ = &metrics.AddGauge("encode_slices_waiting", "Slices that wait or are being encoded");
    const auto blocks = [&](const char* state) {
      return &metrics.AddGauge("encode_blocks", "Blocks of multimedia tokens by state",
                               {{"state", state}});
    };
    free_ = blocks("free");
    used_ = blocks("used");
    leased_ = blocks("leased");
    held_ = &metrics.AddGauge("encode_blocks_cached",
                              "Of the free blocks, those that hold tokens to be sent again");
    sent_.counter = &metrics.AddCounter("encode_sent_bytes_total", "Bytes of transfers sent");
    metrics.OnScrape([this] { Refresh(); });
  }

  void OnBatch(int32_t slices, int64_t rows, double seconds) override {
    batch_seconds_->Observe(seconds);
    batch_slices_->Observe(slices);
    rows_->Add(static_cast<double>(rows));
  }
  void OnPicture(double decode_seconds) override { decode_seconds_->Observe(decode_seconds); }
  void OnSlice(const SliceReport& report) override {
    (report.pulled ? pulled_ : report.cached ? cached_ : encoded_)->Add();
  }
  void OnEnd(const absl::Status& status) override {
    const auto found = ends_.find(status.code());
    (found == ends_.end() ? ends_.at(absl::StatusCode::kUnknown) : found->second)->Add();
  }

 private:
  void Refresh() {
    waiting_->Set(board_.Get().slices_waiting);
    const kv::BlockPool::Counts counts = media_.blocks->counts();
    free_->Set(counts.free);
    used_->Set(counts.used);
    leased_->Set(counts.leased);
    held_->Set(counts.cached);
    std::lock_guard lock(mutex_);
    sent_.Follow(static_cast<double>(media_.transport->counters().bytes_sent));
  }

  const media::MediaPool& media_;
  const worker::LoadBoard& board_;
  telemetry::Histogram *batch_seconds_, *batch_slices_, *decode_seconds_;
  telemetry::Counter *rows_, *encoded_, *cached_, *pulled_;
  std::map<absl::StatusCode, telemetry::Counter*> ends_;
  telemetry::Gauge *waiting_, *free_, *used_, *leased_, *held_;
  std::mutex mutex_;  // of what follows, for scrapes at the same time
  worker::Followed sent_;
};

EncodeStage::EncodeStage() = default;
EncodeStage::~EncodeStage() = default;

absl::StatusOr<std::unique_ptr<EncodeStage>> EncodeStage::Create(
    EncodeStageOptions options, const media::TransportFactory& make_transport,
    telemetry::Metrics* metrics) {
  std::unique_ptr<EncodeStage> stage(new EncodeStage());
  ASSIGN_OR_RETURN(std::shared_ptr<const vision::Tower> tower,
                   vision::Tower::Load(options.tower_path));
  const int32_t hidden = tower->config.out_hidden;
  stage->encoder_ =
      std::make_unique<vision::PictureEncoder>(std::move(tower), std::move(options.ops));
  ASSIGN_OR_RETURN(stage->media_, media::MakeMediaPool({.hidden = hidden,
                                                        .memory_bytes = options.memory_bytes,
                                                        .transport = std::move(options.transport)},
                                                       make_transport));
  stage->probe_ = std::make_unique<Probe>(*metrics, stage->media_, stage->board_);
  EncodeContext context{.encoder = stage->encoder_.get(),
                        .media = &stage->media_,
                        .board = &stage->board_,
                        .probe = stage->probe_.get(),
                        .numerics_class = std::move(options.numerics_class),
                        .limits = {},
                        .requests_max = options.requests_max};
  stage->loop_ = std::make_unique<EncodeLoop>(context);
  stage->service_ = std::make_unique<EncodeService>(std::move(context), stage->loop_.get(),
                                                    std::move(options.cluster_token));
  return stage;
}

void EncodeStage::Report(v1::WorkerState* state) const {
  const worker::Load load = board_.Get();
  state->set_tower(tower().fingerprint);
  state->set_slices_waiting(load.slices_waiting);
  state->set_slices_max(load.slices_max);
  state->set_seconds_per_slice(load.seconds_per_slice);
}

}  // namespace trivium::encode
