// Copies between KV pages and buffers, for runs of some kilobytes. Stateless; safe from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace trivium::transfer {

// For what is read soon. Meanwhile `next`, at most as long as `from`, is fetched into the cache:
// the processor itself looks ahead to the end of a memory page only.
void CopyRun(std::span<const uint8_t> from, uint8_t* to, std::span<const uint8_t> next = {});
// For what is read much later: past the caches, since to fetch the old content of `to` first would
// cost more than half of the time. Other threads may miss it until EndStream.
void StreamRun(const uint8_t* from, uint8_t* to, size_t bytes);
// What was streamed is seen by whoever sees anything stored from now on.
void EndStream();

}  // namespace trivium::transfer
