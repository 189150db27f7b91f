// The payload of a Rows message, rows and seal, between KV pages and the wire. The seal is made and
// checked while the rows are copied, so that either side passes its memory once. The lease keeps
// the pages until the wire has let go.
// Thread-safety: none; one thread at a time.
#pragma once

#include <cstdint>
#include <span>

#include "common/kv/block_pool.h"
#include "common/transfer/rows.h"
#include "common/transfer/wire.h"

namespace trivium::transfer {

// Runs of memory, read or written as if they were one piece.
class RunCursor {
 public:
  explicit RunCursor(RowRuns runs);
  size_t bytes() const { return bytes_; }
  const RowRuns& runs() const { return runs_; }
  // The rest, from `offset` on, of the run that holds it. Fast where offsets grow.
  std::span<uint8_t> From(size_t offset);

 private:
  RowRuns runs_;
  size_t bytes_ = 0;
  size_t run_ = 0, run_begin_ = 0;  // the run of the last call, and its offset
};

// Out of pages.
class SealedRows {
 public:
  // The seal covers `header` and then the runs.
  SealedRows(const HeaderBytes& header, RowRuns runs, kv::BlockLease lease);

  size_t bytes() const { return rows_.bytes() + kSealBytes; }
  // Copies the bytes from `offset` on. Whoever reads from 0 to the end gets the right seal, also
  // when he reads a part again; who leaves out a part gets a seal that no receiver accepts.
  void Read(size_t offset, std::span<uint8_t> out);

 private:
  void ReadRows(size_t offset, std::span<uint8_t> out);

  RunCursor rows_;
  kv::BlockLease lease_;
  Checksum checksum_;
  size_t hashed_ = 0;
};

// Into pages: as the bytes come, before anybody knows that they are right. Whoever owns the pages
// must not read these rows until IsRight().
class ArrivingRows {
 public:
  ArrivingRows(const HeaderBytes& header, RowRuns runs, kv::BlockLease lease);

  size_t bytes() const { return rows_.bytes() + kSealBytes; }
  // Takes the bytes from `offset` on, fastest in order. False, and nothing is written, where they
  // reach behind bytes().
  bool Write(size_t offset, std::span<const uint8_t> in);
  // Whether header and rows are what the seal was made of. After the last Write.
  bool IsRight() const;
  // Zeros in place of the rows.
  void Erase();

 private:
  void WriteRows(size_t offset, std::span<const uint8_t> in);

  const HeaderBytes header_;
  RunCursor rows_;
  kv::BlockLease lease_;
  Checksum checksum_;  // of what came in order
  bool in_order_ = true;
  size_t written_ = 0;  // end of the last Write
  SealBytes seal_{};
};

}  // namespace trivium::transfer
