#include "common/model/pretokenizer.h"

#include <unicode/uchar.h>

#include <cstdint>

#include "common/model/utf8.h"

namespace trivium::model {
namespace {

enum class Class : uint8_t { kEnd, kLetter, kDigit, kSpace, kOther };

struct Unit {
  Class kind = Class::kEnd;
  size_t length = 0;  // bytes
};

Class ClassOf(uint32_t code_point) {
  const auto c = static_cast<UChar32>(code_point);
  const uint32_t mask = U_GET_GC_MASK(c);
  if ((mask & U_GC_L_MASK) != 0) return Class::kLetter;
  if ((mask & U_GC_N_MASK) != 0) return Class::kDigit;
  return u_isUWhiteSpace(c) ? Class::kSpace : Class::kOther;
}

// The character at `position`, or kEnd behind the text.
Unit UnitAt(std::string_view text, size_t position) {
  if (position >= text.size()) return {};
  const Utf8Char c = DecodeUtf8(text.substr(position));
  if (!c.valid) return {Class::kOther, 1};
  return {ClassOf(c.code_point), c.length};
}

// The end of the run of `kind` that starts at `position`.
size_t EndOfRun(std::string_view text, size_t position, Class kind) {
  Unit unit = UnitAt(text, position);
  while (unit.kind == kind) {
    position += unit.length;
    unit = UnitAt(text, position);
  }
  return position;
}

size_t ContractionSize(std::string_view text) {
  for (std::string_view ending : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
    if (text.starts_with(ending)) return ending.size();
  }
  return 0;
}

// White space at the start of `text`. All but the last character when text follows, which may begin
// with that last one; digits are cut off first, so that before them nothing is left over.
size_t SpaceSize(std::string_view text) {
  size_t last = 0;
  size_t end = 0;
  Unit unit = UnitAt(text, 0);
  while (unit.kind == Class::kSpace) {
    last = end;
    end += unit.length;
    unit = UnitAt(text, end);
  }
  const bool text_follows = unit.kind == Class::kLetter || unit.kind == Class::kOther;
  return text_follows && last > 0 ? last : end;
}

size_t WordSize(std::string_view text) {
  if (size_t size = ContractionSize(text); size > 0) return size;
  const Unit first = UnitAt(text, 0);
  switch (first.kind) {
    case Class::kEnd:
      return 0;
    case Class::kDigit:
      return first.length;
    case Class::kLetter:
    case Class::kOther:
      return EndOfRun(text, first.length, first.kind);
    case Class::kSpace:
      break;
  }
  if (text[0] == ' ') {
    const Class next = UnitAt(text, 1).kind;
    if (next == Class::kLetter || next == Class::kOther) return EndOfRun(text, 1, next);
  }
  return SpaceSize(text);
}

}  // namespace

std::string_view Pretokenizer::Next() {
  std::string_view word = rest_.substr(0, WordSize(rest_));
  rest_.remove_prefix(word.size());
  return word;
}

}  // namespace trivium::model
