#include "common/net/text.h"

#include <fmt/format.h>

#include <cstdint>

namespace trivium::net {
namespace {

bool IsContinuation(std::string_view text, size_t i) {
  return i < text.size() && (static_cast<uint8_t>(text[i]) & 0xc0) == 0x80;
}

// Range of the second byte, which alone decides about overlong forms, surrogates and U+10FFFF.
bool SecondByteAllowed(uint8_t first, uint8_t second) {
  switch (first) {
    case 0xe0:
      return second >= 0xa0;
    case 0xed:
      return second <= 0x9f;
    case 0xf0:
      return second >= 0x90;
    case 0xf4:
      return second <= 0x8f;
    default:
      return true;
  }
}

// U+0080 to U+009F, which terminals may take as commands.
bool IsControlPair(std::string_view character) {
  return character.size() == 2 && character[0] == '\xc2' &&
         static_cast<uint8_t>(character[1]) < 0xa0;
}

std::string EscapeByte(char byte) {
  switch (byte) {
    case '\n':
      return "\\n";
    case '\r':
      return "\\r";
    case '\t':
      return "\\t";
    case '"':
      return "\\\"";
    case '\\':
      return "\\\\";
    default:
      return fmt::format("\\x{:02x}", static_cast<uint8_t>(byte));
  }
}

std::string EscapeCharacter(std::string_view character) {
  const auto first = static_cast<uint8_t>(character[0]);
  const bool plain = first >= 0x20 && first != 0x7f && first != '"' && first != '\\';
  if (character.size() == 1) return plain ? std::string(character) : EscapeByte(character[0]);
  if (!IsControlPair(character)) return std::string(character);
  return EscapeByte(character[0]) + EscapeByte(character[1]);
}

}  // namespace

size_t Utf8CharBytes(std::string_view text) {
  if (text.empty()) return 0;
  const auto first = static_cast<uint8_t>(text[0]);
  if (first < 0x80) return 1;
  const size_t bytes = first < 0xc2   ? 0
                       : first < 0xe0 ? 2
                       : first < 0xf0 ? 3
                       : first < 0xf5 ? 4
                                      : 0;
  for (size_t i = 1; i < bytes; ++i) {
    if (!IsContinuation(text, i)) return 0;
  }
  if (bytes > 2 && !SecondByteAllowed(first, static_cast<uint8_t>(text[1]))) return 0;
  return bytes;
}

bool IsUtf8(std::string_view text) {
  while (!text.empty()) {
    const size_t bytes = Utf8CharBytes(text);
    if (bytes == 0) return false;
    text.remove_prefix(bytes);
  }
  return true;
}

std::string Escape(std::string_view text, size_t bytes_max) {
  std::string out;
  while (!text.empty()) {
    const size_t bytes = Utf8CharBytes(text);
    const std::string next =
        bytes == 0 ? EscapeByte(text[0]) : EscapeCharacter(text.substr(0, bytes));
    if (out.size() + next.size() > bytes_max) return out + "...";
    out += next;
    text.remove_prefix(bytes == 0 ? 1 : bytes);
  }
  return out;
}

}  // namespace trivium::net
