// What a string in a template's source stands for. Stateless; safe from any thread.
#pragma once

#include <string>

#include "common/base/status.h"
#include "common/model/jinja/text.h"

namespace trivium::model::jinja {

// Python's escapes but \N{…}; unknown ones stand for themselves. INVALID_ARGUMENT: a broken one.
absl::StatusOr<std::u32string> Unescaped(Text literal);

}  // namespace trivium::model::jinja
