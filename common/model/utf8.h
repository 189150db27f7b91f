// One step of UTF-8: what the tokenizer and the detokenizer agree on for any bytes.
// Stateless; safe from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace trivium::model {

struct Utf8Char {
  uint32_t code_point = 0;  // meaningful when valid
  size_t length = 0;  // bytes: of the character, or of the broken sequence to be replaced as one
  bool valid = false;
  bool unfinished = false;  // not valid, but more bytes could make it so
};

// The first character of a text that is not empty. Overlong forms, surrogates and values above
// U+10FFFF are broken; a broken sequence is as long as Unicode's "maximal subpart", at least one
// byte.
Utf8Char DecodeUtf8(std::string_view text);

void AppendUtf8(uint32_t code_point, std::string& out);

}  // namespace trivium::model
