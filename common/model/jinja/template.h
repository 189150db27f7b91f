// A Jinja template: parsed once, rendered often, within bounds.
//
// What it does is what Jinja2 does in the environment that Hugging Face sets up for chat templates
// (immutable sandbox, trim_blocks, lstrip_blocks, loop controls, its own tojson), for the part of
// the language that chat templates use. Differences: integers have 64 bits, strftime_now tells UTC.
// Thread-safety: immutable; any thread. A Workspace belongs to one rendering.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "common/base/status.h"
#include "common/model/jinja/value.h"

namespace trivium::model::jinja {

struct Program;

class Template {
 public:
  // INVALID_ARGUMENT, naming the line and what is wrong.
  static absl::StatusOr<Template> Parse(std::string_view source);

  // The text, whose characters keep the marks of the variables' characters (see text.h).
  // `variables` are made in `workspace`, whose bounds hold: RESOURCE_EXHAUSTED beyond.
  // INVALID_ARGUMENT: what Jinja2 would raise, raise_exception included. Both name the line.
  absl::StatusOr<std::u32string> Render(Workspace& workspace,
                                        std::span<const NamedValue> variables) const;

 private:
  explicit Template(std::shared_ptr<const Program> program) : program_(std::move(program)) {}

  std::shared_ptr<const Program> program_;
};

}  // namespace trivium::model::jinja
