// The payload of a Rows message: the rows as they lie in KV pages, then their seal, which is made
// while they are read, so that memory is passed once. The lease keeps the pages until the wire has
// let go.
// Thread-safety: none; one thread at a time.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/kv/block_pool.h"
#include "common/transfer/wire.h"

namespace trivium::transfer {

class SealedRows {
 public:
  using Runs = std::vector<std::span<const uint8_t>>;
  // The seal covers `header` and then the runs.
  SealedRows(const HeaderBytes& header, Runs runs, kv::BlockLease lease);

  size_t bytes() const { return row_bytes_ + kSealBytes; }
  // Copies the bytes from `offset` on. Whoever reads from 0 to the end gets the right seal, also
  // when he reads a part again; who leaves out a part gets a seal that no receiver accepts.
  void Read(size_t offset, std::span<uint8_t> out);

 private:
  void Seek(size_t offset);
  void ReadRows(size_t offset, std::span<uint8_t> out);

  Runs runs_;
  kv::BlockLease lease_;
  Checksum checksum_;
  size_t row_bytes_ = 0;
  size_t hashed_ = 0;
  size_t run_ = 0, run_begin_ = 0;  // the run of the last read, and its offset
};

}  // namespace trivium::transfer
