// What a packed matrix keeps in memory: the table in kernels/README.md.
#include "kernels/cpu/packed_matrix.h"

#include <gtest/gtest.h>

#include <vector>

namespace trivium::kernels {
namespace {

TEST(PackedMatrixTest, TakesTheStatedBitsPerWeight) {
  const std::pair<WeightType, double> kBits[] = {
      {WeightType::kF32, 32},      {WeightType::kF16, 16},     {WeightType::kBF16, 16},
      {WeightType::kQ4_0, 4.5},    {WeightType::kQ4_1, 5},     {WeightType::kQ4_K, 4.625},
      {WeightType::kQ3_K, 4.5625}, {WeightType::kQ2_K, 5.125}, {WeightType::kQ8_0, 8.5},
      {WeightType::kQ6_K, 6.5625}, {WeightType::kQ5_K, 5.625}, {WeightType::kQ5_0, 5.5},
      {WeightType::kQ5_1, 6},      {WeightType::kIQ4_NL, 4.5},
  };
  EXPECT_EQ(std::size(kBits), AllWeightTypes().size());
  ThreadPool pool(1);
  PanelMemory memory;
  constexpr int64_t kRows = 17, kCols = 512;  // 17: the last panel is padded to 24
  for (const auto& [type, bits] : kBits) {
    const std::vector<uint8_t> bytes(kRows * RowBytes(type, kCols));
    const PackedMatrix matrix({type, bytes.data(), kRows, kCols}, memory, pool);
    EXPECT_EQ(matrix.panel_count() * matrix.panel_bytes() * 8, 24 * kCols * bits)
        << WeightTypeName(type);
  }
}

}  // namespace
}  // namespace trivium::kernels
