#include "common/model/byte_alphabet.h"

#include <array>

#include "common/model/utf8.h"

namespace trivium::model {
namespace {

// Bytes that print as themselves in Latin-1 keep their code point; the others follow from U+0100.
constexpr bool IsPrintable(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr int kFirstSubstitute = 0x100;
constexpr int kAlphabetEnd = 0x144;

struct Alphabet {
  std::array<uint16_t, 256> symbol{};
  std::array<int16_t, kAlphabetEnd> byte{};
};

constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet;
  for (int16_t& byte : alphabet.byte) byte = -1;
  int next = kFirstSubstitute;
  for (int byte = 0; byte < 256; ++byte) {
    int symbol = IsPrintable(byte) ? byte : next++;
    alphabet.symbol[static_cast<size_t>(byte)] = static_cast<uint16_t>(symbol);
    alphabet.byte[static_cast<size_t>(symbol)] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = MakeAlphabet();

}  // namespace

void AppendByteSymbol(uint8_t byte, std::string& out) { AppendUtf8(kAlphabet.symbol[byte], out); }

bool AppendSymbolBytes(std::string_view symbols, std::string& out) {
  const size_t size_before = out.size();
  while (!symbols.empty()) {
    Utf8Char c = DecodeUtf8(symbols);
    if (!c.valid || c.code_point >= kAlphabetEnd || kAlphabet.byte[c.code_point] < 0) {
      out.resize(size_before);
      return false;
    }
    out.push_back(static_cast<char>(kAlphabet.byte[c.code_point]));
    symbols.remove_prefix(c.length);
  }
  return true;
}

}  // namespace trivium::model
