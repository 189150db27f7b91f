#include <fmt/format.h>
#include <google/protobuf/message.h>

#include <vector>

#include "common/config/config.h"

namespace trivium::config {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// Text that every YAML reader takes for the same string without quotes.
bool IsPlain(std::string_view text) {
  constexpr std::string_view kFirst = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ/";
  constexpr std::string_view kRest =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-,";
  if (text.empty() || kFirst.find(text[0]) == std::string_view::npos) return false;
  if (text.find_first_not_of(kRest) != std::string_view::npos) return false;
  for (std::string_view word : {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}) {
    const bool same =
        text.size() == word.size() && std::equal(text.begin(), text.end(), word.begin(),
                                                 [](char a, char b) { return (a | 0x20) == b; });
    if (same) return false;
  }
  return true;
}

std::string Quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string Text(const std::string& text) { return IsPlain(text) ? text : Quoted(text); }

std::string Scalar(const Message& message, const FieldDescriptor& field) {
  const auto& reflection = *message.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return fmt::format("{}", reflection.GetInt32(message, &field));
    case FieldDescriptor::CPPTYPE_INT64:
      return fmt::format("{}", reflection.GetInt64(message, &field));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return fmt::format("{}", reflection.GetDouble(message, &field));
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection.GetBool(message, &field) ? "true" : "false";
    default:
      return Text(reflection.GetString(message, &field));
  }
}

// Appends the fields of `message`, each line behind `indent`, the first line behind `first_indent`.
void Append(const Message& message, const std::string& first_indent, const std::string& indent,
            std::string* out) {
  const auto& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  if (fields.empty()) *out += first_indent + "{}\n";
  for (const FieldDescriptor* field : fields) {
    *out += (field == fields.front() ? first_indent : indent) + field->name() + ":";
    if (field->is_repeated()) {
      *out += "\n";
      for (int i = 0; i < reflection.FieldSize(message, field); ++i) {
        if (field->message_type() == nullptr) {
          *out += indent + "  - " + Text(reflection.GetRepeatedString(message, field, i)) + "\n";
          continue;
        }
        Append(reflection.GetRepeatedMessage(message, field, i), indent + "  - ", indent + "    ",
               out);
      }
    } else if (field->message_type() != nullptr) {
      *out += "\n";
      Append(reflection.GetMessage(message, field), indent + "  ", indent + "  ", out);
    } else {
      *out += " " + Scalar(message, *field) + "\n";
    }
  }
}

}  // namespace

std::string ToYaml(const Message& message) {
  std::string out;
  Append(message, "", "", &out);
  return out;
}

}  // namespace trivium::config
