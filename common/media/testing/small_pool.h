// A pool of multimedia tokens for tests: so many blocks, behind an in-process transport.
// Thread-safety: MediaPool's.
#pragma once

#include <utility>

#include "common/base/status.h"
#include "common/media/media_pool.h"
#include "common/transfer/transport.h"

namespace trivium::media {

inline MediaPool MakeSmallPool(uint64_t epoch, int32_t blocks, int32_t hidden,
                               const transfer::TransferTimeouts& timeouts = {}) {
  transfer::TransportOptions transport;
  transport.epoch = {epoch};
  transport.timeouts = timeouts;
  auto pool = MakeMediaPool({.hidden = hidden,
                             .memory_bytes = int64_t{blocks} * kBlockTokens * hidden * 4,
                             .transport = std::move(transport)},
                            transfer::MakeInProcessTransport);
  TRIVIUM_CHECK(pool.ok(), "{}", Message(pool.status()));
  return *std::move(pool);
}

}  // namespace trivium::media
