// Where KV lands in blocks that were reserved, at whichever stage. Pure; safe from any thread.
#pragma once

#include <cstdint>

#include "common/kv/block_pool.h"
#include "common/transfer/transport.h"

namespace trivium::worker {

struct TokenSpan {
  int32_t begin = 0, end = 0;
};

// All but credentials and on_arrival. `tokens` begin behind the blocks that the reservation found
// in the pool: those are not to be written.
transfer::LandingOptions LandingIn(const kv::Reservation& blocks, const kv::BlockPool& pool,
                                   TokenSpan tokens);

}  // namespace trivium::worker
