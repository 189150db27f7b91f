#include "common/net/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <charconv>

#include "common/net/text.h"

namespace trivium::net {
namespace {

constexpr size_t kHostBytesMax = 253;
constexpr size_t kUnixPathBytesMax = 107;  // sockaddr_un holds no more

absl::Status BadAddress(std::string_view text) {
  return InvalidArgument("\"{}\" is not an address; allowed: host:port, [IPv6]:port, unix:PATH",
                         Escape(text, 80));
}

bool IsHostName(std::string_view host) {
  if (host.empty() || host.size() > kHostBytesMax) return false;
  for (const char c : host) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '.' || c == '-' || c == '_';
    if (!plain) return false;
  }
  return true;
}

bool IsIpv6(const std::string& host) {
  in6_addr parsed;
  return inet_pton(AF_INET6, host.c_str(), &parsed) == 1;
}

bool ParsePort(std::string_view text, int* port) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *port);
  return error == std::errc() && end == text.data() + text.size() && *port >= 0 && *port <= 65535;
}

}  // namespace

bool Address::IsLoopback() const {
  if (is_unix || host == "localhost") return true;
  in_addr v4;
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
  in6_addr v6;
  return inet_pton(AF_INET6, host.c_str(), &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

absl::StatusOr<Address> ParseAddress(std::string_view text) {
  Address address;
  if (text.substr(0, 5) == "unix:") {
    address.host = text.substr(5);
    address.is_unix = true;
    const bool usable = !address.host.empty() && address.host.size() <= kUnixPathBytesMax &&
                        address.host.find('\0') == std::string::npos;
    if (!usable) return BadAddress(text);
    return address;
  }
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || !ParsePort(text.substr(colon + 1), &address.port)) {
    return BadAddress(text);
  }
  std::string_view host = text.substr(0, colon);
  const bool brackets = host.size() > 2 && host.front() == '[' && host.back() == ']';
  address.host = brackets ? host.substr(1, host.size() - 2) : host;
  if (brackets ? !IsIpv6(address.host) : !IsHostName(host)) return BadAddress(text);
  return address;
}

}  // namespace trivium::net
