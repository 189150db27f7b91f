#include "kernels/cpu/cpu_ops.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/check.h"
#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/cpu_encoder.h"
#include "kernels/cpu/dense_matmul.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/packed_matrix.h"
#include "kernels/cpu/rope_table.h"
#include "kernels/cpu/tile_matmul.h"
#include "kernels/thread_pool.h"

namespace trivium::kernels {
namespace {

// Waking another thread costs a few microseconds; below these sizes one thread is faster.
constexpr int64_t kElementsPerPart = 16384;
constexpr int64_t kProductsPerPart = 65536;
constexpr int64_t kTileOutputs = int64_t{kPanelOutputs} * kTilePanels;
constexpr size_t kMostShared = 3;  // matrices that take the same rows
// Half a tile of oneDNN's: with fewer rows the padding costs more than the tile gains.
constexpr int kDenseRows = DenseMatmul::kTileRows / 2;

int64_t RowGrain(int64_t row_elements) {
  return std::max<int64_t>(1, kElementsPerPart / std::max<int64_t>(1, row_elements));
}

template <typename T>
void GrowTo(std::vector<T>& buffer, int64_t elems) {
  if (buffer.size() < static_cast<size_t>(elems)) buffer.resize(static_cast<size_t>(elems));
}

// One row; as many sines follow the cosines. Nothing here is fused, so that all machines agree.
void RotateHalves(const RopeArgs& args, const float* cosines, float* x) {
  const auto pairs = static_cast<int64_t>(args.frequencies.size());
  const float* sines = cosines + pairs;
  for (int h = 0; h < args.heads; ++h, x += args.head_dim) {
    for (int64_t i = 0; i < pairs; ++i) {
      const float first = x[i], second = x[i + pairs];
      x[i] = first * cosines[i] - second * sines[i];
      x[i + pairs] = first * sines[i] + second * cosines[i];
    }
  }
}

class CpuOps final : public Ops {
 public:
  explicit CpuOps(const OpsOptions& options)
      : options_(options),
        kernels_(options.isa == Isa::kAvx2 ? Avx2Kernels() : Avx512Kernels()),
        pool_(options.threads, DenseMatmul::StayInThisThread),
        attention_(kernels_, UsesTiles() ? &AmxTileKernels() : nullptr, pool_) {}

  Isa isa() const override { return options_.isa; }
  Numerics numerics() const override { return options_.numerics; }
  int threads() const override { return pool_.threads(); }
  EncoderOps& encoder() override { return encoder_; }

  std::unique_ptr<Matrix> Pack(const WeightView& view) override {
    return std::make_unique<PackedMatrix>(view, panel_memory_, pool_);
  }

  void Matmul(const Matrix& w, const float* x, int rows, float* y) override {
    if (rows <= 0) return;
    const auto& matrix = static_cast<const PackedMatrix&>(w);
    const Product product = {&w, y};
    if (OnTiles(rows) && TileMatmul::CanShare({&product, 1})) {
      return tiles_.Run({&product, 1}, x, rows);
    }
    if (DenseMatmul* dense = DenseFor(matrix, rows)) return dense->Run(x, rows, y);
    const MatmulTask task = PrepareTask(matrix, x, rows, y);
    ForPanels(PanelsOf(task), task.k * rows,
              [&](int64_t begin, int64_t end) { RunPanels(task, begin, end); });
  }

  // One preparation of x and one wait for the threads instead of several.
  void MatmulAll(std::span<const Product> products, const float* x, int rows) override {
    if (!products.empty() && OnTiles(rows) && TileMatmul::CanShare(products)) {
      return tiles_.Run(products, x, rows);
    }
    MatmulTask tasks[kMostShared];
    if (!ShareRows(products, x, rows, tasks)) return Ops::MatmulAll(products, x, rows);
    int64_t panels = 0;
    for (size_t i = 0; i < products.size(); ++i) panels += WholeTiles(PanelsOf(tasks[i]));
    ForPanels(panels, tasks[0].k * rows, [&](int64_t begin, int64_t end) {
      for (size_t i = 0; i < products.size() && end > 0; ++i) {
        const int64_t own = PanelsOf(tasks[i]);
        RunPanels(tasks[i], std::max<int64_t>(begin, 0), std::min(end, own));
        begin -= WholeTiles(own);
        end -= WholeTiles(own);
      }
    });
  }

  void MatmulGated(Activation activation, const Product& gate, const Product& up, const float* x,
                   int rows) override {
    if (OnTiles(rows) && TileMatmul::CanGate(activation, gate, up)) {
      return tiles_.RunGated(gate, up, x, rows);
    }
    const Product both[] = {gate, up};
    MatmulTask tasks[kMostShared];
    if (!ShareRows(both, x, rows, tasks)) {
      return Ops::MatmulGated(activation, gate, up, x, rows);
    }
    const int64_t n = tasks[0].n;
    KERNELS_CHECK(n == tasks[1].n);
    ForPanels(PanelsOf(tasks[0]), 2 * tasks[0].k * rows, [&](int64_t begin, int64_t end) {
      for (const MatmulTask& task : {tasks[0], tasks[1]}) RunPanels(task, begin, end);
      const int64_t first = begin * kPanelOutputs, last = std::min(end * kPanelOutputs, n);
      for (int64_t at = first; at < first + rows * n; at += n) {
        Gate(activation, gate.y + at, up.y + at, last - first);
      }
    });
  }

  void MatmulGatedDown(Activation activation, const Product& gate, const Product& up,
                       const Product& down, const float* x, int rows) override {
    if (OnTiles(rows) && TileMatmul::CanGateDown(activation, gate, up, down)) {
      return tiles_.RunGatedDown(gate, up, down, x, rows);
    }
    Ops::MatmulGatedDown(activation, gate, up, down, x, rows);
  }

  void EmbedRows(const WeightView& table, std::span<const int32_t> ids, float* out) override {
    const auto* bytes = static_cast<const uint8_t*>(table.data);
    const int64_t row_bytes = RowBytes(table.type, table.cols);
    ForRows(static_cast<int64_t>(ids.size()), table.cols, [&](int64_t i) {
      KERNELS_CHECK(ids[i] >= 0 && ids[i] < table.rows);
      DequantizeRow(table.type, bytes + ids[i] * row_bytes, table.cols, out + i * table.cols);
    });
  }

  void RmsNorm(const float* x, const float* weight, float eps, int rows, int dim,
               float* out) override {
    ForRows(rows, dim,
            [&](int64_t r) { kernels_.rms_norm(x + r * dim, weight, eps, dim, out + r * dim); });
  }

  void Rope(const RopeArgs& args) override {
    const auto pairs = static_cast<int>(args.frequencies.size());
    KERNELS_CHECK(2 * pairs <= args.head_dim);
    if (args.rows <= 0 || pairs == 0) return;
    RopeTable& table = TableFor(args);
    table.Prepare(args.positions, args.rows, args.frequencies, args.scale);
    const int64_t row_elements = int64_t{args.heads} * args.head_dim;
    ForRows(args.rows, row_elements, [&](int64_t r) {
      const float* cosines = table.Row(static_cast<int>(r));
      float* x = args.x + r * row_elements;
      if (args.pairs == RopePairs::kHalves) return RotateHalves(args, cosines, x);
      kernels_.rope(x, cosines, cosines + pairs, args.heads, args.head_dim, 2 * pairs);
    });
  }

  void StoreKv(const StoreKvArgs& args) override {
    const KvLayout& layout = args.layout;
    const int64_t elems = layout.RowElems(), words = layout.RowWords();
    const KvRowShape shape = {layout.type, layout.kv_heads, layout.head_dim, layout.ScaleWord(0)};
    for (const SequenceSpan& span : args.spans) {
      ForRows(span.row_count, 2 * elems, [&](int64_t i) {
        const int64_t row = span.row_begin + i;
        const int32_t p = args.positions[row];
        uint16_t* key = args.kv_layer +
                        span.block_table[p / layout.block_tokens] * layout.PageWords() +
                        p % layout.block_tokens * words;
        kernels_.store_kv_row(shape, args.k + row * elems, key);
        kernels_.store_kv_row(shape, args.v + row * elems, key + layout.block_tokens * words);
      });
    }
  }

  void Attention(const AttentionArgs& args) override { attention_.Run(args); }

  void ActivateMul(Activation activation, float* gate, const float* up, int64_t count) override {
    pool_.ParallelFor(count, kElementsPerPart, [&](int64_t begin, int64_t end, int) {
      Gate(activation, gate + begin, up + begin, end - begin);
    });
  }

  void Add(float* x, const float* y, int64_t count) override {
    pool_.ParallelFor(count, kElementsPerPart, [&](int64_t begin, int64_t end, int) {
      kernels_.add(x + begin, y + begin, end - begin);
    });
  }

  void Scale(float* x, float factor, int64_t count) override {
    pool_.ParallelFor(count, kElementsPerPart, [&](int64_t begin, int64_t end, int) {
      kernels_.encoder.scale(x + begin, factor, end - begin, x + begin);
    });
  }

  void SoftCap(float* x, float cap, int64_t count) override {
    pool_.ParallelFor(count, kElementsPerPart, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) x[i] = cap * std::tanh(x[i] / cap);
    });
  }

 private:
  template <typename Fn>
  void ForRows(int64_t rows, int64_t row_elements, const Fn& fn) {
    pool_.ParallelFor(rows, RowGrain(row_elements), [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) fn(r);
    });
  }

  // The table that holds these angles, or the one that was used longest ago.
  RopeTable& TableFor(const RopeArgs& args) {
    if (!ropes_[last_rope_].Holds(args.frequencies, args.scale)) last_rope_ ^= 1;
    return ropes_[last_rope_];
  }

  bool UsesTiles() const {
    return options_.isa == Isa::kAmx && options_.numerics == Numerics::kFast;
  }
  bool OnTiles(int rows) const { return UsesTiles() && rows > kMostFewRows; }

  // Large batches of float matrices under kFast but on AVX2: there oneDNN is slower.
  DenseMatmul* DenseFor(const PackedMatrix& matrix, int rows) {
    if (options_.numerics != Numerics::kFast || rows < kDenseRows) return nullptr;
    if (options_.isa == Isa::kAvx2 || BlockElems(matrix.view().type) > 1) return nullptr;
    return matrix.Dense(options_.isa, pool_);
  }

  void Gate(Activation activation, float* gate, const float* up, int64_t count) const {
    KERNELS_CHECK(activation == Activation::kSilu || activation == Activation::kGeluTanh);
    if (activation == Activation::kSilu) return kernels_.silu_mul(gate, up, count);
    kernels_.encoder.activate(activation, gate, count);
    for (int64_t i = 0; i < count; ++i) gate[i] *= up[i];
  }

  static int64_t PanelsOf(const MatmulTask& task) {
    return (task.n + kPanelOutputs - 1) / kPanelOutputs;
  }

  // A tile of many rows takes kTilePanels panels, so whole tiles go to a thread.
  static int64_t WholeTiles(int64_t panels) {
    return (panels + kTilePanels - 1) / kTilePanels * kTilePanels;
  }

  // Calls fn(begin, end) in several threads for all panels, in whole tiles. `products` is the
  // multiplications of one output.
  template <typename Fn>
  void ForPanels(int64_t panels, int64_t products, const Fn& fn) {
    const int64_t grain = std::max<int64_t>(1, kProductsPerPart / (products * kTileOutputs));
    pool_.ParallelFor(WholeTiles(panels) / kTilePanels, grain,
                      [&](int64_t begin, int64_t end, int) {
                        fn(begin * kTilePanels, std::min(end * kTilePanels, panels));
                      });
  }

  void RunPanels(const MatmulTask& task, int64_t begin, int64_t end) const {
    if (begin >= end) return;
    MatmulTask part = task;
    part.panel_begin = begin;
    part.panel_end = end;
    kernels_.matmul(part);
  }

  MatmulTask PrepareTask(const PackedMatrix& matrix, const float* x, int rows, float* y) {
    MatmulTask task;
    task.kind = matrix.kind();
    task.panels = matrix.panels();
    task.panel_bytes = matrix.panel_bytes();
    task.n = matrix.rows();
    task.k = matrix.cols();
    task.rows = rows;
    task.x = x;
    task.y = y;
    if (BlockElems(matrix.view().type) > 1) Quantise(task);
    return task;
  }

  // Whether matrices take activations in the same form.
  static bool AreAlike(const PackedMatrix& a, const PackedMatrix& b) {
    const auto is_float = [](const PackedMatrix& m) { return BlockElems(m.view().type) == 1; };
    return a.cols() == b.cols() && is_float(a) == is_float(b) &&
           QuantPanelOf(a.kind()).nibbles == QuantPanelOf(b.kind()).nibbles;
  }

  // Fills the tasks of all products from one preparation of x; false where there is none.
  bool ShareRows(std::span<const Product> products, const float* x, int rows, MatmulTask* tasks) {
    if (rows <= 0 || rows > kMostFewRows || products.empty() || products.size() > kMostShared) {
      return false;
    }
    const auto& first = static_cast<const PackedMatrix&>(*products[0].w);
    for (const Product& product : products) {
      if (!AreAlike(first, static_cast<const PackedMatrix&>(*product.w))) return false;
    }
    tasks[0] = PrepareTask(first, x, rows, products[0].y);
    for (size_t i = 1; i < products.size(); ++i) {
      const auto& matrix = static_cast<const PackedMatrix&>(*products[i].w);
      tasks[i] = tasks[0];
      tasks[i].kind = matrix.kind();
      tasks[i].panels = matrix.panels();
      tasks[i].panel_bytes = matrix.panel_bytes();
      tasks[i].n = matrix.rows();
      tasks[i].y = products[i].y;
    }
    return true;
  }

  // Fills task.quantised from task.x.
  void Quantise(MatmulTask& task) {
    const int64_t blocks = task.k / kQuantBlock, slots = SlotsOf(task.rows);
    const int64_t tiles = (task.rows + slots - 1) / slots, words = LowWords(blocks);
    GrowTo(integers_, tiles * slots * task.k * 2);
    for (auto* buffer : {&scales_, &sums_}) GrowTo(*buffer, tiles * slots * blocks);
    GrowTo(half_sums_, tiles * slots * blocks * 2);
    low_blocks_.assign(tiles * words, 0);
    const auto quantise =
        QuantPanelOf(task.kind).nibbles ? kernels_.quantise8 : kernels_.quantise16;
    ForRows(tiles, slots * task.k, [&](int64_t tile) {
      RowSlot slot{.slots = slots,
                   .q = integers_.data() + tile * slots * task.k * 2,
                   .low_blocks = low_blocks_.data() + tile * words,
                   .scales = scales_.data() + tile * slots * blocks,
                   .sums = sums_.data() + tile * slots * blocks,
                   .half_sums = half_sums_.data() + tile * slots * blocks * 2};
      const int64_t rows = std::min(slots, task.rows - tile * slots);
      if (rows < slots) ClearTile(slot, task.k);
      for (int64_t r = 0; r < rows; ++r) {
        quantise(task.x + (tile * slots + r) * task.k, task.k, slot);
        slot.q += 4;
        ++slot.scales, ++slot.sums, ++slot.half_sums;
      }
    });
    task.quantised = {.q = integers_.data(),
                      .low_blocks = low_blocks_.data(),
                      .scales = scales_.data(),
                      .sums = sums_.data(),
                      .half_sums = half_sums_.data()};
  }

  static void ClearTile(const RowSlot& first, int64_t k) {
    const int64_t scales = first.slots * k / kQuantBlock;
    std::fill_n(first.q, first.slots * k * 2, uint8_t{0});
    std::fill_n(first.scales, scales, 0.0f);
    std::fill_n(first.sums, scales, 0.0f);
    std::fill_n(first.half_sums, 2 * scales, 0.0f);
  }

  const OpsOptions options_;
  const KernelTable& kernels_;
  ThreadPool pool_;
  PanelMemory panel_memory_;
  AttentionPlan attention_;
  TileMatmul tiles_{pool_};
  CpuEncoder encoder_{kernels_, pool_};
  // Models have at most two kinds of layers, with angles of their own.
  RopeTable ropes_[2];
  int last_rope_ = 0;
  std::vector<uint8_t> integers_;
  std::vector<float> scales_;
  std::vector<float> sums_;
  std::vector<float> half_sums_;
  std::vector<uint32_t> low_blocks_;
};

}  // namespace

std::unique_ptr<Ops> MakeCpuOps(const OpsOptions& options) {
  return std::make_unique<CpuOps>(options);
}

}  // namespace trivium::kernels
