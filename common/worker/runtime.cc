#include "common/worker/runtime.h"

#include <utility>

#include "common/config/config.h"
#include "common/config/flags.h"
#include "common/telemetry/process_metrics.h"
#include "common/worker/setup.h"
#include "kernels/kv_row.h"
#include "kernels/ops.h"
#include "trivium/v1/stage.pb.h"

namespace trivium::worker {
namespace {

constexpr int kBlockTokens = 16;

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerRuntime>> WorkerRuntime::Create(
    const v1::WorkerConfig& config, std::string_view role, const TransportFactory& make_transport) {
  std::unique_ptr<WorkerRuntime> runtime(new WorkerRuntime());
  runtime->config_ = config;
  runtime->role_ = role;
  runtime->epoch_ = DrawEpoch();
  runtime->worker_id_ = config.worker_id();
  ASSIGN_OR_RETURN(runtime->cluster_token_,
                   config::ReadClusterToken(config.server().cluster_token_file()));
  ASSIGN_OR_RETURN(runtime->model_, model::Model::Load(config.model().path()));
  RETURN_IF_ERROR(runtime->CreateEngine());
  runtime->make_transport_ = make_transport;
  RETURN_IF_ERROR(runtime->CreateTransport());
  RETURN_IF_ERROR(runtime->CreateMedia());
  runtime->board_ = std::make_unique<LoadBoard>();
  runtime->metrics_ = std::make_unique<telemetry::Metrics>();
  telemetry::AddProcessMetrics(runtime->metrics_.get(), role, config::Version());
  runtime->worker_metrics_ =
      std::make_unique<WorkerMetrics>(*runtime->metrics_, *runtime->pool_, *runtime->transport_,
                                      *runtime->board_, *runtime->prefix_sender_);
  if (runtime->media_.blocks != nullptr) AddPictureMetrics(*runtime->metrics_, runtime->media_);
  runtime->tier_metrics_ =
      std::make_unique<TierMetrics>(*runtime->metrics_, runtime->offload_.get());
  if (runtime->offload_ != nullptr) {
    runtime->promotion_ =
        std::make_unique<Promotion>(*runtime->offload_, runtime->worker_metrics_->step_cost());
  }
  return runtime;
}

absl::Status WorkerRuntime::CreateEngine() {
  ASSIGN_OR_RETURN(std::unique_ptr<kernels::Ops> ops, CreateOps(config_.engine()));
  numerics_class_ = NumericsClassOf(config_.engine(), *ops);
  kernels::KvType type = kernels::KvType::kF16;
  if (!kernels::ParseKvType(config_.engine().kv_type(), &type)) {
    return InvalidArgument("engine.kv_type \"{}\" is none of f16, bf16, int8",
                           config_.engine().kv_type());
  }
  const model::ModelConfig& model = model_->config;
  const kernels::KvLayout layout = engine::KvLayoutOf(model, kBlockTokens, type);
  const int64_t block_bytes = layout.PageBytes() * model.layers;
  const int64_t blocks = config_.engine().kv_memory_bytes() / block_bytes;
  if (blocks < 1 || blocks > INT32_MAX) {
    return InvalidArgument("engine.kv_memory_bytes {} holds {} KV blocks of {} bytes",
                           config_.engine().kv_memory_bytes(), blocks, block_bytes);
  }
  ASSIGN_OR_RETURN(storage_,
                   kv::KvStorage::Create(layout, model.layers, static_cast<int32_t>(blocks)));
  kv::BlockSaver saver;
  if (HasTiers(config_.engine().kv_tiers())) {
    saver = [this](BlockId block, const kv::BlockContent& content) {
      offload_->Save(block, content);
    };
  }
  pool_ = std::make_unique<kv::BlockPool>(
      static_cast<int32_t>(blocks), [storage = storage_](BlockId b) { storage->Scrub(b); },
      Clock::Real(), std::move(saver));
  ASSIGN_OR_RETURN(offload_, OpenTiers(config_.engine().kv_tiers(), storage_, pool_->events()));
  engine_ = std::make_unique<engine::Engine>(model_, std::move(ops), storage_);
  return absl::OkStatus();
}

transfer::TransportOptions WorkerRuntime::transport_options(TransportUse use) const {
  const int parts = picture_bytes() == 0 ? 1 : encodes() ? 3 : 2;
  return TransportOptionsOf(config_.transfer(), epoch_, {static_cast<int>(use), parts});
}

int64_t WorkerRuntime::picture_bytes() const {
  return role_ == "prefill" ? config_.pictures().memory_bytes() / (encodes() ? 2 : 1) : 0;
}

absl::Status WorkerRuntime::CreateMedia() {
  if (picture_bytes() == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(media_,
                   media::MakeMediaPool({.hidden = model_->config.hidden,
                                         .memory_bytes = picture_bytes(),
                                         .transport = transport_options(TransportUse::kPictures)},
                                        make_transport_));
  return absl::OkStatus();
}

absl::Status WorkerRuntime::CreateTransport() {
  transfer::TransportOptions options = transport_options(TransportUse::kKv);
  options.storage = storage_;
  ASSIGN_OR_RETURN(transport_, make_transport_(std::move(options)));
  prefix_sender_ = std::make_unique<PrefixSender>(pool_.get(), transport_.get(),
                                                  model_->config.layers, kBlockTokens);
  return absl::OkStatus();
}

LoopContext WorkerRuntime::loop_context() const {
  const transfer::TransferTimeouts timeouts;
  const double scale = config_.transfer().timeout_scale();
  return {.engine = engine_.get(),
          .pool = pool_.get(),
          .transport = transport_.get(),
          .board = board_.get(),
          .probe = worker_metrics_.get(),
          .promotion = promotion_.get(),
          .media = media_.blocks == nullptr ? nullptr : &media_,
          .clock = &Clock::Real(),
          .step_tokens = config_.engine().step_tokens(),
          .prefill_policy = config_.engine().prefill_policy() == "layered"
                                ? PrefillPolicy::kLayered
                                : PrefillPolicy::kChunked,
          .step_target_s = config_.engine().step_target_ms() / 1e3,
          .cost = &worker_metrics_->step_cost(),
          .requests_max = config_.engine().requests_max(),
          .admits_expected = config_.engine().admission() == "expected",
          .keep_alive_interval =
              std::chrono::duration_cast<Duration>(timeouts.unused_ticket * scale / 8)};
}

transfer::WireFormat WorkerRuntime::kv_format() const {
  return transfer::WireFormatOf(storage_->layout().type);
}

StageLimits WorkerRuntime::limits() const {
  return {.vocab = model_->config.vocab,
          .context = model_->config.context,
          .fingerprint = model_->fingerprint,
          .numerics_class = numerics_class_,
          .block_tokens = kBlockTokens,
          .kv_format = kv_format()};
}

v1::WorkerState WorkerRuntime::State() const {
  v1::WorkerState state = StateOf({.worker_id = worker_id_,
                                   .role = role_,
                                   .epoch = epoch_,
                                   .fingerprint = model_->fingerprint,
                                   .numerics_class = numerics_class_,
                                   .wire_format = kv_format(),
                                   .block_tokens = kBlockTokens},
                                  board_->Get(), pool_->counts());
  const engine::StepCost::Coefficients cost = worker_metrics_->step_cost().coefficients();
  state.set_step_cost_base_s(cost.a);
  state.set_step_cost_per_row_s(cost.b);
  state.set_step_cost_per_key_s(cost.c);
  if (offload_ != nullptr) ReportTiers(*offload_, &state);
  if (media_.blocks != nullptr) {
    const kv::BlockPool::Counts pictures = media_.blocks->counts();
    state.set_picture_blocks_total(pictures.total);
    state.set_picture_blocks_free(pictures.free);
  }
  return state;
}

}  // namespace trivium::worker
