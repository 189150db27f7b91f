#include "common/config/fields.h"

#include <charconv>
#include <cmath>

#include "common/config/config.h"
#include "common/config/schema.h"
#include "common/net/text.h"

namespace trivium::config {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr size_t kTextBytesMax = 4096;

template <typename T>
absl::StatusOr<T> ParseNumber(const std::string& text, bool quoted, std::string_view kind,
                              const FieldRule* rule) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string allowed = rule == nullptr ? "" : "; allowed: " + Allowed(*rule);
  if (error == std::errc::result_out_of_range) {
    return InvalidArgument("{} does not fit{}", net::Escape(text, 40), allowed);
  }
  const bool whole = error == std::errc() && end == text.data() + text.size() && !quoted;
  if (!whole || !std::isfinite(static_cast<double>(value))) {
    return InvalidArgument("\"{}\" is not {}{}", net::Escape(text, 40), kind, allowed);
  }
  return value;
}

absl::StatusOr<int64_t> ParseInteger(const std::string& text, bool quoted, const FieldRule* rule) {
  if (rule != nullptr && rule->is_bytes) return ParseBytes(text);
  return ParseNumber<int64_t>(text, quoted, "a whole number", rule);
}

absl::StatusOr<bool> ParseBool(const std::string& text, bool quoted) {
  if (!quoted && (text == "true" || text == "false")) return text == "true";
  return InvalidArgument("\"{}\" is not a truth value; allowed: true, false",
                         net::Escape(text, 40));
}

absl::Status SetInteger(Message* message, const FieldDescriptor& field, const std::string& text,
                        bool quoted) {
  const FieldRule* rule = FindRule(field);
  ASSIGN_OR_RETURN(const int64_t value, ParseInteger(text, quoted, rule));
  if (rule != nullptr) RETURN_IF_ERROR(CheckNumber(*rule, static_cast<double>(value)));
  const Reflection& reflection = *message->GetReflection();
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_INT64) {
    reflection.SetInt64(message, &field, value);
    return absl::OkStatus();
  }
  if (value != static_cast<int32_t>(value)) return InvalidArgument("{} does not fit", value);
  reflection.SetInt32(message, &field, static_cast<int32_t>(value));
  return absl::OkStatus();
}

absl::Status SetDouble(Message* message, const FieldDescriptor& field, const std::string& text,
                       bool quoted) {
  const FieldRule* rule = FindRule(field);
  ASSIGN_OR_RETURN(const double value, ParseNumber<double>(text, quoted, "a number", rule));
  if (rule != nullptr) RETURN_IF_ERROR(CheckNumber(*rule, value));
  message->GetReflection()->SetDouble(message, &field, value);
  return absl::OkStatus();
}

absl::Status SetString(Message* message, const FieldDescriptor& field, const std::string& text) {
  if (text.size() > kTextBytesMax) return InvalidArgument("longer than {} bytes", kTextBytesMax);
  if (!net::IsUtf8(text)) return InvalidArgument("not valid UTF-8");
  const FieldRule* rule = FindRule(field);
  if (rule != nullptr) RETURN_IF_ERROR(CheckText(*rule, text));
  const Reflection& reflection = *message->GetReflection();
  if (field.is_repeated()) {
    reflection.AddString(message, &field, text);
  } else {
    reflection.SetString(message, &field, text);
  }
  return absl::OkStatus();
}

// Current value against the rule; the default where there is none.
absl::Status CompleteScalar(Message* message, const FieldDescriptor& field) {
  const FieldRule* rule = FindRule(field);
  if (rule == nullptr) return absl::OkStatus();
  const Reflection& reflection = *message->GetReflection();
  const bool set = reflection.HasField(*message, &field);
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      if (!set) reflection.SetInt32(message, &field, static_cast<int32_t>(rule->value));
      return CheckNumber(*rule, reflection.GetInt32(*message, &field));
    case FieldDescriptor::CPPTYPE_INT64:
      if (!set) reflection.SetInt64(message, &field, static_cast<int64_t>(rule->value));
      return CheckNumber(*rule, static_cast<double>(reflection.GetInt64(*message, &field)));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      if (!set) reflection.SetDouble(message, &field, rule->value);
      return CheckNumber(*rule, reflection.GetDouble(*message, &field));
    default:
      if (!set && !rule->text.empty())
        reflection.SetString(message, &field, std::string(rule->text));
      return CheckText(*rule, reflection.GetString(*message, &field));
  }
}

// Each item of a list of messages completed; each of a list of texts checked.
absl::Status CompleteList(Message* message, const FieldDescriptor& field, const std::string& path) {
  const Reflection& reflection = *message->GetReflection();
  const FieldRule* rule = FindRule(field);
  for (int i = 0; i < reflection.FieldSize(*message, &field); ++i) {
    const std::string place = fmt::format("{}[{}]", path, i);
    if (field.message_type() != nullptr) {
      Message* item = reflection.MutableRepeatedMessage(message, &field, i);
      RETURN_IF_ERROR(CompleteFields(item, place + "."));
    } else if (rule != nullptr) {
      const absl::Status status =
          CheckText(*rule, reflection.GetRepeatedString(*message, &field, i));
      if (!status.ok()) return InvalidArgument("{}: {}", place, ::trivium::Message(status));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status SetFromText(Message* message, const FieldDescriptor& field, const std::string& text,
                         bool quoted) {
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
    case FieldDescriptor::CPPTYPE_INT64:
      return SetInteger(message, field, text, quoted);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return SetDouble(message, field, text, quoted);
    case FieldDescriptor::CPPTYPE_STRING:
      return SetString(message, field, text);
    case FieldDescriptor::CPPTYPE_BOOL: {
      ASSIGN_OR_RETURN(const bool value, ParseBool(text, quoted));
      message->GetReflection()->SetBool(message, &field, value);
      return absl::OkStatus();
    }
    default:
      break;
  }
  Die(__FILE__, __LINE__, "field type", field.full_name() + " has a type that YAML does not carry");
}

absl::Status SetByPath(Message* message, std::string_view path, const std::string& text) {
  for (size_t dot; (dot = path.find('.')) != std::string_view::npos; path.remove_prefix(dot + 1)) {
    const auto* field = message->GetDescriptor()->FindFieldByName(std::string(path.substr(0, dot)));
    TRIVIUM_CHECK(field != nullptr && field->message_type() != nullptr, "no message {}", path);
    message = message->GetReflection()->MutableMessage(message, field);
  }
  const auto* field = message->GetDescriptor()->FindFieldByName(std::string(path));
  TRIVIUM_CHECK(field != nullptr && !field->is_repeated(), "no field {}", path);
  return SetFromText(message, *field, text, false);
}

absl::Status CompleteFields(Message* message, const std::string& prefix) {
  const Reflection& reflection = *message->GetReflection();
  for (int i = 0; i < message->GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor& field = *message->GetDescriptor()->field(i);
    const std::string path = prefix + field.name();
    if (field.is_repeated()) {
      RETURN_IF_ERROR(CompleteList(message, field, path));
    } else if (field.message_type() != nullptr) {
      RETURN_IF_ERROR(CompleteFields(reflection.MutableMessage(message, &field), path + "."));
    } else if (const absl::Status status = CompleteScalar(message, field); !status.ok()) {
      return InvalidArgument("{}: {}", path, ::trivium::Message(status));
    }
  }
  return absl::OkStatus();
}

}  // namespace trivium::config
