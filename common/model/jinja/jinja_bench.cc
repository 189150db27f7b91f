// How long hostile templates run until a rendering's bounds stop them: the best of three times, in
// milliseconds of this thread's processor time and of the clock, the longest last.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <ctime>

#include "common/model/chat_template.h"
#include "common/model/jinja/testing/hostile_templates.h"

namespace trivium::model::jinja {
namespace {

double ProcessorMs() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) / 1e6;
}

struct Result {
  double ms = 0, clock_ms = 0;
  bool stopped = false;
  uint64_t steps = 0;
  std::string source;
};

// All a request pays for: the workspace's memory is taken and given back within the time.
Result Run(const std::string& source) {
  using Clock = std::chrono::steady_clock;
  Result result{1e9, 1e9, false, 0, source};
  const absl::StatusOr<Template> parsed = Template::Parse(source);
  if (!parsed.ok()) return result;
  for (int i = 0; i < 3; ++i) {
    const auto begin = Clock::now();
    const double begin_ms = ProcessorMs();
    {
      Workspace workspace(kTemplateStepsBase, kTemplateBytesBase, 0);
      const auto text = parsed->Render(workspace, {});
      result.stopped = text.status().code() == absl::StatusCode::kResourceExhausted;
      result.steps = workspace.steps_used();
    }
    const std::chrono::duration<double, std::milli> took = Clock::now() - begin;
    result.ms = std::min(result.ms, ProcessorMs() - begin_ms);
    result.clock_ms = std::min(result.clock_ms, took.count());
  }
  return result;
}

int Main() {
  std::vector<Result> results;
  for (const std::string& source : HostileTemplates()) results.push_back(Run(source));
  std::sort(results.begin(), results.end(),
            [](const Result& a, const Result& b) { return a.ms < b.ms; });
  for (const Result& result : results) {
    const size_t size = result.source.size();
    const std::string shown = size <= 160 ? result.source
                                          : fmt::format("{} ... {}", result.source.substr(0, 80),
                                                        result.source.substr(size - 80));
    fmt::print("{:8.2f} {:8.2f} ms  {:6} steps  {}  {}\n", result.ms, result.clock_ms, result.steps,
               result.stopped ? "stopped" : "NOT STOPPED", shown);
  }
  return std::all_of(results.begin(), results.end(), [](const Result& r) { return r.stopped; }) ? 0
                                                                                                : 1;
}

}  // namespace
}  // namespace trivium::model::jinja

int main() { return trivium::model::jinja::Main(); }
