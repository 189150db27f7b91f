#include "common/worker/landing.h"

#include <algorithm>

namespace trivium::worker {

transfer::LandingOptions LandingIn(const kv::Reservation& blocks, const kv::BlockPool& pool,
                                   TokenSpan tokens) {
  const std::span<const BlockId> all = blocks.blocks();
  transfer::LandingOptions landing;
  landing.into = {.blocks = {all.begin(), all.end()}, .lease = blocks.Lease()};
  for (BlockId block : all.subspan(static_cast<size_t>(blocks.cached_blocks()))) {
    landing.generation = std::max<uint64_t>(landing.generation, pool.generation(block));
  }
  landing.token_begin = tokens.begin;
  landing.token_end = tokens.end;
  return landing;
}

}  // namespace trivium::worker
