#include "services/cli/bench.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <random>
#include <thread>

#include "services/cli/bench_report.h"
#include "services/cli/client.h"
#include "services/cli/commands.h"

namespace trivium::cli {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr auto kProgressInterval = std::chrono::milliseconds(200);
constexpr int kBarWidth = 30;

double Seconds(SteadyClock::time_point from, SteadyClock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// A closed loop: each slot sends its next request when its last one has ended.
class Bench {
 public:
  Bench(const Options& options, uint64_t seed)
      : options_(options), seed_(seed), client_(options.router, options.timeout_s), report_(seed) {}

  BenchReport Run() {
    started_ = SteadyClock::now();
    std::vector<std::thread> slots;
    const int count = std::min(options_.bench.concurrency, options_.bench.requests);
    for (int i = 0; i < count; ++i) slots.emplace_back([this] { RunSlot(); });
    ShowProgress();
    for (std::thread& slot : slots) slot.join();
    return report_;
  }

 private:
  void RunSlot() {
    for (int index; (index = next_.fetch_add(1)) < options_.bench.requests;) {
      const BenchSample sample = RunOne(index);
      const std::lock_guard lock(mutex_);
      report_.Add(sample);
      report_.SetElapsed(Seconds(started_, SteadyClock::now()));
      changed_.notify_one();
    }
  }

  BenchSample RunOne(int index) {
    v1::GenerateRequest request;
    const std::vector<int32_t> ids = RandomPrompt(options_.bench, seed_, index);
    request.mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
    request.mutable_sampling()->set_max_tokens(options_.bench.max_tokens);
    request.mutable_sampling()->set_ignore_eos(true);
    Answer answer;
    BenchSample sample;
    const auto start = SteadyClock::now();
    const absl::Status status = client_.Generate(request, &answer, [&](const v1::Delta& delta) {
      if (sample.first_token_s == 0 && delta.tokens_size() > 0) {
        sample.first_token_s = Seconds(start, SteadyClock::now());
      }
    });
    sample.total_s = Seconds(start, SteadyClock::now());
    sample.code = status.code();
    sample.tokens = static_cast<int>(answer.tokens().size());
    sample.kv_bytes = answer.done().served_by().kv_bytes_moved();
    sample.attempts = answer.done().served_by().attempts();
    if (!status.ok()) RememberError(status);
    return sample;
  }

  // One error in full is enough; the report counts the rest.
  void RememberError(const absl::Status& status) {
    const std::lock_guard lock(mutex_);
    if (!error_shown_) Fail(status);
    error_shown_ = true;
  }

  // Until all requests have ended: a bar on a terminal, else a line every tenth of the run.
  void ShowProgress() {
    const bool terminal = isatty(STDERR_FILENO) == 1;
    int tenths_shown = 0;
    std::unique_lock lock(mutex_);
    while (true) {
      const int finished = report_.finished();
      const int tenths = static_cast<int>(int64_t{10} * finished / options_.bench.requests);
      if (terminal || tenths > tenths_shown) PrintProgress(terminal);
      tenths_shown = tenths;
      if (finished == options_.bench.requests) break;
      changed_.wait_for(lock, kProgressInterval);
    }
    if (terminal) std::fputs("\n", stderr);
  }

  void PrintProgress(bool terminal) const {
    const double elapsed_s = std::max(Seconds(started_, SteadyClock::now()), 1e-9);
    const int filled =
        static_cast<int>(int64_t{kBarWidth} * report_.finished() / options_.bench.requests);
    const std::string bar = std::string(filled, '#') + std::string(kBarWidth - filled, '.');
    const std::string line =
        fmt::format("{}/{} requests, {} failed, {:.1f} tokens/s", report_.finished(),
                    options_.bench.requests, report_.failed(), report_.tokens() / elapsed_s);
    std::fprintf(stderr, terminal ? "\r[%s] %s \x1b[K" : "%.0s%s\n", bar.c_str(), line.c_str());
    std::fflush(stderr);
  }

  const Options& options_;
  const uint64_t seed_;
  Client client_;
  SteadyClock::time_point started_;
  std::atomic<int> next_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  BenchReport report_;
  bool error_shown_ = false;
};

}  // namespace

std::vector<int32_t> RandomPrompt(const BenchOptions& options, uint64_t seed, int index) {
  std::seed_seq sequence{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
                         static_cast<uint32_t>(index)};
  std::mt19937_64 random(sequence);
  const uint64_t range = static_cast<uint64_t>(options.token_id_max) - options.token_id_min + 1;
  std::vector<int32_t> ids(options.prompt_tokens);
  for (int32_t& id : ids) id = options.token_id_min + static_cast<int32_t>(random() % range);
  return ids;
}

int RunBench(const Options& options) {
  const uint64_t drawn = (uint64_t{std::random_device()()} << 32) | std::random_device()();
  // A cluster that is not there fails once and not once a request.
  if (const auto status = Client(options.router, 0).ClusterStatus(); !status.ok()) {
    return Fail(status.status());
  }
  const BenchReport report = Bench(options, options.bench.seed.value_or(drawn)).Run();
  std::fputs((options.json ? report.Json() : report.Text()).c_str(), stdout);
  return report.failed() == 0 ? 0 : 1;
}

}  // namespace trivium::cli
