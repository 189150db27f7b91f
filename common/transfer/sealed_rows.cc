#include "common/transfer/sealed_rows.h"

#include <algorithm>
#include <cstring>

#include "common/transfer/copy.h"

namespace trivium::transfer {
namespace {

// Small enough to be in the first-level cache when checksum and copy follow each other.
constexpr size_t kStride = 16 * 1024;

// How many of `count` bytes from `offset` on are rows; the others are of the seal.
size_t RowsOf(const RunCursor& rows, size_t offset, size_t count) {
  return std::min(count, rows.bytes() - std::min(offset, rows.bytes()));
}

}  // namespace

RunCursor::RunCursor(RowRuns runs) : runs_(std::move(runs)) {
  for (const std::span<uint8_t> run : runs_) bytes_ += run.size();
}

std::span<uint8_t> RunCursor::From(size_t offset) {
  if (offset < run_begin_) run_ = run_begin_ = 0;
  while (offset - run_begin_ >= runs_[run_].size()) run_begin_ += runs_[run_++].size();
  return runs_[run_].subspan(offset - run_begin_);
}

SealedRows::SealedRows(const HeaderBytes& header, RowRuns runs, kv::BlockLease lease)
    : rows_(std::move(runs)), lease_(std::move(lease)) {
  checksum_.Update(header);
}

void SealedRows::ReadRows(size_t offset, std::span<uint8_t> out) {
  while (!out.empty()) {
    const std::span<const uint8_t> rest = rows_.From(offset);
    const size_t count = std::min({rest.size(), out.size(), kStride});
    std::span<const uint8_t> next;
    if (offset + count < rows_.bytes()) next = rows_.From(offset + count);
    CopyRun(rest.first(count), out.data(), next.first(std::min(count, next.size())));
    if (hashed_ >= offset && hashed_ < offset + count) {
      checksum_.Update(out.first(count).subspan(hashed_ - offset));
      hashed_ = offset + count;
    }
    offset += count;
    out = out.subspan(count);
  }
}

void SealedRows::Read(size_t offset, std::span<uint8_t> out) {
  const size_t rows = RowsOf(rows_, offset, out.size());
  ReadRows(offset, out.first(rows));
  if (rows == out.size()) return;
  const bool whole = hashed_ == rows_.bytes();
  const SealBytes seal = MakeSeal(whole ? checksum_.Digest() : ~checksum_.Digest());
  std::memcpy(out.data() + rows, seal.data() + (offset + rows - rows_.bytes()), out.size() - rows);
}

ArrivingRows::ArrivingRows(const HeaderBytes& header, RowRuns runs, kv::BlockLease lease)
    : header_(header), rows_(std::move(runs)), lease_(std::move(lease)) {
  checksum_.Update(header_);
}

void ArrivingRows::WriteRows(size_t offset, std::span<const uint8_t> in) {
  while (!in.empty()) {
    const std::span<uint8_t> rest = rows_.From(offset);
    const size_t count = std::min({rest.size(), in.size(), kStride});
    if (in_order_) checksum_.Update(in.first(count));
    StreamRun(in.data(), rest.data(), count);
    offset += count;
    in = in.subspan(count);
  }
}

bool ArrivingRows::Write(size_t offset, std::span<const uint8_t> in) {
  if (offset > bytes() || in.size() > bytes() - offset) return false;
  in_order_ = in_order_ && offset == written_;
  written_ = offset + in.size();
  const size_t rows = RowsOf(rows_, offset, in.size());
  WriteRows(offset, in.first(rows));
  if (rows == in.size()) return true;
  std::memcpy(seal_.data() + (offset + rows - rows_.bytes()), in.data() + rows, in.size() - rows);
  return true;
}

bool ArrivingRows::IsRight() const {
  EndStream();
  if (in_order_) return written_ == bytes() && MakeSeal(checksum_.Digest()) == seal_;
  Checksum whole;
  whole.Update(header_);
  for (const std::span<const uint8_t> run : rows_.runs()) whole.Update(run);
  return MakeSeal(whole.Digest()) == seal_;
}

void ArrivingRows::Erase() {
  for (const std::span<uint8_t> run : rows_.runs()) std::memset(run.data(), 0, run.size());
}

}  // namespace trivium::transfer
