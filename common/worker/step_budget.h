// How much a step may hold: rows, and seconds by the measured cost of steps, so that those who run
// get their next token in time (Sarathi-Serve, section 4.3, with time in the place of tokens).
// Plain values; `cost` outlives them.
#pragma once

#include <cstdint>
#include <limits>

#include "common/engine/step_cost.h"

namespace trivium::worker {

// Rows of a step, and the sum over them of the keys that each sees.
struct StepLoad {
  int64_t rows = 0;
  int64_t keys = 0;

  void Add(int64_t position, int64_t count) {
    rows += count;
    keys += engine::KeysOfRange(position, count);
  }
  // What is left of it where its rows pass `part` of `all` layers; never nothing of something.
  StepLoad Share(int part, int all) const {
    return {(rows * part + all - 1) / all, (keys * part + all - 1) / all};
  }
  friend StepLoad operator+(StepLoad a, StepLoad b) { return {a.rows + b.rows, a.keys + b.keys}; }
};

struct StepBudget {
  int32_t rows = std::numeric_limits<int32_t>::max();
  double seconds = 0;  // 0: no bound
  const engine::StepCost* cost = nullptr;

  // Of all rows of the step. Nothing fits into seconds as long as no step was measured.
  bool Holds(StepLoad load) const { return load.rows <= rows && IsInTime(load); }
  bool IsInTime(StepLoad load) const {
    return seconds <= 0 || cost->PredictAtMost(load.rows, load.keys) <= seconds;
  }
};

}  // namespace trivium::worker
