// One level of the interpreter's recursion: a step, and a bounded part of the stack. For one
// thread.
#pragma once

#include "common/model/jinja/interpreter.h"

namespace trivium::model::jinja {

class Interpreter::Level {
 public:
  explicit Level(Interpreter& interpreter) : in_(interpreter) { ++in_.depth_; }
  ~Level() { --in_.depth_; }
  Level(const Level&) = delete;
  Level& operator=(const Level&) = delete;

  absl::Status Check() const {
    // A level takes up to a kilobyte of the stack, several times that under a sanitizer.
    constexpr int kDepthMax = 500;
    if (in_.depth_ > kDepthMax) return ResourceExhausted("calls are nested too deeply");
    return in_.ws_.Spend(1);
  }

 private:
  Interpreter& in_;
};

}  // namespace trivium::model::jinja
