// A template's source to a Program. Grammar as in Jinja2 with the loopcontrols extension and
// {% generation %}; what reads other templates (include, import, extends, block) is refused.
// Stateless; safe from any thread.
#pragma once

#include <memory>
#include <string_view>

#include "common/base/status.h"
#include "common/model/jinja/ast.h"

namespace trivium::model::jinja {

// INVALID_ARGUMENT, naming the line and what is wrong; also for nesting beyond bounds.
absl::StatusOr<std::unique_ptr<const Program>> Parse(std::string_view source);

}  // namespace trivium::model::jinja
