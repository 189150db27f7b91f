// Finds what the sequences of a step have in common: equal leading entries of their block tables,
// which are the same KV pages. Stateless.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/ops.h"

namespace trivium::engine {

// Sorts the spans by block table, so that neighbours have the longest common prefixes, and fills in
// their shared_tokens. Only blocks that lie wholly before a span's first position count: later ones
// are being written. `positions`: by row, as in kernels::AttentionArgs.
void GroupBySharedPrefix(std::span<const int32_t> positions, int block_tokens,
                         std::vector<kernels::SequenceSpan>& spans);

}  // namespace trivium::engine
