// host:port, [v6]:port and unix:PATH, taken apart and checked without asking a name server.
// Values; safe from any thread.
#pragma once

#include <string>
#include <string_view>

#include "common/base/status.h"

namespace trivium::net {

struct Address {
  std::string host;  // without brackets; the path of a unix socket
  int port = 0;      // 0 … 65535
  bool is_unix = false;

  // Reachable from this machine alone: 127.0.0.0/8, ::1, localhost or a unix socket.
  bool IsLoopback() const;
};

// INVALID_ARGUMENT, naming the text, for anything else.
absl::StatusOr<Address> ParseAddress(std::string_view text);

}  // namespace trivium::net
