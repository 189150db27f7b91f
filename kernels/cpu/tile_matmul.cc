#include "kernels/cpu/tile_matmul.h"

#include <algorithm>

namespace trivium::kernels {
namespace {

// Waking another thread costs a few microseconds; below these sizes one thread is faster.
constexpr int64_t kElementsPerPart = 16384;
constexpr int64_t kProductsPerPart = 1 << 20;
constexpr int64_t kBlockBytes = 1 << 20;

const PackedMatrix& MatrixOf(const Product& product) {
  return static_cast<const PackedMatrix&>(*product.w);
}

int64_t GroupsOf(const PackedMatrix& matrix, int64_t panels) {
  return (matrix.panel_count() + panels - 1) / panels;
}

int64_t GrainOf(const PackedMatrix& matrix, int64_t panels, int64_t rows) {
  return kProductsPerPart / (matrix.cols() * panels * kPanelOutputs * rows);
}

// Rows that a matrix passes by at a time, in pairs of tiles: their bfloat16 form stays in the
// second-level cache.
int64_t BlockRows(int64_t rows, int64_t k) {
  const int64_t blocks = (2 * rows * k + kBlockBytes - 1) / kBlockBytes;
  return ((rows + blocks - 1) / blocks + 2 * kAmxRows - 1) / (2 * kAmxRows) * (2 * kAmxRows);
}

// The panels of groups begin … end - 1, if some are there.
void RunGroups(BfloatTask task, int64_t begin, int64_t end, int64_t panels) {
  task.panel_begin = std::max<int64_t>(begin, 0) * panels;
  task.panel_end = std::min(end * panels, (task.n + kPanelOutputs - 1) / kPanelOutputs);
  if (task.panel_begin >= task.panel_end) return;
  const int64_t rows = task.rows, block = BlockRows(rows, task.k);
  const int64_t inputs = (task.k + kAmxInputs - 1) / kAmxInputs * kAmxInputs;
  for (int64_t row = 0; row < rows; row += block) {
    task.rows = std::min(block, rows - row);
    AmxTileKernels().matmul(task);
    task.x += block * inputs;
    task.y += block * task.n;
    if (task.up_y != nullptr) task.up_y += block * task.n;
    if (task.narrowed != nullptr) task.narrowed += block * task.n;
  }
}

}  // namespace

bool TileMatmul::CanShare(std::span<const Product> products) {
  const PackedMatrix& first = MatrixOf(products[0]);
  return std::all_of(products.begin(), products.end(), [&](const Product& product) {
    const PackedMatrix& matrix = MatrixOf(product);
    return matrix.kind() != PanelKind::kF32 && matrix.cols() == first.cols() &&
           QuantPanelOf(matrix.kind()).nibbles == QuantPanelOf(first.kind()).nibbles;
  });
}

bool TileMatmul::CanGate(Activation activation, const Product& gate, const Product& up) {
  const PackedMatrix &a = MatrixOf(gate), &b = MatrixOf(up);
  return activation == Activation::kSilu && a.kind() != PanelKind::kF32 && a.kind() == b.kind() &&
         a.rows() == b.rows() && a.cols() == b.cols();
}

bool TileMatmul::CanGateDown(Activation activation, const Product& gate, const Product& up,
                             const Product& down) {
  const PackedMatrix& matrix = MatrixOf(down);
  return CanGate(activation, gate, up) && matrix.kind() != PanelKind::kF32 &&
         matrix.cols() == MatrixOf(gate).rows() && matrix.cols() % kAmxInputs == 0;
}

void TileMatmul::GrowTo(std::vector<TileRow>& buffer, int64_t rows, int64_t inputs) {
  const int64_t tiles = (rows + kAmxRows - 1) / kAmxRows;
  const auto size =
      static_cast<size_t>(tiles * ((inputs + kAmxInputs - 1) / kAmxInputs) * kAmxRows);
  if (buffer.size() < size) buffer.resize(size);
}

void TileMatmul::Run(std::span<const Product> products, const float* x, int rows) {
  Narrow(MatrixOf(products[0]), x, rows);
  int64_t groups = 0;
  for (const Product& product : products) groups += GroupsOf(MatrixOf(product), kAmxPanels);
  const int64_t grain = GrainOf(MatrixOf(products[0]), kAmxPanels, rows);
  pool_.ParallelFor(groups, grain, [&](int64_t begin, int64_t end, int) {
    for (const Product& product : products) {
      RunGroups(TaskOf(product, rows), begin, end, kAmxPanels);
      begin -= GroupsOf(MatrixOf(product), kAmxPanels);
      end -= GroupsOf(MatrixOf(product), kAmxPanels);
    }
  });
}

void TileMatmul::RunGated(const Product& gate, const Product& up, const float* x, int rows) {
  Narrow(MatrixOf(gate), x, rows);
  Gate(TaskOf(gate, rows), gate, up);
}

void TileMatmul::RunGatedDown(const Product& gate, const Product& up, const Product& down,
                              const float* x, int rows) {
  const PackedMatrix& matrix = MatrixOf(down);
  Narrow(MatrixOf(gate), x, rows);
  GrowTo(gated_rows_, rows, matrix.cols());
  BfloatTask task = TaskOf(gate, rows);
  task.narrowed = gated_rows_[0].inputs;
  task.narrowed_kind = matrix.kind();
  Gate(task, gate, up);
  task = TaskOf(down, rows);
  task.x = gated_rows_[0].inputs;
  pool_.ParallelFor(
      GroupsOf(matrix, kAmxPanels), GrainOf(matrix, kAmxPanels, rows),
      [&](int64_t begin, int64_t end, int) { RunGroups(task, begin, end, kAmxPanels); });
}

void TileMatmul::Gate(BfloatTask task, const Product& gate, const Product& up) {
  constexpr int64_t kPanels = kAmxPanels / 2;
  const PackedMatrix& matrix = MatrixOf(gate);
  task.up_panels = MatrixOf(up).panels();
  task.up_y = up.y;
  pool_.ParallelFor(GroupsOf(matrix, kPanels), GrainOf(matrix, kAmxPanels, task.rows),
                    [&](int64_t begin, int64_t end, int) { RunGroups(task, begin, end, kPanels); });
}

void TileMatmul::Narrow(const PackedMatrix& matrix, const float* x, int64_t rows) {
  const int64_t tiles = (rows + kAmxRows - 1) / kAmxRows, k = matrix.cols();
  const int64_t tile_rows = (k + kAmxInputs - 1) / kAmxInputs * kAmxRows;
  GrowTo(tile_rows_, rows, k);
  const int64_t grain = kElementsPerPart / (k * kAmxRows);
  pool_.ParallelFor(tiles, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t row = tile * kAmxRows;
      AmxTileKernels().narrow_rows(matrix.kind(), x + row * k, k, rows - row,
                                   tile_rows_[static_cast<size_t>(tile * tile_rows)].inputs);
    }
  });
}

BfloatTask TileMatmul::TaskOf(const Product& product, int64_t rows) const {
  const PackedMatrix& matrix = MatrixOf(product);
  return {.kind = matrix.kind(),
          .panels = matrix.panels(),
          .panel_bytes = matrix.panel_bytes(),
          .n = matrix.rows(),
          .k = matrix.cols(),
          .rows = rows,
          .x = tile_rows_[0].inputs,
          .y = product.y};
}

}  // namespace trivium::kernels
