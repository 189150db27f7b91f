#include "common/worker/worker_metrics.h"

#include <array>
#include <map>
#include <mutex>
#include <string>

#include "common/worker/followed.h"

namespace trivium::worker {
namespace {

using telemetry::Counter;
using telemetry::Gauge;
using telemetry::Histogram;
using telemetry::Labels;
using telemetry::Metrics;

}  // namespace

std::map<absl::StatusCode, std::string> EndNames(std::string aborted) {
  return {{absl::StatusCode::kOk, "ok"},
          {absl::StatusCode::kCancelled, "cancelled"},
          {absl::StatusCode::kInvalidArgument, "invalid"},
          {absl::StatusCode::kFailedPrecondition, "mismatch"},
          {absl::StatusCode::kUnauthenticated, "unauthenticated"},
          {absl::StatusCode::kResourceExhausted, "no_room"},
          {absl::StatusCode::kAborted, std::move(aborted)},
          {absl::StatusCode::kUnavailable, "unavailable"},
          {absl::StatusCode::kUnknown, "error"}};
}

void AddPictureMetrics(Metrics& metrics, const media::MediaPool& media) {
  const auto blocks = [&metrics](const char* state) {
    return &metrics.AddGauge("picture_blocks",
                             "Blocks for the multimedia tokens that prompts wait for, by state",
                             {{"state", state}});
  };
  metrics.OnScrape(
      [&media, free = blocks("free"), used = blocks("used"), leased = blocks("leased")] {
        const kv::BlockPool::Counts counts = media.blocks->counts();
        free->Set(counts.free);
        used->Set(counts.used);
        leased->Set(counts.leased);
      });
}

struct WorkerMetrics::Handles {
  explicit Handles(Metrics& metrics);
  void AddStepMetrics(Metrics& metrics);
  void AddPrefixCounters(Metrics& metrics);

  Histogram *step_seconds, *step_rows, *first_token_seconds, *token_gap_seconds;
  Counter *steps, *rows, *expert_bytes;
  std::map<PromptStep::Limit, Counter*> prompt_steps;
  std::map<absl::StatusCode, Counter*> requests;
  Gauge *running, *waiting, *draining;
  Counter *prompt_cached, *prompt_loaded, *prompt_received, *prompt_computed;
  Gauge *blocks_total, *blocks_free, *blocks_used, *blocks_leased, *blocks_cached;
  Gauge *cost_base, *cost_row, *cost_key;
  Gauge *expected, *spare;
  Gauge *landings, *senders, *suspects;

  std::mutex mutex;  // of what follows, for scrapes at the same time
  Followed sent, received, expired, lost;
  Followed prefixes_sent, prefixes_failed, prefixes_refused, prefix_tokens;
  std::array<Followed, static_cast<size_t>(transfer::Refusal::kCount)> refused;
};

WorkerMetrics::Handles::Handles(Metrics& metrics) {
  AddStepMetrics(metrics);
  first_token_seconds = &metrics.AddHistogram("first_token_seconds",
                                              "From a request's arrival to its first token here",
                                              Metrics::LatencyBuckets());
  token_gap_seconds = &metrics.AddHistogram(
      "token_gap_seconds", "From one token of an answer to its next", Metrics::LatencyBuckets());
  const auto prompt = [&metrics](const char* source) {
    return &metrics.AddCounter("prompt_tokens_total", "Prompt tokens by where their KV came from",
                               {{"source", source}});
  };
  prompt_cached = prompt("cached");
  prompt_loaded = prompt("loaded");
  prompt_received = prompt("received");
  prompt_computed = prompt("computed");
  for (const auto& [code, name] : EndNames("preempted")) {
    requests[code] =
        &metrics.AddCounter("requests_total", "Requests that have ended", {{"outcome", name}});
  }
  running = &metrics.AddGauge("requests_running", "Requests that hold a place in the batch");
  waiting = &metrics.AddGauge("requests_waiting", "Requests that wait for blocks or for their KV");
  draining = &metrics.AddGauge("draining", "1 while no new request is taken");
  const auto blocks = [&metrics](const char* state) {
    return &metrics.AddGauge("kv_blocks", "KV blocks by state", {{"state", state}});
  };
  blocks_total = &metrics.AddGauge("kv_blocks_capacity", "KV blocks of the pool");
  blocks_free = blocks("free");
  blocks_used = blocks("used");
  blocks_leased = blocks("leased");
  blocks_cached = &metrics.AddGauge("kv_blocks_cached",
                                    "Of the free KV blocks, those that hold KV to be reused");
  const auto cost = [&metrics](const char* term) {
    return &metrics.AddGauge("step_cost_seconds",
                             "Fitted cost of a step: base + row * rows + key * keys",
                             {{"term", term}});
  };
  cost_base = cost("base");
  cost_row = cost("row");
  cost_key = cost("key");
  expected = &metrics.AddGauge("expected_output_tokens",
                               "Mean answer that admission reckons with; 0: none yet");
  spare = &metrics.AddGauge("kv_blocks_spare", "Free KV blocks that no new request gets");
  landings = &metrics.AddGauge("transfer_landings", "Landings open");
  senders = &metrics.AddGauge("transfer_senders", "Senders open");
  suspects = &metrics.AddGauge("transfer_peers_suspect", "Peers whose heartbeat is late");
  sent.counter = &metrics.AddCounter("kv_sent_bytes_total", "KV bytes sent");
  received.counter = &metrics.AddCounter("kv_received_bytes_total", "KV bytes received");
  expired.counter = &metrics.AddCounter("transfer_landings_expired_total",
                                        "Landings that no message reached in time");
  lost.counter = &metrics.AddCounter("transfer_peers_lost_total", "Peers that missed their lease");
  AddPrefixCounters(metrics);
  for (size_t i = 0; i < refused.size(); ++i) {
    refused[i].counter =
        &metrics.AddCounter("transfer_refused_total", "Messages of peers refused, by reason",
                            {{"reason", transfer::RefusalName(static_cast<transfer::Refusal>(i))}});
  }
}

void WorkerMetrics::Handles::AddStepMetrics(Metrics& metrics) {
  step_seconds =
      &metrics.AddHistogram("step_seconds", "Time of one engine step", Metrics::LatencyBuckets());
  step_rows =
      &metrics.AddHistogram("step_rows", "Rows of one engine step",
                            {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192});
  steps = &metrics.AddCounter("steps_total", "Engine steps");
  rows = &metrics.AddCounter("rows_total",
                             "Rows of all engine steps, in parts where they passed some layers");
  expert_bytes = &metrics.AddCounter("expert_bytes_read_total",
                                     "Weights of routed experts that engine steps have read");
  for (const auto& [limit, name] : {std::pair(PromptStep::Limit::kWork, "work"),
                                    {PromptStep::Limit::kRows, "rows"},
                                    {PromptStep::Limit::kSeconds, "seconds"}}) {
    prompt_steps[limit] = &metrics.AddCounter(
        "prompt_steps_total",
        "Engine steps with rows of prompts, by what bounded them: all the work that there was, "
        "step_tokens, or the time of a step",
        {{"limit", name}});
  }
}

void WorkerMetrics::Handles::AddPrefixCounters(Metrics& metrics) {
  const auto prefixes = [&metrics](const char* outcome) {
    return &metrics.AddCounter("prefixes_sent_total",
                               "Prefixes that other workers asked for, by how it ended",
                               {{"outcome", outcome}});
  };
  prefixes_sent.counter = prefixes("ok");
  prefixes_failed.counter = prefixes("failed");
  prefixes_refused.counter = prefixes("refused");
  prefix_tokens.counter =
      &metrics.AddCounter("prefix_tokens_sent_total", "Tokens of the prefixes sent");
}

WorkerMetrics::WorkerMetrics(Metrics& metrics, const kv::BlockPool& pool,
                             const transfer::Transport& transport, const LoadBoard& board,
                             const PrefixSender& prefixes)
    : pool_(pool),
      transport_(transport),
      board_(board),
      prefixes_(prefixes),
      handles_(std::make_unique<Handles>(metrics)) {
  metrics.OnScrape([this] { Refresh(); });
}

WorkerMetrics::~WorkerMetrics() = default;

void WorkerMetrics::OnStep(const StepRecord& step) {
  step_cost_.Observe(step.load.rows, step.load.keys, step.seconds);
  handles_->step_seconds->Observe(step.seconds);
  handles_->step_rows->Observe(static_cast<double>(step.load.rows));
  handles_->steps->Add();
  handles_->rows->Add(static_cast<double>(step.load.rows));
  handles_->expert_bytes->Add(static_cast<double>(step.expert_bytes));
  if (step.limit.has_value()) handles_->prompt_steps.at(*step.limit)->Add();
}

void WorkerMetrics::OnFirstToken(double seconds_since_submit) {
  handles_->first_token_seconds->Observe(seconds_since_submit);
}

void WorkerMetrics::OnTokenGap(double seconds) { handles_->token_gap_seconds->Observe(seconds); }

void WorkerMetrics::OnPrompt(const PromptRecord& prompt) {
  handles_->prompt_cached->Add(prompt.cached);
  handles_->prompt_loaded->Add(prompt.loaded);
  handles_->prompt_received->Add(prompt.received);
  handles_->prompt_computed->Add(prompt.computed);
}

void WorkerMetrics::OnEnd(const absl::Status& status) {
  const auto found = handles_->requests.find(status.code());
  (found == handles_->requests.end() ? handles_->requests.at(absl::StatusCode::kUnknown)
                                     : found->second)
      ->Add();
}

void WorkerMetrics::Refresh() {
  Handles& h = *handles_;
  const Load load = board_.Get();
  h.running->Set(load.requests_running);
  h.waiting->Set(load.requests_waiting);
  h.draining->Set(load.draining ? 1 : 0);
  const kv::BlockPool::Counts blocks = pool_.counts();
  h.blocks_total->Set(blocks.total);
  h.blocks_free->Set(blocks.free);
  h.blocks_used->Set(blocks.used);
  h.blocks_leased->Set(blocks.leased);
  h.blocks_cached->Set(blocks.cached);
  h.expected->Set(load.expected_output_tokens);
  h.spare->Set(load.blocks_spare);
  const engine::StepCost::Coefficients cost = step_cost_.coefficients();
  h.cost_base->Set(cost.a);
  h.cost_row->Set(cost.b);
  h.cost_key->Set(cost.c);
  const transfer::TransferCounters counters = transport_.counters();
  h.landings->Set(static_cast<double>(counters.landings_open));
  h.senders->Set(static_cast<double>(counters.senders_open));
  h.suspects->Set(static_cast<double>(counters.peers_suspect));

  std::lock_guard lock(h.mutex);
  h.sent.Follow(static_cast<double>(counters.bytes_sent));
  h.received.Follow(static_cast<double>(counters.bytes_received));
  h.expired.Follow(static_cast<double>(counters.landings_expired));
  h.lost.Follow(static_cast<double>(counters.peers_lost));
  const PrefixSender::Counts prefixes = prefixes_.counts();
  h.prefixes_sent.Follow(static_cast<double>(prefixes.sent));
  h.prefixes_failed.Follow(static_cast<double>(prefixes.failed));
  h.prefixes_refused.Follow(static_cast<double>(prefixes.refused));
  h.prefix_tokens.Follow(static_cast<double>(prefixes.tokens));
  for (size_t i = 0; i < h.refused.size(); ++i) {
    h.refused[i].Follow(static_cast<double>(counters.refused[i]));
  }
}

}  // namespace trivium::worker
