#include "kernels/cpu/cpu_ops.h"

#include <algorithm>
#include <vector>

#include "kernels/check.h"
#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/cpu_encoder.h"
#include "kernels/cpu/dense_matmul.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/packed_matrix.h"
#include "kernels/cpu/rope_table.h"
#include "kernels/thread_pool.h"

namespace trivium::kernels {
namespace {

// Waking another thread costs a few microseconds; below these sizes one thread is faster.
constexpr int64_t kElementsPerPart = 16384;
constexpr int64_t kProductsPerPart = 65536;
// Half a tile of oneDNN's: with fewer rows the padding costs more than the tile gains.
constexpr int kDenseRows = DenseMatmul::kTileRows / 2;

int64_t RowGrain(int64_t row_elements) {
  return std::max<int64_t>(1, kElementsPerPart / std::max<int64_t>(1, row_elements));
}

class CpuOps final : public Ops {
 public:
  explicit CpuOps(const OpsOptions& options)
      : options_(options),
        kernels_(options.isa == Isa::kAvx2 ? Avx2Kernels() : Avx512Kernels()),
        pool_(options.threads, DenseMatmul::StayInThisThread),
        attention_(kernels_, pool_) {}

  Isa isa() const override { return options_.isa; }
  Numerics numerics() const override { return options_.numerics; }
  int threads() const override { return pool_.threads(); }
  EncoderOps& encoder() override { return encoder_; }

  std::unique_ptr<Matrix> Pack(const WeightView& view) override {
    return std::make_unique<PackedMatrix>(view, pool_);
  }

  void Matmul(const Matrix& w, const float* x, int rows, float* y) override {
    if (rows <= 0) return;
    const auto& matrix = static_cast<const PackedMatrix&>(w);
    if (DenseMatmul* dense = DenseFor(matrix, rows)) return dense->Run(x, rows, y);
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
    const int64_t panel_products = task.k * kPanelOutputs * rows;
    const int64_t grain = std::max<int64_t>(1, kProductsPerPart / panel_products);
    pool_.ParallelFor(matrix.panel_count(), grain, [&](int64_t begin, int64_t end, int) {
      MatmulTask part = task;
      part.panel_begin = begin;
      part.panel_end = end;
      kernels_.matmul(part);
    });
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
    rope_.Prepare(args.positions, args.rows, args.frequencies, args.scale);
    const int64_t row_elements = int64_t{args.heads} * args.head_dim;
    ForRows(args.rows, row_elements, [&](int64_t r) {
      const float* cosines = rope_.Row(static_cast<int>(r));
      kernels_.rope(args.x + r * row_elements, cosines, cosines + pairs, args.heads, args.head_dim,
                    2 * pairs);
    });
  }

  void StoreKv(const StoreKvArgs& args) override {
    const KvLayout& layout = args.layout;
    const int64_t elems = layout.RowElems();
    for (const SequenceSpan& span : args.spans) {
      ForRows(span.row_count, 2 * elems, [&](int64_t i) {
        const int64_t row = span.row_begin + i;
        const int32_t p = args.positions[row];
        uint16_t* key = args.kv_layer +
                        span.block_table[p / layout.block_tokens] * layout.PageElems() +
                        p % layout.block_tokens * elems;
        kernels_.to_half(args.k + row * elems, elems, key);
        kernels_.to_half(args.v + row * elems, elems, key + layout.block_tokens * elems);
      });
    }
  }

  void Attention(const AttentionArgs& args) override { attention_.Run(args); }

  void SiluMul(float* gate, const float* up, int64_t count) override {
    pool_.ParallelFor(count, kElementsPerPart, [&](int64_t begin, int64_t end, int) {
      kernels_.silu_mul(gate + begin, up + begin, end - begin);
    });
  }

  void Add(float* x, const float* y, int64_t count) override {
    pool_.ParallelFor(count, kElementsPerPart, [&](int64_t begin, int64_t end, int) {
      kernels_.add(x + begin, y + begin, end - begin);
    });
  }

 private:
  template <typename Fn>
  void ForRows(int64_t rows, int64_t row_elements, const Fn& fn) {
    pool_.ParallelFor(rows, RowGrain(row_elements), [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) fn(r);
    });
  }

  // Large batches under kFast. With AMX, bfloat16 tiles beat everything; with AVX-512, oneDNN's
  // float32 beats our float kernels but not the integers; with AVX2 ours are the faster ones.
  DenseMatmul* DenseFor(const PackedMatrix& matrix, int rows) {
    if (options_.numerics != Numerics::kFast || rows < kDenseRows) return nullptr;
    if (options_.isa == Isa::kAmx) return matrix.Dense(DenseType::kBF16, options_.isa, pool_);
    if (options_.isa == Isa::kAvx2 || BlockElems(matrix.view().type) > 1) return nullptr;
    return matrix.Dense(DenseType::kF32, options_.isa, pool_);
  }

  // Fills task.quantised from task.x.
  void Quantise(MatmulTask& task) {
    const int64_t blocks = task.k / kQuantBlock;
    integers_.resize(std::max<size_t>(integers_.size(), task.rows * task.k));
    scales_.resize(std::max<size_t>(scales_.size(), task.rows * blocks));
    sums_.resize(std::max<size_t>(sums_.size(), task.rows * blocks));
    half_sums_.resize(std::max<size_t>(half_sums_.size(), task.rows * blocks * 2));
    int16_t* q16 = integers_.data();
    auto* q8 = reinterpret_cast<int8_t*>(q16);
    const bool nibbles = QuantPanelOf(task.kind).nibbles;
    ForRows(task.rows, task.k, [&](int64_t r) {
      const float* x = task.x + r * task.k;
      const BlockScales out{scales_.data() + r * blocks, sums_.data() + r * blocks,
                            half_sums_.data() + r * blocks * 2};
      if (nibbles) {
        kernels_.quantise8(x, task.k, q8 + r * task.k * 2, out);
      } else {
        kernels_.quantise16(x, task.k, q16 + r * task.k, out);
      }
    });
    task.quantised = {q8, q16, scales_.data(), sums_.data(), half_sums_.data()};
  }

  const OpsOptions options_;
  const KernelTable& kernels_;
  ThreadPool pool_;
  AttentionPlan attention_;
  CpuEncoder encoder_{kernels_, pool_};
  RopeTable rope_;
  std::vector<int16_t> integers_;
  std::vector<float> scales_;
  std::vector<float> sums_;
  std::vector<float> half_sums_;
};

}  // namespace

std::unique_ptr<Ops> MakeCpuOps(const OpsOptions& options) {
  return std::make_unique<CpuOps>(options);
}

}  // namespace trivium::kernels
