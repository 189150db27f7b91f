#include "common/model/jinja/format.h"

#include <charconv>
#include <cmath>
#include <cstdlib>

namespace trivium::model::jinja {
namespace {

// What some kind of text escapes, of the printable ASCII characters.
bool IsQuoting(char32_t c) {
  return c == '"' || c == '\'' || c == '\\' || c == '&' || c == '<' || c == '>';
}

// Empty where the character stands for itself.
std::string ReprEscape(char32_t c, char32_t quote) {
  if (c == '\n') return "\\n";
  if (c == '\r') return "\\r";
  if (c == '\t') return "\\t";
  if (c == '\\' || c == quote) return fmt::format("\\{}", static_cast<char>(c));
  const uint32_t number = c;
  if (IsPrintable(c)) return "";
  if (number < 0x100) return fmt::format("\\x{:02x}", number);
  return number < 0x10000 ? fmt::format("\\u{:04x}", number) : fmt::format("\\U{:08x}", number);
}

absl::Status AppendTextRepr(TextBuilder& out, Text text) {
  bool single = false, twofold = false;
  for (char32_t c : text) {
    single |= Plain(c) == '\'';
    twofold |= Plain(c) == '"';
  }
  const char32_t quote = single && !twofold ? '"' : '\'';
  RETURN_IF_ERROR(out.Repeat(quote, 1));
  RETURN_IF_ERROR(AppendEscaping(out, text, [quote](char32_t c) { return ReprEscape(c, quote); }));
  return out.Repeat(quote, 1);
}

absl::Status AppendListRepr(TextBuilder& out, const Value& value, int depth) {
  const bool tuple = value.kind == Kind::kTuple;
  RETURN_IF_ERROR(out.Append(tuple ? "(" : "["));
  bool first = true;
  for (const Value& item : value.sequence->items) {
    if (!first) RETURN_IF_ERROR(out.Append(", "));
    first = false;
    RETURN_IF_ERROR(AppendRepr(out, item, depth + 1));
  }
  if (tuple && value.sequence->items.size() == 1) RETURN_IF_ERROR(out.Append(","));
  return out.Append(tuple ? ")" : "]");
}

absl::Status AppendDictRepr(TextBuilder& out, const Dict& dict, int depth) {
  RETURN_IF_ERROR(out.Append("{"));
  for (size_t i = 0; i < dict.size; ++i) {
    if (i > 0) RETURN_IF_ERROR(out.Append(", "));
    RETURN_IF_ERROR(AppendRepr(out, dict.entries[i].key, depth + 1));
    RETURN_IF_ERROR(out.Append(": "));
    RETURN_IF_ERROR(AppendRepr(out, dict.entries[i].value, depth + 1));
  }
  return out.Append("}");
}

}  // namespace

absl::Status AppendMarked(TextBuilder& out, std::string_view ascii, char32_t origin) {
  for (const char c : ascii) {
    RETURN_IF_ERROR(out.Repeat(MarkLike(static_cast<unsigned char>(c), origin), 1));
  }
  return absl::OkStatus();
}

// Python's: the shortest digits that give the same number; an exponent outside of 1e-4 … 1e16.
std::string FloatRepr(double f) {
  if (std::isnan(f)) return "nan";
  if (std::isinf(f)) return f < 0 ? "-inf" : "inf";
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, f, std::chars_format::scientific);
  const std::string_view text(buffer, static_cast<size_t>(end.ptr - buffer));
  const int exponent = std::atoi(std::string(text.substr(text.find('e') + 1)).c_str());
  if (exponent < -4 || exponent >= 16) return std::string(text);
  char plain[64];
  const auto plain_end = std::to_chars(plain, plain + sizeof plain, f, std::chars_format::fixed);
  std::string out(plain, plain_end.ptr);
  if (out.find('.') == std::string::npos) out += ".0";
  return out;
}

absl::Status AppendRepr(TextBuilder& out, const Value& value, int depth) {
  RETURN_IF_ERROR(out.workspace().Spend(1));
  if (depth > kValueDepthMax) return ResourceExhausted("lists are nested too deeply");
  switch (value.kind) {
    case Kind::kText:
      return AppendTextRepr(out, value.text());
    case Kind::kUndefined:
      return out.Append("Undefined");
    case Kind::kNone:
      return out.Append("None");
    case Kind::kBool:
      return out.Append(value.boolean ? "True" : "False");
    case Kind::kInt:
      return out.Append(fmt::format("{}", value.integer));
    case Kind::kFloat:
      RETURN_IF_ERROR(out.workspace().Spend(kFloatReprSteps));
      return out.Append(FloatRepr(value.number));
    case Kind::kList:
    case Kind::kTuple:
      return AppendListRepr(out, value, depth);
    case Kind::kDict:
      return AppendDictRepr(out, *value.dict, depth);
    default:
      return InvalidArgument("{} cannot be printed", TypeName(value));
  }
}

absl::Status AppendStr(TextBuilder& out, const Value& value) {
  if (value.IsText()) return out.Append(value.text());
  if (value.IsUndefined()) return absl::OkStatus();
  return AppendRepr(out, value);
}

absl::StatusOr<Value> ToText(Workspace& ws, const Value& value) {
  if (value.IsText()) return value;
  TextBuilder out(ws);
  RETURN_IF_ERROR(AppendStr(out, value));
  return out.Finish();
}

absl::Status AppendEscaping(TextBuilder& out, Text text,
                            absl::FunctionRef<std::string(char32_t)> escape_of) {
  RETURN_IF_ERROR(out.workspace().SpendOnSearch(text.size()));
  size_t begin = 0;  // of what is not yet written
  for (size_t i = 0; i < text.size(); ++i) {
    const char32_t plain = Plain(text[i]);
    const bool common = plain >= 0x20 && plain < 0x7F && !IsQuoting(plain);
    if (common) continue;
    RETURN_IF_ERROR(out.workspace().Spend(1));
    const std::string escape = escape_of(plain);
    if (escape.empty()) continue;
    RETURN_IF_ERROR(out.Append(text.substr(begin, i - begin)));
    RETURN_IF_ERROR(AppendMarked(out, escape, text[i]));
    begin = i + 1;
  }
  return out.Append(text.substr(begin));
}

absl::Status AppendEscaped(TextBuilder& out, Text text) {
  return AppendEscaping(out, text, [](char32_t c) -> std::string {
    switch (c) {
      case '&':
        return "&amp;";
      case '<':
        return "&lt;";
      case '>':
        return "&gt;";
      case '\'':
        return "&#39;";
      case '"':
        return "&#34;";
      default:
        return "";
    }
  });
}

}  // namespace trivium::model::jinja
