// A link between transports of one process: queues under a lock. Parked payloads stay in the
// sender's buffer until they are received or discarded, as on a real wire. Thread-safety: as Link;
// different links on different threads.
#pragma once

#include <memory>

#include "common/transfer/link.h"

namespace trivium::transfer {

std::unique_ptr<Link> MakeInProcessLink();

}  // namespace trivium::transfer
