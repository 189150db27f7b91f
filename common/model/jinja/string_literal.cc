#include "common/model/jinja/string_literal.h"

namespace trivium::model::jinja {
namespace {

int DigitOf(char32_t c) {
  if (c >= '0' && c <= '9') return static_cast<int>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<int>(c - 'a' + 10);
  if (c >= 'A' && c <= 'F') return static_cast<int>(c - 'A' + 10);
  return 16;
}

// Up to `most` digits at `at`, which goes behind them; `count` gets how many there were.
uint32_t ReadDigits(Text text, size_t& at, int base, int most, int& count) {
  uint32_t number = 0;
  for (count = 0; count < most && at < text.size() && DigitOf(text[at]) < base; ++count) {
    number = number * static_cast<uint32_t>(base) + static_cast<uint32_t>(DigitOf(text[at++]));
  }
  return number;
}

char32_t Single(char32_t c) {
  switch (c) {
    case 'n':
      return '\n';
    case 't':
      return '\t';
    case 'r':
      return '\r';
    case 'a':
      return '\a';
    case 'b':
      return '\b';
    case 'f':
      return '\f';
    case 'v':
      return '\v';
    case '\\':
    case '\'':
    case '"':
      return c;
    default:
      return 0;
  }
}

}  // namespace

absl::StatusOr<std::u32string> Unescaped(Text literal) {
  std::u32string out;
  for (size_t at = 0; at < literal.size();) {
    const char32_t c = literal[at++];
    if (c != '\\' || at == literal.size()) {
      out += c;
      continue;
    }
    const char32_t kind = literal[at++];
    const char32_t single = Single(kind);
    const int wanted = kind == 'x' ? 2 : kind == 'u' ? 4 : kind == 'U' ? 8 : 0;
    int count = 0;
    if (single != 0) {
      out += single;
    } else if (kind == '\n') {
      continue;  // the line goes on
    } else if (DigitOf(kind) < 8) {
      out += ReadDigits(literal, --at, 8, 3, count);
    } else if (wanted > 0) {
      const uint32_t point = ReadDigits(literal, at, 16, wanted, count);
      if (count < wanted || point > 0x10FFFF) return InvalidArgument("a string's escape is broken");
      out += point;
    } else if (kind == 'N') {
      return InvalidArgument("a string's escape \\N is not supported");
    } else {
      out += U'\\';
      out += kind;
    }
  }
  return out;
}

}  // namespace trivium::model::jinja
