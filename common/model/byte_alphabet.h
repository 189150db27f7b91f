// The alphabet in which byte-level vocabularies write bytes: each of the 256 bytes has one
// printable character (a space is U+0120, "Ġ"). Stateless; safe from any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace trivium::model {

// Appends the character of `byte`, as UTF-8.
void AppendByteSymbol(uint8_t byte, std::string& out);

// Appends the bytes that `symbols` stands for; false, with `out` as it was, when a character is not
// of the alphabet.
bool AppendSymbolBytes(std::string_view symbols, std::string& out);

}  // namespace trivium::model
