// Values as text: Python's str and repr, JSON as Hugging Face writes it, HTML escapes, "%s" and
// "{}". INVALID_ARGUMENT for what has no such form, RESOURCE_EXHAUSTED where the workspace is used
// up.
#pragma once

#include <absl/functional/function_ref.h>

#include "common/model/jinja/text_builder.h"
#include "common/model/jinja/value.h"

namespace trivium::model::jinja {

absl::Status AppendStr(TextBuilder& out, const Value& value);
absl::Status AppendRepr(TextBuilder& out, const Value& value, int depth = 0);
absl::StatusOr<Value> ToText(Workspace& ws, const Value& value);  // str(value); a text stays itself
std::string FloatRepr(double f);
constexpr uint64_t kFloatReprSteps = 4;

struct JsonOptions {
  bool ensure_ascii = false;
  bool sort_keys = false;
  bool lines = false;  // one item a line
  std::u32string indent;
  std::u32string item_separator = U", ";
  std::u32string key_separator = U": ";
};
absl::Status AppendJson(TextBuilder& out, const Value& value, const JsonOptions& options);

// Appends `text`, but for what `escape_of` has an escape: asked for every character that is not a
// letter, digit or plain sign of ASCII, it answers with nothing where one stands for itself.
absl::Status AppendEscaping(TextBuilder& out, Text text,
                            absl::FunctionRef<std::string(char32_t)> escape_of);
absl::Status AppendEscaped(TextBuilder& out, Text text);  // & < > ' "
// ASCII that stands for one character and keeps its mark.
absl::Status AppendMarked(TextBuilder& out, std::string_view ascii, char32_t origin);

// format % argument, with %s %r %d %i %f %x and flags, width, precision.
absl::StatusOr<Value> FormatPercent(Workspace& ws, const Value& format, const Value& argument);
// format.format(...), with fields {} {0} {name} and no format specifications.
absl::StatusOr<Value> FormatBraces(Workspace& ws, Text format, const Args& args);

}  // namespace trivium::model::jinja
