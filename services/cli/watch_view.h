// The live view of `status --watch` as lines of text. Pure: two snapshots, times and widths in,
// text out. One thread owns a view.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "trivium/v1/inference.pb.h"

namespace trivium::cli {

class WatchView {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  // The newest snapshot; rates come from it and the one before.
  void Update(const v1::ClusterStatusResponse& status, TimePoint now);

  // Workers by stage, prefill first; none wider than `columns`, of which there may be any number.
  std::vector<std::string> Lines(size_t columns) const;
  // The same in one line, for logs.
  std::string Summary() const;

 private:
  // Engine steps per second of a worker; unset until it has been seen twice in one life.
  std::optional<double> StepsPerSecond(const v1::WorkerStatus& worker) const;
  // Sent to clients by the router; unset until it has been seen twice in one life.
  std::optional<double> TokensPerSecond() const;
  std::string WorkerLine(const v1::WorkerStatus& worker) const;

  v1::ClusterStatusResponse before_, now_;
  double interval_s_ = 0;  // between the two; 0: there is one at most
  std::optional<TimePoint> updated_;
};

// "[####......]  40 %": `used` of `total` in `width` cells.
std::string Bar(int64_t used, int64_t total, size_t width);

// The first `columns` characters of UTF-8 text.
std::string CutToWidth(const std::string& text, size_t columns);

// What makes a terminal show `lines` in place of the frame before, without flicker: each line is
// overwritten and its rest erased, and what is below is erased.
std::string Redraw(const std::vector<std::string>& lines);

}  // namespace trivium::cli
