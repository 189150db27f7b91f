#include "kernels/cpu/rope_table.h"

#include <algorithm>
#include <cmath>

namespace trivium::kernels {
namespace {

constexpr int kPagePositions = 64;
constexpr int kMaxPages = 2048;  // 131072 positions; 32 MiB at 64 rotated elements

}  // namespace

bool RopeTable::Holds(std::span<const double> frequencies, double scale) const {
  return scale == scale_ && std::ranges::equal(frequencies, frequencies_);
}

void RopeTable::Prepare(const int32_t* positions, int rows, std::span<const double> frequencies,
                        double scale) {
  if (!Holds(frequencies, scale)) {
    frequencies_.assign(frequencies.begin(), frequencies.end());
    scale_ = scale;
    pairs_ = frequencies.size();
    pages_.assign(kMaxPages, {});
  }
  rows_.resize(rows);
  const size_t row_floats = 2 * pairs_;
  far_rows_.clear();
  far_rows_.reserve(rows * row_floats);  // so that pointers into it stay valid
  for (int r = 0; r < rows; ++r) {
    if (positions[r] < kPagePositions * kMaxPages) {
      rows_[r] = Kept(positions[r]);
      continue;
    }
    far_rows_.resize(far_rows_.size() + row_floats);
    float* row = far_rows_.data() + far_rows_.size() - row_floats;
    Compute(positions[r], row);
    rows_[r] = row;
  }
}

const float* RopeTable::Kept(int32_t position) {
  const size_t row_floats = 2 * pairs_;
  std::vector<float>& page = pages_[position / kPagePositions];
  if (page.empty()) {
    page.resize(kPagePositions * row_floats);
    const int32_t first = position / kPagePositions * kPagePositions;
    for (int i = 0; i < kPagePositions; ++i) Compute(first + i, page.data() + i * row_floats);
  }
  return page.data() + position % kPagePositions * row_floats;
}

void RopeTable::Compute(int32_t position, float* out) const {
  for (size_t i = 0; i < pairs_; ++i) {
    const double angle = position * frequencies_[i];
    out[i] = static_cast<float>(scale_ * std::cos(angle));
    out[pairs_ + i] = static_cast<float>(scale_ * std::sin(angle));
  }
}

}  // namespace trivium::kernels
