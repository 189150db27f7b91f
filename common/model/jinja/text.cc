#include "common/model/jinja/text.h"

#include <unicode/uchar.h>
#include <unicode/ustring.h>

#include <algorithm>
#include <vector>

#include "common/model/utf8.h"

namespace trivium::model::jinja {
namespace {

bool SamePlain(char32_t a, char32_t b) { return Plain(a) == Plain(b); }

bool MatchesAt(Text text, Text wanted, size_t at) {
  return std::equal(wanted.begin(), wanted.end(), text.begin() + at, SamePlain);
}

// Knuth-Morris-Pratt: for each prefix of `wanted`, its longest proper border.
std::vector<uint32_t> Borders(Text wanted) {
  std::vector<uint32_t> border(wanted.size(), 0);
  for (size_t i = 1, k = 0; i < wanted.size(); ++i) {
    while (k > 0 && !SamePlain(wanted[i], wanted[k])) k = border[k - 1];
    if (SamePlain(wanted[i], wanted[k])) ++k;
    border[i] = static_cast<uint32_t>(k);
  }
  return border;
}

// A capital sigma is written in its final form after a letter and before none.
bool IsFinalSigma(Text text, size_t at) {
  const auto ignorable = [](char32_t c) {
    return u_hasBinaryProperty(static_cast<UChar32>(Plain(c)), UCHAR_CASE_IGNORABLE);
  };
  size_t before = at;
  while (before > 0 && ignorable(text[before - 1])) --before;
  if (before == 0 || !IsCased(text[before - 1])) return false;
  size_t after = at + 1;
  while (after < text.size() && ignorable(text[after])) ++after;
  return after == text.size() || !IsCased(text[after]);
}

}  // namespace

absl::Status AppendUtf8Text(std::string_view utf8, uint32_t mark, std::u32string& out) {
  out.reserve(out.size() + utf8.size());
  for (size_t i = 0; i < utf8.size();) {
    const Utf8Char c = DecodeUtf8(utf8.substr(i));
    if (!c.valid) return InvalidArgument("is not valid UTF-8 at byte {}", i);
    out.push_back(c.code_point | mark << kMarkShift);
    i += c.length;
  }
  return absl::OkStatus();
}

void AppendAscii(std::string_view ascii, std::u32string& out) {
  out.append(ascii.begin(), ascii.end());
}

std::string ToUtf8(Text text) {
  std::string out;
  out.reserve(text.size());
  for (char32_t c : text) {
    const char32_t plain = Plain(c);
    AppendUtf8(plain >= 0xD800 && plain < 0xE000 ? 0xFFFD : plain, out);
  }
  return out;
}

std::string Excerpt(Text text) { return ToUtf8(text.substr(0, 100)); }

bool Equal(Text a, Text b) { return std::equal(a.begin(), a.end(), b.begin(), b.end(), SamePlain); }

bool Equal(Text a, std::string_view ascii) {
  return std::equal(a.begin(), a.end(), ascii.begin(), ascii.end(),
                    [](char32_t c, char d) { return Plain(c) == static_cast<unsigned char>(d); });
}

int Compare(Text a, Text b) {
  const size_t common = std::min(a.size(), b.size());
  for (size_t i = 0; i < common; ++i) {
    if (Plain(a[i]) != Plain(b[i])) return Plain(a[i]) < Plain(b[i]) ? -1 : 1;
  }
  return a.size() == b.size() ? 0 : a.size() < b.size() ? -1 : 1;
}

bool StartsWith(Text text, Text prefix) {
  return text.size() >= prefix.size() && MatchesAt(text, prefix, 0);
}

bool EndsWith(Text text, Text suffix) {
  return text.size() >= suffix.size() && MatchesAt(text, suffix, text.size() - suffix.size());
}

size_t Find(Text text, Text wanted, size_t from) {
  constexpr size_t kShort = 4;  // at most so many comparisons a place: no table needed
  if (from > text.size() || wanted.size() > text.size() - from) return kNotFound;
  if (wanted.size() <= kShort) {
    for (size_t i = from; i + wanted.size() <= text.size(); ++i) {
      if (MatchesAt(text, wanted, i)) return i;
    }
    return kNotFound;
  }
  const std::vector<uint32_t> border = Borders(wanted);
  for (size_t i = from, k = 0; i < text.size(); ++i) {
    while (k > 0 && !SamePlain(text[i], wanted[k])) k = border[k - 1];
    if (SamePlain(text[i], wanted[k])) ++k;
    if (k == wanted.size()) return i + 1 - k;
  }
  return kNotFound;
}

size_t FindLast(Text text, Text wanted) {
  if (wanted.size() > text.size()) return kNotFound;
  const std::u32string text_reversed(text.rbegin(), text.rend());
  const std::u32string wanted_reversed(wanted.rbegin(), wanted.rend());
  const size_t found = Find(text_reversed, wanted_reversed);
  return found == kNotFound ? kNotFound : text.size() - found - wanted.size();
}

bool IsSpace(char32_t c) {
  c = Plain(c);
  if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x1F);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool IsLineEnd(char32_t c) {
  c = Plain(c);
  return (c >= 10 && c <= 13) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

bool IsCased(char32_t c) {
  return u_hasBinaryProperty(static_cast<UChar32>(Plain(c)), UCHAR_CASED);
}

bool IsPrintable(char32_t c) {
  c = Plain(c);
  if (c < 0x80) return c >= ' ' && c < 0x7F;
  constexpr uint32_t kHidden = U_GC_C_MASK | U_GC_Z_MASK;  // control, unassigned…; separators
  return (U_GET_GC_MASK(static_cast<UChar32>(c)) & kHidden) == 0;
}

bool IsAlpha(char32_t c) {
  return (U_GET_GC_MASK(static_cast<UChar32>(Plain(c))) & U_GC_L_MASK) != 0;
}

bool IsAlnum(char32_t c) {
  const auto point = static_cast<UChar32>(Plain(c));
  return IsAlpha(c) || u_getIntPropertyValue(point, UCHAR_NUMERIC_TYPE) != U_NT_NONE;
}

Text Strip(Text text, const Text* characters, bool left, bool right) {
  const auto removed = [&](char32_t c) {
    if (characters == nullptr) return IsSpace(c);
    return std::any_of(characters->begin(), characters->end(),
                       [c](char32_t d) { return SamePlain(c, d); });
  };
  while (left && !text.empty() && removed(text.front())) text.remove_prefix(1);
  while (right && !text.empty() && removed(text.back())) text.remove_suffix(1);
  return text;
}

void AppendCased(Text text, size_t at, Case to, std::u32string& out) {
  const char32_t c = text[at];
  const auto point = static_cast<UChar32>(Plain(c));
  if (point < 0x80) {
    const bool upper = to != Case::kLower;
    const bool other = upper ? point >= 'a' && point <= 'z' : point >= 'A' && point <= 'Z';
    out.push_back(other ? c ^ 0x20 : c);
    return;
  }
  if (to == Case::kTitle) {
    out.push_back(MarkLike(static_cast<char32_t>(u_totitle(point)), c));
    return;
  }
  constexpr UChar32 kCapitalSigma = 0x3A3, kFinalSigma = 0x3C2;
  if (to == Case::kLower && point == kCapitalSigma && IsFinalSigma(text, at)) {
    out.push_back(MarkLike(kFinalSigma, c));
    return;
  }
  if (point >= 0xD800 && point < 0xE000) {
    out.push_back(c);
    return;
  }
  UChar from[2], mapped[8];
  int32_t units = 0;
  U16_APPEND_UNSAFE(from, units, point);
  UErrorCode error = U_ZERO_ERROR;
  const int32_t size = to == Case::kUpper ? u_strToUpper(mapped, 8, from, units, "", &error)
                                          : u_strToLower(mapped, 8, from, units, "", &error);
  for (int32_t i = 0; U_SUCCESS(error) && i < size;) {
    UChar32 next;
    U16_NEXT(mapped, i, size, next);
    out.push_back(MarkLike(static_cast<char32_t>(next), c));
  }
}

std::u32string ToCase(Text text, Case to) {
  std::u32string out;
  out.reserve(text.size());
  bool in_word = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (to != Case::kTitle) {
      AppendCased(text, i, to, out);
      continue;
    }
    AppendCased(text, i, in_word ? Case::kLower : Case::kTitle, out);
    in_word = IsCased(text[i]);
  }
  return out;
}

std::u32string Capitalized(Text text) {
  std::u32string out;
  for (size_t i = 0; i < text.size(); ++i) {
    AppendCased(text, i, i == 0 ? Case::kTitle : Case::kLower, out);
  }
  return out;
}

}  // namespace trivium::model::jinja
