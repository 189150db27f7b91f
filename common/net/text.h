// Text that came from outside: UTF-8 checks and a printable form for messages and logs.
// Stateless; safe from any thread.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace trivium::net {

// Valid UTF-8, as every protobuf `string` must be before it is set. Surrogates, overlong forms and
// code points above U+10FFFF are not.
bool IsUtf8(std::string_view text);

// Bytes of the valid UTF-8 character at the front of `text`; 0 when there is none.
size_t Utf8CharBytes(std::string_view text);

// `text` with control characters as \n, \t, \xNN, bytes that are no UTF-8 as \xNN, and backslashes
// and double quotes escaped. Text that would give more than `bytes_max` is cut and ends in "...".
std::string Escape(std::string_view text, size_t bytes_max);

}  // namespace trivium::net
