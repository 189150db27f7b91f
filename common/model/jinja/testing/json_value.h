// JSON to the template interpreter's values, for tests and tools. Stateless; safe from any thread.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "common/model/jinja/value.h"

namespace trivium::model::jinja {

// Dictionaries keep their order. Nested as deep as `json` is: for trusted input.
absl::StatusOr<Value> FromJson(Workspace& workspace, const nlohmann::ordered_json& json);

}  // namespace trivium::model::jinja
