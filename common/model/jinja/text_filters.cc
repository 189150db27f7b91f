#include <cmath>
#include <cstdlib>

#include "common/model/jinja/builtins.h"
#include "common/model/jinja/format.h"

namespace trivium::model::jinja {
namespace {

using Result = absl::StatusOr<Value>;

// Reading or rounding a number takes up to a microsecond.
constexpr uint64_t kNumeralSteps = 20;

template <Case kCase>
Result ToCaseFilter(Workspace& ws, const Value& v, const Args& args) {
  RETURN_IF_ERROR(Bind<0>(args, {}).status());
  ASSIGN_OR_RETURN(const Value text, ToText(ws, v));
  RETURN_IF_ERROR(ws.SpendOnProperties(text.size));
  RETURN_IF_ERROR(ws.Charge(text.size, sizeof(char32_t)));
  return ws.NewText(ToCase(text.text(), kCase));
}

// Jinja2's own rule: a word begins after white space, a hyphen or an opening bracket.
Result TitleFilter(Workspace& ws, const Value& v, const Args& args) {
  RETURN_IF_ERROR(Bind<0>(args, {}).status());
  ASSIGN_OR_RETURN(const Value text, ToText(ws, v));
  RETURN_IF_ERROR(ws.SpendOnProperties(text.size));
  RETURN_IF_ERROR(ws.Charge(text.size, sizeof(char32_t)));
  std::u32string out;
  bool begins = true;
  for (size_t i = 0; i < text.size; ++i) {
    AppendCased(text.text(), i, begins ? Case::kUpper : Case::kLower, out);
    const char32_t c = Plain(text.text()[i]);
    begins = IsSpace(c) || Text(U"-({[<").find(c) != kNotFound;
  }
  return ws.NewText(out);
}

Result CapitalizeFilter(Workspace& ws, const Value& v, const Args& args) {
  RETURN_IF_ERROR(Bind<0>(args, {}).status());
  ASSIGN_OR_RETURN(const Value text, ToText(ws, v));
  RETURN_IF_ERROR(ws.SpendOnProperties(text.size));
  RETURN_IF_ERROR(ws.Charge(text.size, sizeof(char32_t)));
  return ws.NewText(Capitalized(text.text()));
}

Result TrimFilter(Workspace& ws, const Value& v, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, Bind<1>(args, {"chars"}));
  ASSIGN_OR_RETURN(Value text, ToText(ws, v));
  Text characters;
  const bool chosen = given[0] != nullptr && !given[0]->IsNone();
  if (chosen) {
    ASSIGN_OR_RETURN(characters, NeedText(given[0]));
  }
  RETURN_IF_ERROR(ws.SpendOnText(chosen ? text.size * characters.size() : text.size));
  const Text stripped = Strip(text.text(), chosen ? &characters : nullptr, true, true);
  text.characters = stripped.data();
  text.size = static_cast<uint32_t>(stripped.size());
  return text;
}

Result ReplaceFilter(Workspace& ws, const Value& v, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, Bind<3>(args, {"old", "new", "count"}));
  ASSIGN_OR_RETURN(const Value text, ToText(ws, v));
  if (given[0] == nullptr || given[1] == nullptr) return InvalidArgument("needs two texts");
  ASSIGN_OR_RETURN(const Value wanted, ToText(ws, *given[0]));
  ASSIGN_OR_RETURN(const Value replacement, ToText(ws, *given[1]));
  int64_t count = -1;
  if (given[2] != nullptr && !given[2]->IsNone()) {
    ASSIGN_OR_RETURN(count, IntegerOr(given[2], -1));
  }
  const Value values[] = {wanted, replacement, Int(count)};
  ASSIGN_OR_RETURN(const Value method, FindMethod(ws, text, U"replace"));
  return method.method->info->call(ws, text, {values, {}});
}

Result StringFilter(Workspace& ws, const Value& v, const Args& args) {
  RETURN_IF_ERROR(Bind<0>(args, {}).status());
  return ToText(ws, v);
}

Result SafeFilter(Workspace& ws, const Value& v, const Args& args) {
  ASSIGN_OR_RETURN(Value text, StringFilter(ws, v, args));
  text.markup = true;
  return text;
}

Result EscapeFilter(Workspace& ws, const Value& v, const Args& args) {
  ASSIGN_OR_RETURN(const Value text, StringFilter(ws, v, args));
  if (text.markup) return text;
  TextBuilder out(ws);
  RETURN_IF_ERROR(AppendEscaped(out, text.text()));
  ASSIGN_OR_RETURN(Value escaped, out.Finish());
  escaped.markup = true;
  return escaped;
}

// A width or the text itself.
absl::StatusOr<Text> IndentText(Workspace& ws, const Value* given) {
  if (given != nullptr && given->IsText()) return given->text();
  ASSIGN_OR_RETURN(const int64_t width, IntegerOr(given, 4));
  TextBuilder spaces(ws);
  RETURN_IF_ERROR(spaces.Repeat(' ', static_cast<size_t>(std::max<int64_t>(width, 0))));
  ASSIGN_OR_RETURN(const Value text, spaces.Finish());
  return text.text();
}

Result IndentFilter(Workspace& ws, const Value& v, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, Bind<3>(args, {"width", "first", "blank"}));
  if (!v.IsText()) return InvalidArgument("needs a text where {} is given", TypeName(v));
  const bool first = given[1] != nullptr && IsTrue(*given[1]);
  const bool blank = given[2] != nullptr && IsTrue(*given[2]);
  ASSIGN_OR_RETURN(const Text indent, IndentText(ws, given[0]));
  const Text text = v.text();
  RETURN_IF_ERROR(ws.SpendOnText(text.size()));
  TextBuilder out(ws);
  if (first) RETURN_IF_ERROR(out.Append(indent));
  for (size_t i = 0; i < text.size(); ++i) {
    RETURN_IF_ERROR(ws.Spend(1));
    const size_t begin = i;
    while (i < text.size() && !IsLineEnd(text[i])) ++i;
    RETURN_IF_ERROR(out.Append(text.substr(begin, i - begin)));
    if (i == text.size()) break;
    // Every kind of line end becomes one; "\r\n" is a single one.
    const bool more = i + 1 < text.size();
    if (more && Plain(text[i]) == '\r' && Plain(text[i + 1]) == '\n') ++i;
    RETURN_IF_ERROR(out.Append("\n"));
    const bool next_is_blank = i + 1 == text.size() || IsLineEnd(text[i + 1]);
    if (blank || !next_is_blank) RETURN_IF_ERROR(out.Append(indent));
  }
  return out.Finish();
}

Result IntFilter(Workspace& ws, const Value& v, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, Bind<2>(args, {"default", "base"}));
  ASSIGN_OR_RETURN(const int64_t base, IntegerOr(given[1], 10));
  if (v.IsUndefined()) return UndefinedError(v);
  if (v.IsInteger()) return Int(v.AsInteger());
  const Value fallback = given[0] == nullptr ? Int(0) : *given[0];
  double number = v.kind == Kind::kFloat ? v.number : NAN;
  if (v.IsText()) {
    RETURN_IF_ERROR(ws.Spend(kNumeralSteps));
    const std::string text = ToUtf8(Strip(v.text().substr(0, 100), nullptr, true, true));
    if (text.empty()) return fallback;
    char* end = nullptr;
    errno = 0;
    const bool has_base = base == 0 || (base >= 2 && base <= 36);
    const long long whole = has_base ? std::strtoll(text.c_str(), &end, static_cast<int>(base)) : 0;
    if (has_base && *end == 0 && errno == 0) return Int(whole);
    number = std::strtod(text.c_str(), &end);
    if (*end != 0) return fallback;
  }
  if (!(std::fabs(number) < 9.2e18)) return fallback;
  return Int(static_cast<int64_t>(number));
}

Result FloatFilter(Workspace& ws, const Value& v, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, Bind<1>(args, {"default"}));
  if (v.IsUndefined()) return UndefinedError(v);
  if (v.IsNumber()) return Float(v.AsNumber());
  const Value fallback = given[0] == nullptr ? Float(0) : *given[0];
  if (!v.IsText()) return fallback;
  RETURN_IF_ERROR(ws.Spend(kNumeralSteps));
  const std::string text = ToUtf8(Strip(v.text().substr(0, 100), nullptr, true, true));
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  return text.empty() || *end != 0 ? fallback : Float(number);
}

Result AbsFilter(Workspace&, const Value& v, const Args& args) {
  RETURN_IF_ERROR(Bind<0>(args, {}).status());
  if (v.kind == Kind::kFloat) return Float(std::fabs(v.number));
  if (v.IsInteger()) return v.AsInteger() < 0 ? Negate(v) : Int(v.AsInteger());
  return v.IsUndefined() ? UndefinedError(v) : InvalidArgument("needs a number");
}

// To a multiple of 10^-precision, a half to the even one, as Python rounds integers; -15 and up.
Result RoundInteger(int64_t number, int64_t precision) {
  int64_t unit = 1;
  for (; precision < 0; ++precision) unit *= 10;
  const int64_t rest = number % unit;
  const int64_t twice = 2 * std::abs(rest);
  int64_t rounded = number - rest;
  const bool away = twice > unit || (twice == unit && rounded / unit % 2 != 0);
  if (away && __builtin_add_overflow(rounded, number < 0 ? -unit : unit, &rounded)) {
    return InvalidArgument("an integer does not fit into 64 bits");
  }
  return Int(rounded);
}

Result RoundFilter(Workspace& ws, const Value& v, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, Bind<2>(args, {"precision", "method"}));
  ASSIGN_OR_RETURN(const int64_t precision, IntegerOr(given[0], 0));
  if (!v.IsNumber()) {
    return v.IsUndefined() ? UndefinedError(v) : InvalidArgument("needs a number");
  }
  if (precision < -15 || precision > 15) return InvalidArgument("has a precision beyond 15");
  Text method = U"common";
  if (given[1] != nullptr) {
    ASSIGN_OR_RETURN(method, NeedText(given[1]));
  }
  const bool common = Equal(method, "common");
  if (common && v.IsInteger()) return RoundInteger(v.AsInteger(), precision);
  RETURN_IF_ERROR(ws.Spend(kNumeralSteps));
  const double scale = std::pow(10.0, static_cast<double>(precision));
  if (common && precision >= 0) {  // rounds the decimal digits that print, as Python does
    constexpr double kWholeFrom = 9007199254740992;  // 2^53: no fractions from here on
    if (!(std::fabs(v.AsNumber()) < kWholeFrom)) return Float(v.AsNumber());
    return Float(std::strtod(fmt::format("{:.{}f}", v.AsNumber(), precision).c_str(), nullptr));
  }
  const double scaled = v.AsNumber() * scale;
  if (common) return Float(std::nearbyint(scaled) / scale);
  if (Equal(method, "ceil")) return Float(std::ceil(scaled) / scale);
  if (Equal(method, "floor")) return Float(std::floor(scaled) / scale);
  return InvalidArgument("rounds by common, ceil or floor");
}

Result FormatFilter(Workspace& ws, const Value& v, const Args& args) {
  ASSIGN_OR_RETURN(const Value format, ToText(ws, v));
  if (!args.named.empty()) return InvalidArgument("takes no names");
  ASSIGN_OR_RETURN(const Value values, ws.NewSequence(Kind::kTuple, args.positional));
  return FormatPercent(ws, format, values);
}

Result WordCountFilter(Workspace& ws, const Value& v, const Args& args) {
  RETURN_IF_ERROR(Bind<0>(args, {}).status());
  ASSIGN_OR_RETURN(const Value text, ToText(ws, v));
  RETURN_IF_ERROR(ws.SpendOnProperties(text.size));
  int64_t words = 0;
  bool inside = false;
  for (char32_t c : text.text()) {
    const bool letter = Plain(c) == '_' || IsAlnum(c);
    words += letter && !inside;
    inside = letter;
  }
  return Int(words);
}

Result ToJsonFilter(Workspace& ws, const Value& v, const Args& args) {
  ASSIGN_OR_RETURN(const auto given,
                   (Bind<4>(args, {"ensure_ascii", "indent", "separators", "sort_keys"})));
  JsonOptions options;
  options.ensure_ascii = given[0] != nullptr && IsTrue(*given[0]);
  options.sort_keys = given[3] != nullptr && IsTrue(*given[3]);
  if (given[1] != nullptr && !given[1]->IsNone()) {
    options.lines = true;
    options.item_separator = U",";
    if (given[1]->IsText()) {
      options.indent = given[1]->text();
    } else {
      ASSIGN_OR_RETURN(const int64_t width, IntegerOr(given[1], 0));
      options.indent.assign(static_cast<size_t>(std::clamp<int64_t>(width, 0, 1000)), U' ');
    }
  }
  if (given[2] != nullptr && !given[2]->IsNone()) {
    ASSIGN_OR_RETURN(const std::span<const Value> pair, Items(ws, *given[2]));
    if (pair.size() != 2) return InvalidArgument("needs two separators");
    ASSIGN_OR_RETURN(options.item_separator, NeedText(&pair[0]));
    ASSIGN_OR_RETURN(options.key_separator, NeedText(&pair[1]));
  }
  TextBuilder out(ws);
  RETURN_IF_ERROR(AppendJson(out, v, options));
  return out.Finish();
}

Result DefaultFilter(Workspace&, const Value& v, const Args& args) {
  ASSIGN_OR_RETURN(const auto given, Bind<2>(args, {"default_value", "boolean"}));
  const bool by_truth = given[1] != nullptr && IsTrue(*given[1]);
  if (!v.IsUndefined() && !(by_truth && !IsTrue(v))) return v;
  return given[0] == nullptr ? Borrow(U"") : *given[0];
}

struct Row {
  std::string_view name;
  Filter call;
};
constexpr Row kRows[] = {
    {"abs", AbsFilter},
    {"capitalize", CapitalizeFilter},
    {"d", DefaultFilter},
    {"default", DefaultFilter},
    {"e", EscapeFilter},
    {"escape", EscapeFilter},
    {"float", FloatFilter},
    {"format", FormatFilter},
    {"indent", IndentFilter},
    {"int", IntFilter},
    {"lower", ToCaseFilter<Case::kLower>},
    {"replace", ReplaceFilter},
    {"round", RoundFilter},
    {"safe", SafeFilter},
    {"string", StringFilter},
    {"title", TitleFilter},
    {"tojson", ToJsonFilter},
    {"trim", TrimFilter},
    {"upper", ToCaseFilter<Case::kUpper>},
    {"wordcount", WordCountFilter},
};

}  // namespace

Filter FindFilter(Text name) {
  for (const Row& row : kRows) {
    if (Equal(name, row.name)) return row.call;
  }
  return FindSequenceFilter(name);
}

}  // namespace trivium::model::jinja
