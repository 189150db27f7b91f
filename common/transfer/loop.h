// A Transport over any link: one thread runs the engine, commands reach it through a queue.
// Thread-safety: all methods, any thread. A landing is known to the thread before its ticket is
// given out, and commands run before the messages that came after them.
#pragma once

#include <functional>
#include <memory>

#include "common/transfer/link.h"
#include "common/transfer/transport.h"
#include "common/transfer/wiring.h"

namespace trivium::transfer {

// Makes the link; called on the transport's thread, which alone uses the link.
using LinkFactory = std::function<absl::StatusOr<std::unique_ptr<Link>>()>;

// INVALID_ARGUMENT for options that can't be served, else what the factory says.
absl::StatusOr<std::unique_ptr<Transport>> MakeTransport(TransportOptions options, LinkKind kind,
                                                         LinkFactory factory);

// Random, never 0.
uint64_t DrawTransportId();

}  // namespace trivium::transfer
