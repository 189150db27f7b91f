// Answers that run on a decode worker while long prompts are computed there: gaps between their
// tokens, and prompt tokens a second, each alone and together. No network, random tokens.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "common/config/config.h"
#include "common/telemetry/log.h"
#include "common/worker/runtime.h"
#include "services/decode/step_loop.h"

namespace trivium::decode {
namespace {

struct Flags {
  v1::WorkerConfig config;
  int streams = 4, context = 128;  // answers that run, and the tokens before them
  int prompt = 2048, prompts = 3;  // tokens, and how many one after another
  int tokens = 200;                // of each answer while no prompt is there
};

// What came, and when.
class Sink final : public DecodeSink {
 public:
  void OnPrefilled(const PrefillReport&) override {}
  void OnToken(const worker::OutputToken&) override {
    std::lock_guard lock(mutex_);
    times_.push_back(Clock::Real().Now());
    changed_.notify_all();
  }
  void OnEnd(absl::Status status) override {
    std::lock_guard lock(mutex_);
    is_ended_ = true;
    const bool is_wanted = status.ok() || absl::IsCancelled(status);
    TRIVIUM_CHECK(is_wanted, "a request failed: {}", Message(status));
    changed_.notify_all();
  }
  void WaitTokens(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return times_.size() >= count || is_ended_; });
  }
  void WaitEnd() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return is_ended_; });
  }
  size_t count() const {
    std::lock_guard lock(mutex_);
    return times_.size();
  }
  // Milliseconds between tokens that came from `begin` on.
  std::vector<double> GapsSince(TimePoint begin) const {
    std::lock_guard lock(mutex_);
    std::vector<double> gaps;
    for (size_t i = 1; i < times_.size(); ++i) {
      if (times_[i - 1] < begin) continue;
      gaps.push_back(1e3 * worker::SecondsBetween(times_[i - 1], times_[i]));
    }
    return gaps;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<TimePoint> times_;
  bool is_ended_ = false;
};

// Counts what the steps have read of experts' weights.
class ExpertProbe final : public worker::LoopProbe {
 public:
  void OnStep(const worker::StepRecord& step) override { bytes_ += step.expert_bytes; }
  void OnFirstToken(double) override {}
  void OnTokenGap(double) override {}
  void OnPrompt(const worker::PromptRecord&) override {}
  void OnEnd(const absl::Status&) override {}
  int64_t bytes() const { return bytes_; }

 private:
  std::atomic<int64_t> bytes_{0};
};

class Bench {
 public:
  Bench(const Flags& flags, worker::WorkerRuntime& runtime)
      : flags_(flags), vocab_(runtime.model().config.vocab), loop_(WithProbe(runtime)) {}

  nlohmann::json Run() {
    Prompt();  // warms up, and lets the worker learn what steps take
    nlohmann::json result;
    result["prefill_alone"] = PrefillRate();
    for (int i = 0; i < flags_.streams; ++i) Begin();
    for (auto& [sink, number] : streams_) sink->WaitTokens(1);
    const TimePoint alone = Clock::Real().Now();
    for (auto& [sink, number] : streams_) {
      sink->WaitTokens(sink->count() + static_cast<size_t>(flags_.tokens));
    }
    result["gaps_alone_ms"] = GapsSince(alone);
    const TimePoint mixed = Clock::Real().Now();
    const int64_t bytes = probe_.bytes();
    result["prefill_mixed"] = PrefillRate();
    result["expert_megabytes_a_prompt"] =
        static_cast<double>(probe_.bytes() - bytes) * 1e-6 / flags_.prompts;
    result["gaps_mixed_ms"] = GapsSince(mixed);
    result["first_token_s"] = first_token_s_;
    for (auto& [sink, number] : streams_) {
      loop_.Cancel(number);
      sink->WaitEnd();
    }
    return result;
  }

 private:
  worker::LoopContext WithProbe(worker::WorkerRuntime& runtime) {
    worker::LoopContext context = runtime.loop_context();
    context.probe = &probe_;
    return context;
  }

  struct Stream {
    std::unique_ptr<Sink> sink;
    uint64_t number;
  };

  uint64_t Submit(int tokens, int max_tokens, Sink* sink) {
    worker::StageRequest request{
        .key = {.request = {fmt::format("bench-{}", ++requests_)}, .attempt = {1}},
        .sampling = {.max_tokens = max_tokens, .ignore_eos = true},
        .prefills = true};
    std::uniform_int_distribution<int32_t> id(100, vocab_ - 1);
    for (int i = 0; i < tokens; ++i) request.token_ids.push_back(id(random_));
    const auto submitted = loop_.Submit(std::move(request), sink);
    TRIVIUM_CHECK(submitted.ok(), "{}", Message(submitted.status()));
    return submitted->number;
  }
  void Begin() {
    auto sink = std::make_unique<Sink>();
    const uint64_t number = Submit(flags_.context, 4096, sink.get());
    streams_.push_back({std::move(sink), number});
  }
  double Prompt() {
    Sink sink;
    const TimePoint begin = Clock::Real().Now();
    Submit(flags_.prompt, 1, &sink);
    sink.WaitEnd();
    return worker::SecondsBetween(begin, Clock::Real().Now());
  }
  // Tokens a second, of prompts one after another.
  double PrefillRate() {
    first_token_s_.clear();
    double seconds = 0;
    for (int i = 0; i < flags_.prompts; ++i) {
      first_token_s_.push_back(Prompt());
      seconds += first_token_s_.back();
    }
    return flags_.prompt * flags_.prompts / seconds;
  }
  std::vector<double> GapsSince(TimePoint begin) const {
    std::vector<double> all;
    for (const auto& [sink, number] : streams_) {
      const std::vector<double> gaps = sink->GapsSince(begin);
      all.insert(all.end(), gaps.begin(), gaps.end());
    }
    return all;
  }

  const Flags& flags_;
  const int32_t vocab_;
  std::mt19937 random_{1};
  int requests_ = 0;
  std::vector<double> first_token_s_;
  std::vector<Stream> streams_;  // outlive the loop, which tells them its end
  ExpertProbe probe_;
  StepLoop loop_;
};

absl::StatusOr<nlohmann::json> RunBench(Flags& flags) {
  RETURN_IF_ERROR(config::Complete(&flags.config, "decode"));
  ASSIGN_OR_RETURN(
      const std::unique_ptr<worker::WorkerRuntime> runtime,
      worker::WorkerRuntime::Create(flags.config, "decode", transfer::MakeInProcessTransport));
  return Bench(flags, *runtime).Run();
}

int Main(int argc, char** argv) {
  Flags flags;
  std::string model, policy = "chunked";
  int threads = 1, step_tokens = 0;
  double target_ms = 0;
  CLI::App app("Answers beside long prompts on one decode worker");
  app.add_option("--model", model)->required();
  app.add_option("--threads", threads);
  app.add_option("--prefill-policy", policy, "chunked, layered");
  app.add_option("--step-target-ms", target_ms);
  app.add_option("--step-tokens", step_tokens, "0: the default");
  app.add_option("--streams", flags.streams);
  app.add_option("--context", flags.context);
  app.add_option("--prompt", flags.prompt);
  app.add_option("--prompts", flags.prompts);
  app.add_option("--tokens", flags.tokens);
  CLI11_PARSE(app, argc, argv);
  flags.config.mutable_model()->set_path(model);
  v1::EngineConfig& engine = *flags.config.mutable_engine();
  engine.set_threads(threads);
  engine.set_prefill_policy(policy);
  engine.set_step_target_ms(target_ms);
  if (step_tokens > 0) engine.set_step_tokens(step_tokens);
  telemetry::InitLog("mixed_bench", "warning");
  const auto result = RunBench(flags);
  if (!result.ok()) {
    fmt::print(stderr, "mixed_bench: {}\n", Message(result.status()));
    return 1;
  }
  fmt::print("{}\n", result->dump());
  return 0;
}

}  // namespace
}  // namespace trivium::decode

int main(int argc, char** argv) { return trivium::decode::Main(argc, argv); }
