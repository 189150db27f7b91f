#include "services/cli/watch_view.h"

#include <fmt/format.h>

#include <algorithm>

#include "common/net/text.h"

namespace trivium::cli {
namespace {

constexpr size_t kBarCells = 20;
constexpr size_t kNameBytesMax = 24;
constexpr size_t kDetailBytesMax = 120;

std::string Rate(std::optional<double> per_second) {
  return per_second ? fmt::format("{:.1f}", *per_second) : "-";
}

int StageOrder(const std::string& role) {
  if (role == "prefill") return 0;
  return role == "decode" ? 1 : 2;
}

std::vector<v1::WorkerStatus> ByStage(const v1::ClusterStatusResponse& status) {
  std::vector<v1::WorkerStatus> workers(status.workers().begin(), status.workers().end());
  std::stable_sort(workers.begin(), workers.end(), [](const auto& a, const auto& b) {
    return StageOrder(a.role()) < StageOrder(b.role());
  });
  return workers;
}

}  // namespace

std::string Bar(int64_t used, int64_t total, size_t width) {
  const double share =
      total > 0 ? std::clamp(static_cast<double>(used) / static_cast<double>(total), 0.0, 1.0) : 0;
  const auto filled = static_cast<size_t>(share * static_cast<double>(width) + 0.5);
  return fmt::format("[{}{}] {:3.0f} %", std::string(filled, '#'), std::string(width - filled, '.'),
                     share * 100);
}

std::string CutToWidth(const std::string& text, size_t columns) {
  size_t end = 0;
  for (; columns > 0 && end < text.size(); --columns) {
    end += std::max<size_t>(1, net::Utf8CharBytes(std::string_view(text).substr(end)));
  }
  return text.substr(0, end);
}

std::string Redraw(const std::vector<std::string>& lines) {
  std::string out = "\x1b[H";
  for (size_t i = 0; i < lines.size(); ++i) {
    // No line break behind the last, which would scroll a full window.
    out += lines[i] + "\x1b[K" + (i + 1 < lines.size() ? "\r\n" : "");
  }
  return out + "\x1b[J";
}

void WatchView::Update(const v1::ClusterStatusResponse& status, TimePoint now) {
  before_ = std::move(now_);
  now_ = status;
  if (updated_) interval_s_ = std::chrono::duration<double>(now - *updated_).count();
  updated_ = now;
}

std::optional<double> WatchView::StepsPerSecond(const v1::WorkerStatus& worker) const {
  for (const v1::WorkerStatus& old : before_.workers()) {
    const bool same_life = old.address() == worker.address() && old.epoch() == worker.epoch();
    if (same_life && worker.steps() >= old.steps() && interval_s_ > 0) {
      return static_cast<double>(worker.steps() - old.steps()) / interval_s_;
    }
  }
  return std::nullopt;
}

std::optional<double> WatchView::TokensPerSecond() const {
  if (interval_s_ <= 0 || now_.output_tokens() < before_.output_tokens()) return std::nullopt;
  return static_cast<double>(now_.output_tokens() - before_.output_tokens()) / interval_s_;
}

std::string WatchView::WorkerLine(const v1::WorkerStatus& w) const {
  const std::string name = net::Escape(w.id().empty() ? w.address() : w.id(), kNameBytesMax);
  std::string line =
      fmt::format("  {:<24} {:<11} {:>4} {:>4}  {} {:>8}", name, net::Escape(w.state(), 11),
                  w.requests_running(), w.requests_waiting(),
                  Bar(int64_t{w.blocks_used()} + w.blocks_leased(), w.blocks_total(), kBarCells),
                  Rate(StepsPerSecond(w)));
  if (!w.detail().empty()) line += "  " + net::Escape(w.detail(), kDetailBytesMax);
  return line;
}

std::vector<std::string> WatchView::Lines(size_t columns) const {
  std::vector<std::string> lines = {
      fmt::format("router {}: {} running, {} in the queue, {} tokens/s",
                  net::Escape(now_.router_version(), kNameBytesMax), now_.requests_running(),
                  now_.requests_waiting(), Rate(TokensPerSecond())),
      ""};
  lines.push_back(fmt::format("  {:<24} {:<11} {:>4} {:>4}  {:<28} {:>8}", "WORKER", "STATE", "RUN",
                              "WAIT", "KV BLOCKS", "STEPS/S"));
  std::string stage;
  for (const v1::WorkerStatus& worker : ByStage(now_)) {
    if (worker.role() != stage) lines.push_back(net::Escape(worker.role(), kNameBytesMax));
    stage = worker.role();
    lines.push_back(WorkerLine(worker));
  }
  for (std::string& line : lines) line = CutToWidth(line, columns);
  return lines;
}

std::string WatchView::Summary() const {
  std::string line =
      fmt::format("{} running, {} in the queue, {} tokens/s", now_.requests_running(),
                  now_.requests_waiting(), Rate(TokensPerSecond()));
  for (const v1::WorkerStatus& w : ByStage(now_)) {
    line +=
        fmt::format("; {} {} {} running {} waiting {} KV {}/{}",
                    net::Escape(w.role(), kNameBytesMax), net::Escape(w.id(), kNameBytesMax),
                    net::Escape(w.state(), kNameBytesMax), w.requests_running(),
                    w.requests_waiting(), w.blocks_used() + w.blocks_leased(), w.blocks_total());
  }
  return line;
}

}  // namespace trivium::cli
