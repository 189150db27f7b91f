// Where the rows of a token range lie in KV pages, and how they are laid out in a message: for each
// layer, for each block that the range touches, the K rows and then the V rows of its valid tokens.
// A whole block is its page, byte for byte. Pure functions over memory that the caller owns.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "common/kv/kv_storage.h"
#include "common/transfer/transport.h"
#include "common/transfer/wire.h"

namespace trivium::transfer {

// Pieces of memory, in order.
using RowRuns = std::vector<std::span<uint8_t>>;

class RowMap {
 public:
  explicit RowMap(const kv::KvStorage& storage) : storage_(&storage) {}

  const kv::KvStorage& storage() const { return *storage_; }
  int32_t layers() const { return storage_->layers(); }
  int32_t block_tokens() const { return storage_->layout().block_tokens; }
  // Bytes of one token in one layer: its K row and its V row.
  int64_t TokenBytes() const { return storage_->layout().RowWords() * 2 * 2; }
  // Exact; the range must be well-formed (begin <= end, non-negative).
  int64_t Bytes(const RowRange& rows) const;

  // Cuts a range into messages of at most `limit` bytes (which hold at least one token): several
  // whole layers where they fit, else token ranges of one layer that end on block borders where a
  // block fits.
  void Split(const RowRange& rows, size_t limit, std::deque<RowRange>* out) const;

  // The rows where they lie, in the order of a message.
  RowRuns Runs(std::span<const BlockId> blocks, const RowRange& rows) const;
  // Zeros the rows behind token_end in the block that holds it, in every layer.
  void ZeroTail(std::span<const BlockId> blocks, int32_t token_end) const;

 private:
  template <typename F>
  void ForEachRun(std::span<const BlockId> blocks, const RowRange& rows, F&& visit) const;

  const kv::KvStorage* storage_;
};

}  // namespace trivium::transfer
