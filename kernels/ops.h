// The numeric operations of a transformer step, behind one table a device.
//
// Dimension names used everywhere: R rows of the packed batch, N outputs, K inputs, H query heads,
// G key-value heads, D head size. All activations are float32, row-major, in host memory of the
// device.
//
// Thread-safety: an Ops object is driven by one thread (it spreads the work over its own pool).
// Matrices are immutable after Pack and belong to the Ops that packed them.
//
// Numerics: under kBatchInvariant every output row of every operation is bit-identical whatever
// other rows share the batch, however rows are cut into calls, and for any number of threads. Under
// kFast only the tolerance against `reference/` is promised.
//
// Broken preconditions (shapes that do not agree, null pointers) end the process: callers validate
// input.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/activation.h"
#include "kernels/encoder_ops.h"
#include "kernels/kv_type.h"
#include "kernels/weights.h"

namespace trivium::kernels {

enum class Numerics : uint8_t { kFast, kBatchInvariant };

// The paths that can be forced. kReference is plain C++, the oracle. The rest need the machine's
// support.
enum class Isa : uint8_t { kReference, kAvx2, kAvx512, kAmx };

const char* IsaName(Isa isa);                      // "avx2"
bool ParseIsa(const std::string& name, Isa* isa);  // false: no such name
std::vector<Isa> SupportedIsas();                  // those that this machine can run, best last

// A weight matrix [N, K] in the layout that its Ops wants.
class Matrix {
 public:
  virtual ~Matrix() = default;
  virtual int64_t rows() const = 0;  // N
  virtual int64_t cols() const = 0;  // K
};

// Where the keys and values of one layer lie. A page is one block of one layer:
// [2 (K, then V)][block_tokens] rows of RowWords() words of two bytes; page b starts at
// layer + b * PageWords(). A row is float16 or bfloat16 [G][D], or int8 [G][D], padded to whole
// words, and float16 [G] scales.
struct KvLayout {
  int block_tokens = 16;
  int kv_heads = 0;  // G
  int head_dim = 0;  // D
  KvType type = KvType::kF16;
  int64_t RowElems() const { return int64_t{kv_heads} * head_dim; }
  int64_t RowWords() const { return type == KvType::kInt8 ? ScaleWord(kv_heads) : RowElems(); }
  // Of kInt8: where in a row the scale of a kv head lies.
  int64_t ScaleWord(int kv_head) const { return (RowElems() + 1) / 2 + kv_head; }
  int64_t PageWords() const { return 2 * block_tokens * RowWords(); }
  int64_t PageBytes() const { return PageWords() * 2; }
};

// The rows of one sequence inside the packed batch, and its keys.
// Row i of the span has position positions[row_begin + i]; the key of position p lies in
// page block_table[p / block_tokens], slot p % block_tokens. A row sees the keys 0 … its position,
// or the last of them (AttentionArgs::window).
struct SequenceSpan {
  int row_begin = 0;
  int row_count = 0;
  const int32_t* block_table = nullptr;  // covers every position of the span
  // How many leading keys lie in the same pages as those of the span before it in the list; at most
  // the first position of either. Attention then may read them once for both; 0 is always allowed.
  // Lists sorted by block table have each common prefix in neighbours.
  int32_t shared_tokens = 0;
};

struct AttentionArgs {
  const float* q = nullptr;             // [R, H, D], already rotated
  const int32_t* positions = nullptr;   // [R]
  std::span<const SequenceSpan> spans;  // cover every row exactly once
  const uint16_t* kv_layer = nullptr;   // pages of this layer, keys rotated
  KvLayout layout;
  int heads = 0;    // H, a multiple of layout.kv_heads; head h reads kv head h / (H / G)
  float scale = 0;  // usually 1 / sqrt(D)
  // 0: a row sees all keys up to its position p; else only the keys p - window + 1 … p. Keys that
  // no row sees are not read.
  int32_t window = 0;
  // 0: none; else a score s becomes softcap * tanh(s / softcap).
  float softcap = 0;
  float* out = nullptr;  // [R, H, D]
  float* lse = nullptr;  // [R, H] natural log of the sum of exp(score); null: not wanted
  // Grows by the bytes of keys and values that were read, counted where that is done; null: not
  // wanted.
  int64_t* kv_bytes_read = nullptr;
};

struct StoreKvArgs {
  const float* k = nullptr;            // [R, G, D], already rotated
  const float* v = nullptr;            // [R, G, D]
  const int32_t* positions = nullptr;  // [R]
  std::span<const SequenceSpan> spans;
  uint16_t* kv_layer = nullptr;
  KvLayout layout;
};

// Which two elements of a head are pair i of the n pairs that are rotated.
enum class RopePairs : uint8_t {
  kAdjacent,  // 2i and 2i + 1, as in GGUF files of `llama`
  kHalves,    // i and i + n, as in those of Qwen and Gemma
};

// Rotary embedding (Su et al., arXiv:2104.09864). The angle of pair i at position p is
// p * frequencies[i], and what is rotated is multiplied by `scale`. Elements past the pairs stay as
// they are.
struct RopeArgs {
  float* x = nullptr;  // [R, heads, D], in place
  RopePairs pairs = RopePairs::kAdjacent;
  const int32_t* positions = nullptr;
  int rows = 0, heads = 0, head_dim = 0;
  std::span<const double> frequencies;  // radians a position; at most head_dim / 2
  double scale = 1;
};

// y[R, N] = x[R, K] * w[N, K]^T
struct Product {
  const Matrix* w = nullptr;
  float* y = nullptr;
};

class Ops {
 public:
  virtual ~Ops() = default;

  virtual Isa isa() const = 0;
  virtual Numerics numerics() const = 0;
  virtual int threads() const = 0;
  // What encoders need beside the operations below; lives as long as this.
  virtual EncoderOps& encoder() = 0;

  // Packs a weight matrix. Keeps pointing into `view.data` where that is already the best layout,
  // so the file must stay mapped. Layouts needed by large batches only are built at their first
  // use.
  virtual std::unique_ptr<Matrix> Pack(const WeightView& view) = 0;

  // y[R, N] = x[R, K] * w[N, K]^T
  virtual void Matmul(const Matrix& w, const float* x, int rows, float* y) = 0;
  // Several products of one x, to the bit as Matmul gives them; faster for few rows.
  virtual void MatmulAll(std::span<const Product> products, const float* x, int rows) {
    for (const Product& product : products) Matmul(*product.w, x, rows, product.y);
  }
  // gate.y = activation(gate) * up, up.y is lost; under kBatchInvariant as MatmulAll and ActivateMul.
  virtual void MatmulGated(Activation activation, const Product& gate, const Product& up,
                           const float* x, int rows) {
    const Product both[] = {gate, up};
    MatmulAll(both, x, rows);
    ActivateMul(activation, gate.y, up.y, gate.w->rows() * rows);
  }
  // y[R, N] = (activation(gate) * up) * down^T; gate.y and up.y have anything in them afterwards.
  // Under kBatchInvariant as MatmulGated and Matmul.
  virtual void MatmulGatedDown(Activation activation, const Product& gate, const Product& up,
                               const Product& down, const float* x, int rows) {
    MatmulGated(activation, gate, up, x, rows);
    Matmul(*down.w, gate.y, rows, down.y);
  }
  // out[i, :] = table row ids[i], dequantised; 0 <= ids[i] < table.rows
  virtual void EmbedRows(const WeightView& table, std::span<const int32_t> ids, float* out) = 0;
  // out[R, dim] = x / sqrt(mean(x^2) + eps) * weight[dim]; out may be x
  virtual void RmsNorm(const float* x, const float* weight, float eps, int rows, int dim,
                       float* out) = 0;
  virtual void Rope(const RopeArgs& args) = 0;
  virtual void StoreKv(const StoreKvArgs& args) = 0;
  virtual void Attention(const AttentionArgs& args) = 0;
  // gate[i] = activation(gate[i]) * up[i], for kSilu and kGeluTanh
  virtual void ActivateMul(Activation activation, float* gate, const float* up, int64_t count) = 0;
  // x[i] += y[i]
  virtual void Add(float* x, const float* y, int64_t count) = 0;
  // x[i] *= factor
  virtual void Scale(float* x, float factor, int64_t count) = 0;
  // x[i] = cap * tanh(x[i] / cap), cap > 0
  virtual void SoftCap(float* x, float cap, int64_t count) = 0;
};

struct OpsOptions {
  Isa isa = Isa::kReference;  // see BestIsa()
  Numerics numerics = Numerics::kFast;
  int threads = 1;  // workers of the pool, the caller included; 1 … 256
};

Isa BestIsa();
// Null when this machine cannot run options.isa.
std::unique_ptr<Ops> MakeOps(const OpsOptions& options);

}  // namespace trivium::kernels
