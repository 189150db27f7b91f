// Cosines and sines of the rotary angles, computed once for each position (in double precision, so
// that every instruction set rounds the same angles) and kept in pages of positions up to a bound.
// Not thread-safe: filled by the thread that drives the Ops, read by its workers afterwards.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace trivium::kernels {

class RopeTable {
 public:
  bool Holds(std::span<const double> frequencies, double scale) const;
  // Makes the angles of these positions available; forgets all others when frequencies or scale
  // change.
  void Prepare(const int32_t* positions, int rows, std::span<const double> frequencies,
               double scale);
  // [frequencies] cosines of row `row` of the last Prepare, times the scale, then as many sines.
  const float* Row(int row) const { return rows_[row]; }

 private:
  const float* Kept(int32_t position);
  void Compute(int32_t position, float* out) const;

  std::vector<double> frequencies_;
  double scale_ = 0;
  size_t pairs_ = 0;
  std::vector<std::vector<float>>
      pages_;                    // each whole, or empty until a position of it is asked for
  std::vector<float> far_rows_;  // rows of the last Prepare with positions past the bound
  std::vector<const float*> rows_;
};

}  // namespace trivium::kernels
