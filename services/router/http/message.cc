#include "services/router/http/message.h"

namespace trivium::router::http {

std::optional<std::string> DecodePath(std::string_view target) {
  std::string path;
  for (size_t i = 0; i < target.size() && target[i] != '?' && target[i] != '#'; ++i) {
    if (target[i] != '%') {
      path += target[i];
      continue;
    }
    const auto digit = [&](size_t at) {
      const char c = at < target.size() ? static_cast<char>(target[at] | 0x20) : '\0';
      return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    };
    const int high = digit(i + 1), low = digit(i + 2);
    if (high < 0 || low < 0 || (high == 0 && low == 0)) return std::nullopt;
    path += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return path;
}

}  // namespace trivium::router::http
