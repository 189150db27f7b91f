#include <algorithm>
#include <cmath>

#include "common/model/jinja/format.h"
#include "common/model/jinja/operators.h"

namespace trivium::model::jinja {
namespace {

struct Conversion {
  bool left = false, zero = false, plus = false;
  size_t width = 0;
  int precision = -1;
  char kind = 's';
};

constexpr size_t kWidthMax = 1000;

// Reads what follows a '%', up to and with the letter; `at` goes behind it.
absl::StatusOr<Conversion> ReadConversion(Text format, size_t& at) {
  Conversion c;
  const auto next = [&] { return at < format.size() ? Plain(format[at]) : U'\0'; };
  for (;; ++at) {
    if (next() == '-') {
      c.left = true;
    } else if (next() == '0') {
      c.zero = true;
    } else if (next() == '+') {
      c.plus = true;
    } else {
      break;
    }
  }
  const auto number = [&] {
    size_t n = 0;
    for (; next() >= '0' && next() <= '9' && n <= kWidthMax; ++at) n = n * 10 + (next() - '0');
    return n;
  };
  c.width = number();
  if (next() == '.') {
    ++at;
    c.precision = static_cast<int>(number());
  }
  if (c.width > kWidthMax || c.precision > static_cast<int>(kWidthMax) || next() == 0 ||
      next() > 0x7F) {
    return InvalidArgument("a conversion after '%' is incomplete or too wide");
  }
  c.kind = static_cast<char>(next());
  ++at;
  return c;
}

absl::StatusOr<Value> Number(Workspace& ws, const Conversion& c, const Value& value) {
  if (!value.IsNumber()) return InvalidArgument("%{} needs a number", c.kind);
  RETURN_IF_ERROR(ws.Spend(4 + static_cast<uint64_t>(std::max(c.precision, 0))));
  const char sign_style = c.plus ? '+' : '-';
  std::string digits;
  if (c.kind == 'f') {
    const int precision = c.precision < 0 ? 6 : c.precision;
    digits = sign_style == '+' ? fmt::format("{:+.{}f}", value.AsNumber(), precision)
                               : fmt::format("{:.{}f}", value.AsNumber(), precision);
  } else {
    if (value.kind == Kind::kFloat && (c.kind == 'x' || !(std::fabs(value.number) < 9e18))) {
      return InvalidArgument("%{} needs an integer", c.kind);
    }
    const int64_t n =
        value.kind == Kind::kFloat ? static_cast<int64_t>(value.number) : value.AsInteger();
    digits = c.kind == 'x' ? fmt::format("{:x}", n) : fmt::format("{}", n);
    if (c.plus && n >= 0) digits = fmt::format("+{}", digits);
  }
  if (c.zero && !c.left && digits.size() < c.width) {
    const size_t sign = digits[0] == '-' || digits[0] == '+' ? 1 : 0;
    digits.insert(sign, c.width - digits.size(), '0');
  }
  return ws.NewText(digits);
}

absl::StatusOr<Value> Converted(Workspace& ws, const Conversion& c, const Value& value) {
  switch (c.kind) {
    case 's':
    case 'r': {
      TextBuilder out(ws);
      RETURN_IF_ERROR(c.kind == 's' ? AppendStr(out, value) : AppendRepr(out, value));
      const size_t size = c.precision < 0 ? kNotFound : static_cast<size_t>(c.precision);
      return ws.NewText(out.text().substr(0, size));
    }
    case 'd':
    case 'i':
    case 'u':
    case 'f':
    case 'x':
      return Number(ws, c, value);
    default:
      return InvalidArgument("%{} is not supported", c.kind);
  }
}

// Hands out the arguments of a format in order.
class Supply {
 public:
  explicit Supply(const Value& argument) : argument_(argument) {
    if (argument.kind == Kind::kTuple) items_ = argument.sequence->items;
    if (argument.kind != Kind::kTuple) items_ = {&argument_, 1};
  }
  absl::StatusOr<Value> Next() {
    if (used_ == items_.size()) return InvalidArgument("a format has too few arguments");
    return items_[used_++];
  }
  bool AllUsed() const { return used_ == items_.size() || argument_.kind == Kind::kDict; }
  const Value& argument() const { return argument_; }

 private:
  const Value argument_;
  std::span<const Value> items_;
  size_t used_ = 0;
};

// %(key)s takes from a dictionary; `at` stands behind the '%'.
absl::StatusOr<Value> Argument(Workspace& ws, Text format, size_t& at, Supply& supply) {
  if (at >= format.size() || Plain(format[at]) != '(') return supply.Next();
  const size_t end = Find(format, U")", at);
  if (end == kNotFound || supply.argument().kind != Kind::kDict) {
    return InvalidArgument("a format's key needs a dictionary");
  }
  const Value key = Borrow(format.substr(at + 1, end - at - 1));
  at = end + 1;
  ASSIGN_OR_RETURN(const Entry* entry, FindEntry(ws, *supply.argument().dict, key));
  if (entry == nullptr) return InvalidArgument("a format's key is not in the dictionary");
  return entry->value;
}

}  // namespace

absl::StatusOr<Value> FormatPercent(Workspace& ws, const Value& format, const Value& argument) {
  RETURN_IF_ERROR(ws.SpendOnText(format.size));
  TextBuilder out(ws);
  Supply supply(argument);
  const Text text = format.text();
  for (size_t at = 0; at < text.size();) {
    RETURN_IF_ERROR(ws.Spend(1));
    const char32_t c = text[at++];
    if (Plain(c) != '%') {
      RETURN_IF_ERROR(out.Repeat(c, 1));
      continue;
    }
    if (at < text.size() && Plain(text[at]) == '%') {
      RETURN_IF_ERROR(out.Repeat(text[at++], 1));
      continue;
    }
    ASSIGN_OR_RETURN(const Value value, Argument(ws, text, at, supply));
    ASSIGN_OR_RETURN(const Conversion conversion, ReadConversion(text, at));
    ASSIGN_OR_RETURN(const Value shown, Converted(ws, conversion, value));
    const size_t padding = conversion.width > shown.size ? conversion.width - shown.size : 0;
    if (!conversion.left) RETURN_IF_ERROR(out.Repeat(' ', padding));
    RETURN_IF_ERROR(out.Append(shown.text()));
    if (conversion.left) RETURN_IF_ERROR(out.Repeat(' ', padding));
  }
  if (!supply.AllUsed()) return InvalidArgument("a format has too many arguments");
  return out.Finish();
}

absl::StatusOr<Value> FormatBraces(Workspace& ws, Text format, const Args& args) {
  TextBuilder out(ws);
  size_t automatic = 0;
  for (size_t at = 0; at < format.size(); ++at) {
    RETURN_IF_ERROR(ws.Spend(1));
    const char32_t c = Plain(format[at]);
    const bool doubled = at + 1 < format.size() && Plain(format[at + 1]) == c;
    if ((c != '{' && c != '}') || doubled) {
      RETURN_IF_ERROR(out.Repeat(format[at], 1));
      if (doubled && (c == '{' || c == '}')) ++at;
      continue;
    }
    const size_t end = Find(format, U"}", at);
    if (c == '}' || end == kNotFound) return InvalidArgument("a brace of a format is alone");
    const Text field = format.substr(at + 1, end - at - 1);
    at = end;
    const Value* value = nullptr;
    size_t index = field.empty() ? automatic++ : 0;
    bool is_index = true;
    for (char32_t digit : field) {
      is_index = is_index && Plain(digit) >= '0' && Plain(digit) <= '9' && index < kWidthMax;
      if (is_index) index = index * 10 + (Plain(digit) - '0');
    }
    if (is_index && index < args.positional.size()) value = &args.positional[index];
    RETURN_IF_ERROR(ws.Spend(1 + args.named.size()));
    for (const NamedValue& named : args.named) {
      if (!is_index && Equal(named.name, field)) value = &named.value;
    }
    if (value == nullptr) {
      return InvalidArgument("the format field {{{}}} is not given or not supported",
                             Excerpt(field));
    }
    RETURN_IF_ERROR(AppendStr(out, *value));
  }
  return out.Finish();
}

}  // namespace trivium::model::jinja
