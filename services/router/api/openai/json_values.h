// A JSON value read as the type that a field wants. Only for the .cc files of this folder: it
// brings in simdjson.
//
// Errors are INVALID_ARGUMENT and do not name the field: "must be a number, is a string". Those of
// a part of the field begin with [3] or .name; At puts a name in front of either. Stateless; safe
// from any thread.
#pragma once

#include <simdjson.h>

#include <string>
#include <string_view>

#include "common/base/status.h"

namespace trivium::router::openai {

using Element = simdjson::dom::element;

// Of a client's text, in messages.
inline constexpr size_t kShownMax = 40;

absl::Status At(std::string_view field, const absl::Status& status);
absl::Status WrongType(Element value, std::string_view wanted);

absl::StatusOr<bool> Bool(Element value);
absl::StatusOr<std::string> String(Element value);
absl::StatusOr<float> Number(Element value);  // beyond a float's range: the largest one
absl::StatusOr<int32_t> Integer(Element value);
absl::StatusOr<simdjson::dom::array> Array(Element value, std::string_view wanted);
absl::StatusOr<simdjson::dom::object> Object(Element value);

}  // namespace trivium::router::openai
