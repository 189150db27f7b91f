#include "services/router/api/openai/data_uri.h"

#include <array>
#include <cstdint>

namespace trivium::router::openai {
namespace {

constexpr uint8_t kNone = 64;

constexpr std::array<uint8_t, 256> MakeValues() {
  std::array<uint8_t, 256> values{};
  values.fill(kNone);
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (size_t i = 0; i < kDigits.size(); ++i) {
    values[static_cast<uint8_t>(kDigits[i])] = static_cast<uint8_t>(i);
  }
  return values;
}
constexpr std::array<uint8_t, 256> kValues = MakeValues();

absl::StatusOr<std::string> FromBase64(std::string_view text) {
  if (text.size() % 4 != 0) return InvalidArgument("is no base64: not whole groups of four");
  size_t padding = 0;
  while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=') ++padding;
  text.remove_suffix(padding);
  std::string bytes;
  bytes.reserve(text.size() / 4 * 3 + 2);
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const uint8_t value = kValues[static_cast<uint8_t>(c)];
    if (value == kNone) return InvalidArgument("is no base64: a character that is no digit");
    bits = bits << 6 | value;
    if ((count += 6) < 8) continue;
    count -= 8;
    bytes += static_cast<char>(bits >> count);
    bits &= (1U << count) - 1;
  }
  return bytes;
}

}  // namespace

absl::StatusOr<std::string> ReadDataUri(std::string_view uri) {
  constexpr std::string_view kScheme = "data:", kEncoding = ";base64";
  const size_t comma = uri.find(',');
  if (!uri.starts_with(kScheme) || comma == std::string_view::npos ||
      !uri.substr(0, comma).ends_with(kEncoding)) {
    return InvalidArgument("must be a data URI with base64; other addresses are not fetched");
  }
  return FromBase64(uri.substr(comma + 1));
}

}  // namespace trivium::router::openai
