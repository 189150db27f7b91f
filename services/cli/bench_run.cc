#include "services/cli/bench_run.h"

#include <unistd.h>

#include <cstdio>

#include "services/cli/bench.h"

namespace trivium::cli {
namespace {

constexpr auto kProgressInterval = std::chrono::milliseconds(200);
constexpr int kBarWidth = 30;

double Seconds(BenchRun::Clock::time_point from, BenchRun::Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

BenchRun::BenchRun(const Options& options, uint64_t seed, int requests)
    : options_(options),
      seed_(seed),
      requests_(requests),
      client_(options.router, options.timeout_s, options.api_key),
      started_(Clock::now()),
      report_(seed, options.bench.targets) {}

void BenchRun::Send(int index, const Arrival& arrival, Clock::time_point due) {
  BenchSample sample = Measure(index, arrival, due);
  sample.warm_up = IsWarmUp(arrival);
  Add(sample);
}

void BenchRun::Drop(const Arrival& arrival) {
  BenchSample sample;
  sample.dropped = true;
  sample.warm_up = IsWarmUp(arrival);
  Add(sample);
}

bool BenchRun::IsWarmUp(const Arrival& arrival) const {
  return arrival.at_s < options_.bench.warm_up_s;
}

void BenchRun::Add(const BenchSample& sample) {
  const std::lock_guard lock(mutex_);
  report_.Add(sample);
  report_.SetElapsed(std::max(Seconds(started_, Clock::now()) - options_.bench.warm_up_s, 0.0));
  changed_.notify_one();
}

BenchSample BenchRun::Measure(int index, const Arrival& arrival, Clock::time_point due) {
  v1::GenerateRequest request;
  const std::vector<int32_t> ids =
      RandomPrompt(options_.bench, seed_, index, arrival.prompt_tokens);
  request.mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
  request.mutable_sampling()->set_max_tokens(arrival.output_tokens);
  request.mutable_sampling()->set_ignore_eos(true);
  Answer answer;
  BenchSample sample;
  sample.late_s = Seconds(due, Clock::now());
  const absl::Status status = client_.Generate(request, &answer, [&](const v1::Delta& delta) {
    if (sample.first_token_s == 0 && delta.tokens_size() > 0) {
      sample.first_token_s = Seconds(due, Clock::now());
    }
  });
  sample.total_s = Seconds(due, Clock::now());
  sample.code = status.code();
  sample.tokens = static_cast<int>(answer.tokens().size());
  sample.kv_bytes = answer.done().served_by().kv_bytes_moved();
  sample.attempts = answer.done().served_by().attempts();
  if (!status.ok()) RememberError(status);
  return sample;
}

// One error in full is enough; the report counts the rest.
void BenchRun::RememberError(const absl::Status& status) {
  const std::lock_guard lock(mutex_);
  if (!error_shown_) Fail(status);
  error_shown_ = true;
}

void BenchRun::ShowProgress() {
  const bool terminal = isatty(STDERR_FILENO) == 1;
  int tenths_shown = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    const int tenths = static_cast<int>(int64_t{10} * report_.finished() / requests_);
    if (terminal || tenths > tenths_shown) PrintProgress(terminal);
    tenths_shown = tenths;
    if (report_.finished() == requests_) break;
    changed_.wait_for(lock, kProgressInterval);
  }
  if (terminal) std::fputs("\n", stderr);
}

void BenchRun::PrintProgress(bool terminal) const {
  const double elapsed_s =
      std::max(Seconds(started_, Clock::now()) - options_.bench.warm_up_s, 1e-9);
  const int filled = static_cast<int>(int64_t{kBarWidth} * report_.finished() / requests_);
  const std::string bar = std::string(filled, '#') + std::string(kBarWidth - filled, '.');
  const double tokens_per_second = static_cast<double>(report_.tokens()) / elapsed_s;
  const std::string line =
      fmt::format("{}/{} requests, {} failed, {:.1f} tokens/s", report_.finished(), requests_,
                  report_.failed(), report_.tokens() > 0 ? tokens_per_second : 0.0);
  std::fprintf(stderr, terminal ? "\r[%s] %s \x1b[K" : "%.0s%s\n", bar.c_str(), line.c_str());
  std::fflush(stderr);
}

BenchReport BenchRun::Report() {
  const std::lock_guard lock(mutex_);
  return report_;
}

}  // namespace trivium::cli
