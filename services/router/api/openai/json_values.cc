#include "services/router/api/openai/json_values.h"

#include <algorithm>
#include <limits>

namespace trivium::router::openai {
namespace {

using Type = simdjson::dom::element_type;

std::string_view KindOf(Element value) {
  switch (value.type()) {
    case Type::ARRAY:
      return "an array";
    case Type::OBJECT:
      return "an object";
    case Type::STRING:
      return "a string";
    case Type::BOOL:
      return "a truth value";
    case Type::NULL_VALUE:
      return "null";
    default:
      return "a number";
  }
}

}  // namespace

absl::Status At(std::string_view field, const absl::Status& status) {
  if (status.ok()) return status;
  const std::string what = Message(status);
  const bool goes_on = !what.empty() && (what[0] == '[' || what[0] == '.');
  return InvalidArgument("{}{}{}", field, goes_on ? "" : ": ", what);
}

absl::Status WrongType(Element value, std::string_view wanted) {
  return InvalidArgument("must be {}, is {}", wanted, KindOf(value));
}

absl::StatusOr<bool> Bool(Element value) {
  bool out = false;
  if (value.get(out) != simdjson::SUCCESS) return WrongType(value, "true or false");
  return out;
}

absl::StatusOr<std::string> String(Element value) {
  std::string_view out;
  if (value.get(out) != simdjson::SUCCESS) return WrongType(value, "a string");
  return std::string(out);
}

absl::StatusOr<float> Number(Element value) {
  double out = 0;
  if (value.get(out) != simdjson::SUCCESS) return WrongType(value, "a number");
  constexpr double kMax = std::numeric_limits<float>::max();
  return static_cast<float>(std::clamp(out, -kMax, kMax));
}

absl::StatusOr<int32_t> Integer(Element value) {
  int64_t out = 0;
  if (value.is<double>() && !value.is<int64_t>() && !value.is<uint64_t>()) {
    return InvalidArgument("must be a whole number");
  }
  const auto error = value.get(out);
  if (error == simdjson::INCORRECT_TYPE) return WrongType(value, "a whole number");
  if (error != simdjson::SUCCESS || out != static_cast<int32_t>(out)) {
    return InvalidArgument("does not fit in 32 bits");
  }
  return static_cast<int32_t>(out);
}

absl::StatusOr<simdjson::dom::array> Array(Element value, std::string_view wanted) {
  simdjson::dom::array out;
  if (value.get(out) != simdjson::SUCCESS) return WrongType(value, wanted);
  return out;
}

absl::StatusOr<simdjson::dom::object> Object(Element value) {
  simdjson::dom::object out;
  if (value.get(out) != simdjson::SUCCESS) return WrongType(value, "an object");
  return out;
}

}  // namespace trivium::router::openai
