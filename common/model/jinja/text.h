// The texts of the template interpreter: code points, each with a mark that says where it came
// from.
//
// A character's low 21 bits are its code point; the bits above are its mark, 0 for what the
// template itself wrote, else a number of the caller's choice. Slicing, joining, replacing and
// changing case keep the marks, so that the finished text still tells which characters a message
// brought in. Comparisons do not see marks. Stateless; safe from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "common/base/status.h"

namespace trivium::model::jinja {

using Text = std::u32string_view;

constexpr int kMarkShift = 21;
constexpr uint32_t kMarkMax = (1u << (32 - kMarkShift)) - 1;

inline char32_t Plain(char32_t c) { return c & ((char32_t{1} << kMarkShift) - 1); }
inline uint32_t MarkOf(char32_t c) { return static_cast<uint32_t>(c) >> kMarkShift; }
inline char32_t MarkLike(char32_t c, char32_t model) { return c | (model ^ Plain(model)); }

// Appends `utf8`, every character with `mark` (at most kMarkMax). INVALID_ARGUMENT: not UTF-8.
absl::Status AppendUtf8Text(std::string_view utf8, uint32_t mark, std::u32string& out);
// For text of ours, which is ASCII.
void AppendAscii(std::string_view ascii, std::u32string& out);
// Lone surrogates, which a template can write as escapes, become U+FFFD.
std::string ToUtf8(Text text);
// The same of the first 100 characters, for messages.
std::string Excerpt(Text text);

bool Equal(Text a, Text b);
bool Equal(Text a, std::string_view ascii);
int Compare(Text a, Text b);  // by code point: negative, 0, positive
bool StartsWith(Text text, Text prefix);
bool EndsWith(Text text, Text suffix);
// The first place at or after `from`, or npos. Linear in both sizes.
size_t Find(Text text, Text wanted, size_t from = 0);
size_t FindLast(Text text, Text wanted);
constexpr size_t kNotFound = Text::npos;

// As Python's str.isspace.
bool IsSpace(char32_t c);
bool IsLineEnd(char32_t c);  // as str.splitlines
bool IsCased(char32_t c);
bool IsPrintable(char32_t c);  // as str.isprintable
bool IsAlpha(char32_t c);      // as str.isalpha
bool IsAlnum(char32_t c);      // as str.isalnum

// Removes characters of `characters` (white space where it is null) from the chosen ends.
Text Strip(Text text, const Text* characters, bool left, bool right);

// Full case mappings, which may be longer than what they map.
enum class Case { kUpper, kLower, kTitle };
void AppendCased(Text text, size_t at, Case to, std::u32string& out);
std::u32string ToCase(Text text, Case to);  // kTitle: each word's first letter, the rest lower
std::u32string Capitalized(Text text);

}  // namespace trivium::model::jinja
