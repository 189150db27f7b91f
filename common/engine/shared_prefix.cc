#include "common/engine/shared_prefix.h"

#include <algorithm>

namespace trivium::engine {

void GroupBySharedPrefix(std::span<const int32_t> positions, int block_tokens,
                         std::vector<kernels::SequenceSpan>& spans) {
  const auto past = [&](const kernels::SequenceSpan& span) {
    const int32_t first = positions[static_cast<size_t>(span.row_begin)];
    return std::span(span.block_table, static_cast<size_t>(first / block_tokens));
  };
  std::sort(spans.begin(), spans.end(),
            [&](const kernels::SequenceSpan& a, const kernels::SequenceSpan& b) {
              const auto x = past(a), y = past(b);
              const auto [i, j] = std::mismatch(x.begin(), x.end(), y.begin(), y.end());
              if (i != x.end() && j != y.end()) return *i < *j;
              if (x.size() != y.size()) return x.size() < y.size();
              return a.row_begin < b.row_begin;
            });
  for (size_t i = 1; i < spans.size(); ++i) {
    const auto x = past(spans[i - 1]), y = past(spans[i]);
    const auto end = std::mismatch(x.begin(), x.end(), y.begin(), y.end()).first;
    spans[i].shared_tokens = static_cast<int>(end - x.begin()) * block_tokens;
  }
}

}  // namespace trivium::engine
