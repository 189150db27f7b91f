// Copies between KV pages and buffers, for runs of some kilobytes. Stateless; safe from any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trivium::transfer {

// For what is read soon.
void CopyRun(const uint8_t* from, uint8_t* to, size_t bytes);
// For what is read much later: past the caches, since to fetch the old content of `to` first would
// cost more than half of the time. Other threads may miss it until EndStream.
void StreamRun(const uint8_t* from, uint8_t* to, size_t bytes);
// What was streamed is seen by whoever sees anything stored from now on.
void EndStream();

}  // namespace trivium::transfer
