#include "common/model/pretokenizer.h"

#include <unicode/uchar.h>

#include <algorithm>
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

bool IsNewline(char c) { return c == '\r' || c == '\n'; }

// The end of the run of `kind` that starts at `position`.
size_t EndOfRun(std::string_view text, size_t position, Class kind) {
  Unit unit = UnitAt(text, position);
  while (unit.kind == kind) {
    position += unit.length;
    unit = UnitAt(text, position);
  }
  return position;
}

// What follows an apostrophe in "'s", "'re" and so on, at the start of `text`; 0 when nothing does.
size_t EndingSize(std::string_view text) {
  for (std::string_view ending : {"s", "t", "re", "ve", "m", "ll", "d"}) {
    if (text.starts_with(ending)) return ending.size();
  }
  return 0;
}

// The same for letters of either case. U+017F, a long s, is an S without regard to case.
size_t EndingSizeAnyCase(std::string_view text) {
  constexpr std::string_view kLongS = "\xC5\xBF";
  if (text.starts_with(kLongS)) return kLongS.size();
  char folded[2] = {};
  const size_t size = std::min(text.size(), sizeof(folded));
  for (size_t i = 0; i < size; ++i) {
    const bool upper = text[i] >= 'A' && text[i] <= 'Z';
    folded[i] = static_cast<char>(upper ? text[i] - 'A' + 'a' : text[i]);
  }
  return EndingSize({folded, size});
}

struct SpaceRun {
  size_t end = 0;           // behind the run
  size_t last = 0;          // where its last character begins
  size_t newlines_end = 0;  // behind its last CR or LF; 0 when it has none
  Class next = Class::kEnd;
};

SpaceRun SpaceRunAt(std::string_view text) {
  SpaceRun run;
  Unit unit = UnitAt(text, 0);
  while (unit.kind == Class::kSpace) {
    run.last = run.end;
    run.end += unit.length;
    if (IsNewline(text[run.last])) run.newlines_end = run.end;
    unit = UnitAt(text, run.end);
  }
  run.next = unit.kind;
  return run;
}

// White space up to its last character when something follows, which may begin with that last one.
size_t SpaceSize(const SpaceRun& run, bool text_follows) {
  return text_follows && run.last > 0 ? run.last : run.end;
}

size_t Gpt2WordSize(std::string_view text, bool digits_alone) {
  if (text[0] == '\'') {
    if (size_t size = EndingSize(text.substr(1)); size > 0) return 1 + size;
  }
  const auto joins_space = [&](Class kind) {
    return kind == Class::kLetter || kind == Class::kOther ||
           (kind == Class::kDigit && !digits_alone);
  };
  const Unit first = UnitAt(text, 0);
  if (first.kind == Class::kDigit && digits_alone) return first.length;
  if (first.kind != Class::kSpace) return EndOfRun(text, first.length, first.kind);
  if (text[0] == ' ') {
    const Class next = UnitAt(text, 1).kind;
    if (joins_space(next)) return EndOfRun(text, 1, next);
  }
  // Digits that stand alone are cut off first, so that before them no space is left over.
  const SpaceRun run = SpaceRunAt(text);
  return SpaceSize(run, joins_space(run.next));
}

size_t DigitsSize(std::string_view text, int most) {
  size_t size = 0;
  for (int i = 0; i < most; ++i) {
    const Unit unit = UnitAt(text, size);
    if (unit.kind != Class::kDigit) break;
    size += unit.length;
  }
  return size;
}

size_t LlamaWordSize(std::string_view text, int most_digits) {
  if (text[0] == '\'') {
    if (size_t size = EndingSizeAnyCase(text.substr(1)); size > 0) return 1 + size;
  }
  const Unit first = UnitAt(text, 0);
  if (first.kind == Class::kLetter) return EndOfRun(text, first.length, Class::kLetter);
  if (first.kind == Class::kDigit) return DigitsSize(text, most_digits);
  const Class second = UnitAt(text, first.length).kind;
  if (second == Class::kLetter && !IsNewline(text[0])) {
    return EndOfRun(text, first.length, Class::kLetter);
  }
  if (first.kind == Class::kOther || (text[0] == ' ' && second == Class::kOther)) {
    size_t end = EndOfRun(text, first.length, Class::kOther);
    while (end < text.size() && IsNewline(text[end])) ++end;
    return end;
  }
  const SpaceRun run = SpaceRunAt(text);
  return run.newlines_end > 0 ? run.newlines_end : SpaceSize(run, run.next != Class::kEnd);
}

// Of a text that is not empty.
size_t WordSize(std::string_view text, WordRule rule) {
  switch (rule) {
    case WordRule::kGpt2:
      return Gpt2WordSize(text, false);
    case WordRule::kSmollm:
      return Gpt2WordSize(text, true);
    case WordRule::kLlamaBpe:
      return LlamaWordSize(text, 3);
    case WordRule::kQwen2:
      return LlamaWordSize(text, 1);
  }
  return text.size();
}

}  // namespace

std::string_view Pretokenizer::Next() {
  if (rest_.empty()) return {};
  std::string_view word = rest_.substr(0, WordSize(rest_, rule_));
  rest_.remove_prefix(word.size());
  return word;
}

}  // namespace trivium::model
