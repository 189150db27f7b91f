#include "common/transfer/rows.h"

#include <algorithm>
#include <cstring>

namespace trivium::transfer {

int64_t RowMap::Bytes(const RowRange& rows) const {
  return int64_t{rows.layer_end - rows.layer_begin} * (rows.token_end - rows.token_begin) *
         TokenBytes();
}

void RowMap::Split(const RowRange& rows, size_t limit, std::deque<RowRange>* out) const {
  const int64_t tokens = rows.token_end - rows.token_begin;
  if (tokens <= 0) return;
  const int64_t tokens_fit = static_cast<int64_t>(limit) / TokenBytes();
  const int64_t layers_fit = tokens_fit / tokens;
  if (layers_fit >= 1) {
    for (int64_t layer = rows.layer_begin; layer < rows.layer_end; layer += layers_fit) {
      RowRange part = rows;
      part.layer_begin = static_cast<int32_t>(layer);
      part.layer_end = static_cast<int32_t>(std::min<int64_t>(layer + layers_fit, rows.layer_end));
      out->push_back(part);
    }
    return;
  }
  for (int32_t layer = rows.layer_begin; layer < rows.layer_end; ++layer) {
    int64_t token = rows.token_begin;
    while (token < rows.token_end) {
      int64_t end = std::min<int64_t>(token + tokens_fit, rows.token_end);
      if (end < rows.token_end && end - end % block_tokens() > token) end -= end % block_tokens();
      out->push_back({layer, layer + 1, static_cast<int32_t>(token), static_cast<int32_t>(end)});
      token = end;
    }
  }
}

template <typename F>
void RowMap::ForEachRun(std::span<const BlockId> blocks, const RowRange& rows, F&& visit) const {
  const int64_t row_bytes = TokenBytes() / 2;
  const int32_t in_block = block_tokens();
  for (int32_t layer = rows.layer_begin; layer < rows.layer_end; ++layer) {
    for (int32_t token = rows.token_begin; token < rows.token_end;) {
      const int32_t slot = token % in_block;
      const int32_t count = std::min(in_block - slot, rows.token_end - token);
      auto* page = reinterpret_cast<uint8_t*>(
          storage_->page(layer, blocks[static_cast<size_t>(token / in_block)]));
      if (count == in_block) {
        visit(page, static_cast<size_t>(2 * count * row_bytes));
      } else {
        visit(page + slot * row_bytes, static_cast<size_t>(count * row_bytes));
        visit(page + (in_block + slot) * row_bytes, static_cast<size_t>(count * row_bytes));
      }
      token += count;
    }
  }
}

RowRuns RowMap::Runs(std::span<const BlockId> blocks, const RowRange& rows) const {
  RowRuns runs;
  ForEachRun(blocks, rows, [&](uint8_t* run, size_t bytes) { runs.push_back({run, bytes}); });
  return runs;
}

void RowMap::ZeroTail(std::span<const BlockId> blocks, int32_t token_end) const {
  const int32_t used = token_end % block_tokens();
  if (used == 0) return;
  const RowRange tail{0, layers(), token_end, token_end + block_tokens() - used};
  ForEachRun(blocks, tail, [](uint8_t* run, size_t bytes) { std::memset(run, 0, bytes); });
}

}  // namespace trivium::transfer
