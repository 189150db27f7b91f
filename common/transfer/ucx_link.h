// A link over UCX active messages: shared memory inside a host, TCP between hosts. Small messages
// go eagerly, payloads above kInlineBytes by rendezvous, so that they move only when the receiver
// asks. The remote-memory feature is never asked for: no peer can read or write this process's
// memory. Thread-safety: as Link; the thread that makes it is the thread that drives it.
#pragma once

#include <memory>
#include <string>

#include "common/transfer/link.h"
#include "common/transfer/transport.h"

namespace trivium::transfer {

struct UcxLinkOptions {
  std::string transports = "posix,tcp,self";  // of data; connections are made over TCP
  std::string interface = "lo";
  PortRange ports = {};  // that the link and UCX listen on
};

// INVALID_ARGUMENT for a transport that must not be used, UNAVAILABLE naming what UCX says.
absl::StatusOr<std::unique_ptr<Link>> MakeUcxLink(const UcxLinkOptions& options);

}  // namespace trivium::transfer
