#include "common/transfer/sealed_rows.h"

#include <algorithm>

#include "common/transfer/copy.h"

namespace trivium::transfer {
namespace {

// Small enough to be in the first-level cache when the checksum reads what the copy wrote.
constexpr size_t kStride = 16 * 1024;

}  // namespace

SealedRows::SealedRows(const HeaderBytes& header, Runs runs, kv::BlockLease lease)
    : runs_(std::move(runs)), lease_(std::move(lease)) {
  checksum_.Update(header);
  for (const std::span<const uint8_t> run : runs_) row_bytes_ += run.size();
}

void SealedRows::Seek(size_t offset) {
  if (offset < run_begin_) run_ = run_begin_ = 0;
  while (offset - run_begin_ >= runs_[run_].size()) run_begin_ += runs_[run_++].size();
}

void SealedRows::ReadRows(size_t offset, std::span<uint8_t> out) {
  while (!out.empty()) {
    Seek(offset);
    const std::span<const uint8_t> rest = runs_[run_].subspan(offset - run_begin_);
    const size_t count = std::min({rest.size(), out.size(), kStride});
    CopyRun(rest.data(), out.data(), count);
    if (hashed_ >= offset && hashed_ < offset + count) {
      checksum_.Update(out.first(count).subspan(hashed_ - offset));
      hashed_ = offset + count;
    }
    offset += count;
    out = out.subspan(count);
  }
}

void SealedRows::Read(size_t offset, std::span<uint8_t> out) {
  const size_t rows = std::min(out.size(), row_bytes_ - std::min(offset, row_bytes_));
  ReadRows(offset, out.first(rows));
  if (rows == out.size()) return;
  const SealBytes seal = MakeSeal(hashed_ == row_bytes_ ? checksum_.Digest() : ~checksum_.Digest());
  const size_t begin = offset + rows - row_bytes_;
  std::copy_n(seal.begin() + static_cast<ptrdiff_t>(begin), out.size() - rows,
              out.begin() + static_cast<ptrdiff_t>(rows));
}

}  // namespace trivium::transfer
