#include "kernels/reference/reference_ops.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "kernels/check.h"
#include "kernels/kv_row.h"
#include "kernels/reference/reference_encoder.h"
#include "kernels/thread_pool.h"

namespace trivium::kernels {
namespace {

constexpr int kLanes = 16;

// A fixed split into lanes: less rounding error than one running sum, and the compiler can
// vectorise it.
float Dot(const float* a, const float* b, int64_t n) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) lanes[j] += a[i + j] * b[i + j];
  }
  double sum = 0;
  for (int j = 0; j < kLanes; ++j) sum += lanes[j];
  for (; i < n; ++i) sum += double{a[i]} * b[i];
  return static_cast<float>(sum);
}

double Gelu(double x) {
  const double inner = std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x);
  return x / (1 + std::exp(-2 * inner));  // (1 + tanh(y)) / 2, exact where tanh(y) is close to -1
}

class ReferenceMatrix final : public Matrix {
 public:
  explicit ReferenceMatrix(const WeightView& view) : view_(view) {}
  int64_t rows() const override { return view_.rows; }
  int64_t cols() const override { return view_.cols; }
  void Row(int64_t n, float* out) const {
    const auto* bytes = static_cast<const uint8_t*>(view_.data);
    DequantizeRow(view_.type, bytes + n * RowBytes(view_.type, view_.cols), view_.cols, out);
  }

 private:
  WeightView view_;
};

const uint16_t* KeyAt(const uint16_t* layer, const KvLayout& layout, const int32_t* table, int p) {
  return layer + table[p / layout.block_tokens] * layout.PageWords() +
         p % layout.block_tokens * layout.RowWords();
}

// The first key that a row at this position sees.
int FirstKey(const AttentionArgs& args, int position) {
  return args.window == 0 ? 0 : std::max(0, position - args.window + 1);
}

// Every head of every row reads all its keys and values.
void CountReads(const AttentionArgs& args, const SequenceSpan& span) {
  if (args.kv_bytes_read == nullptr) return;
  for (int row = span.row_begin; row < span.row_begin + span.row_count; ++row) {
    const int64_t keys = args.positions[row] + 1 - FirstKey(args, args.positions[row]);
    *args.kv_bytes_read += keys * args.heads * args.layout.RowWords() * 4 / args.layout.kv_heads;
  }
}

// The softmax of one query row and head over its keys, and the sum of the values weighted by it.
class HeadAttention {
 public:
  HeadAttention(const AttentionArgs& args, const SequenceSpan& span)
      : args_(args), span_(span), head_(args.layout.head_dim) {}

  void Run(int row, int head) {
    const KvLayout& layout = args_.layout;
    const int64_t index = int64_t{row} * args_.heads + head;
    const int group = head / (args_.heads / layout.kv_heads);
    const int keys = args_.positions[row] + 1, first = FirstKey(args_, args_.positions[row]);
    const double lse = Scores(args_.q + index * layout.head_dim, group, first, keys);
    sums_.assign(layout.head_dim, 0.0);
    for (int p = first; p < keys; ++p) {
      LoadKvHead(layout, Key(p) + layout.block_tokens * layout.RowWords(), group, head_.data());
      const double weight = std::exp(scores_[p - first] - lse);
      for (int d = 0; d < layout.head_dim; ++d) sums_[d] += weight * head_[d];
    }
    for (int d = 0; d < layout.head_dim; ++d) {
      args_.out[index * layout.head_dim + d] = static_cast<float>(sums_[d]);
    }
    if (args_.lse != nullptr) args_.lse[index] = static_cast<float>(lse);
  }

 private:
  const uint16_t* Key(int p) const {
    return KeyAt(args_.kv_layer, args_.layout, span_.block_table, p);
  }

  // Fills scores_ and returns the log of the sum of their exponentials.
  double Scores(const float* q, int group, int first, int keys) {
    scores_.clear();
    double largest = -INFINITY;
    for (int p = first; p < keys; ++p) {
      LoadKvHead(args_.layout, Key(p), group, head_.data());
      double sum = 0;
      for (int d = 0; d < args_.layout.head_dim; ++d) sum += double{q[d]} * head_[d];
      double score = sum * args_.scale;
      if (args_.softcap > 0) score = args_.softcap * std::tanh(score / args_.softcap);
      scores_.push_back(score);
      largest = std::max(largest, score);
    }
    double total = 0;
    for (const double score : scores_) total += std::exp(score - largest);
    return largest + std::log(total);
  }

  const AttentionArgs& args_;
  const SequenceSpan& span_;
  std::vector<float> head_;  // a key or a value
  std::vector<double> scores_;
  std::vector<double> sums_;
};

class ReferenceOps final : public Ops {
 public:
  explicit ReferenceOps(const OpsOptions& options)
      : numerics_(options.numerics), pool_(options.threads) {}

  Isa isa() const override { return Isa::kReference; }
  Numerics numerics() const override { return numerics_; }
  int threads() const override { return pool_.threads(); }
  EncoderOps& encoder() override { return encoder_; }

  std::unique_ptr<Matrix> Pack(const WeightView& view) override {
    KERNELS_CHECK(view.data != nullptr && view.rows >= 1 && view.cols >= 1);
    KERNELS_CHECK(view.cols % BlockElems(view.type) == 0);
    return std::make_unique<ReferenceMatrix>(view);
  }

  void Matmul(const Matrix& w, const float* x, int rows, float* y) override {
    const auto& matrix = static_cast<const ReferenceMatrix&>(w);
    const int64_t n_total = w.rows(), k_total = w.cols();
    pool_.ParallelFor(n_total, 1, [&](int64_t begin, int64_t end, int) {
      std::vector<float> weights(k_total);
      for (int64_t n = begin; n < end; ++n) {
        matrix.Row(n, weights.data());
        for (int r = 0; r < rows; ++r) {
          y[r * n_total + n] = Dot(x + r * k_total, weights.data(), k_total);
        }
      }
    });
  }

  void EmbedRows(const WeightView& table, std::span<const int32_t> ids, float* out) override {
    const auto* bytes = static_cast<const uint8_t*>(table.data);
    for (size_t i = 0; i < ids.size(); ++i) {
      KERNELS_CHECK(ids[i] >= 0 && ids[i] < table.rows);
      DequantizeRow(table.type, bytes + ids[i] * RowBytes(table.type, table.cols), table.cols,
                    out + i * table.cols);
    }
  }

  void RmsNorm(const float* x, const float* weight, float eps, int rows, int dim,
               float* out) override {
    for (int r = 0; r < rows; ++r) {
      const float* in = x + int64_t{r} * dim;
      double sum = 0;
      for (int i = 0; i < dim; ++i) sum += double{in[i]} * in[i];
      const double scale = 1.0 / std::sqrt(sum / dim + eps);
      for (int i = 0; i < dim; ++i) {
        out[int64_t{r} * dim + i] = static_cast<float>(in[i] * scale * weight[i]);
      }
    }
  }

  void Rope(const RopeArgs& args) override {
    const auto pairs = static_cast<int>(args.frequencies.size());
    KERNELS_CHECK(2 * pairs <= args.head_dim);
    const bool adjacent = args.pairs == RopePairs::kAdjacent;
    for (int r = 0; r < args.rows; ++r) {
      for (int i = 0; i < pairs; ++i) {
        const double angle = args.positions[r] * args.frequencies[static_cast<size_t>(i)];
        const double c = args.scale * std::cos(angle), s = args.scale * std::sin(angle);
        for (int h = 0; h < args.heads; ++h) {
          float* head = args.x + (int64_t{r} * args.heads + h) * args.head_dim;
          float& first = head[adjacent ? 2 * i : i];
          float& second = head[adjacent ? 2 * i + 1 : i + pairs];
          const double x0 = first, x1 = second;
          first = static_cast<float>(x0 * c - x1 * s);
          second = static_cast<float>(x0 * s + x1 * c);
        }
      }
    }
  }

  void StoreKv(const StoreKvArgs& args) override {
    const int64_t elems = args.layout.RowElems();
    for (const SequenceSpan& span : args.spans) {
      for (int row = span.row_begin; row < span.row_begin + span.row_count; ++row) {
        const int p = args.positions[row];
        uint16_t* key = args.kv_layer +
                        span.block_table[p / args.layout.block_tokens] * args.layout.PageWords() +
                        p % args.layout.block_tokens * args.layout.RowWords();
        StoreKvRow(args.layout, args.k + row * elems, key);
        StoreKvRow(args.layout, args.v + row * elems,
                   key + args.layout.block_tokens * args.layout.RowWords());
      }
    }
  }

  void Attention(const AttentionArgs& args) override {
    KERNELS_CHECK(args.layout.kv_heads >= 1 && args.heads % args.layout.kv_heads == 0);
    KERNELS_CHECK(args.window >= 0 && args.softcap >= 0);
    for (const SequenceSpan& span : args.spans) {
      pool_.ParallelFor(span.row_count, 1, [&](int64_t begin, int64_t end, int) {
        HeadAttention attention(args, span);
        for (int64_t i = begin; i < end; ++i) {
          for (int head = 0; head < args.heads; ++head) {
            attention.Run(span.row_begin + static_cast<int>(i), head);
          }
        }
      });
      CountReads(args, span);
    }
  }

  void ActivateMul(Activation activation, float* gate, const float* up, int64_t count) override {
    KERNELS_CHECK(activation == Activation::kSilu || activation == Activation::kGeluTanh);
    for (int64_t i = 0; i < count; ++i) {
      const double x = gate[i];
      const double activated = activation == Activation::kSilu ? x / (1 + std::exp(-x)) : Gelu(x);
      gate[i] = static_cast<float>(activated * up[i]);
    }
  }

  void Add(float* x, const float* y, int64_t count) override {
    for (int64_t i = 0; i < count; ++i) x[i] += y[i];
  }

  void Scale(float* x, float factor, int64_t count) override {
    for (int64_t i = 0; i < count; ++i) x[i] *= factor;
  }

  void SoftCap(float* x, float cap, int64_t count) override {
    for (int64_t i = 0; i < count; ++i) {
      x[i] = static_cast<float>(cap * std::tanh(double{x[i]} / cap));
    }
  }

 private:
  const Numerics numerics_;
  ThreadPool pool_;
  ReferenceEncoder encoder_{pool_};
};

}  // namespace

std::unique_ptr<Ops> MakeReferenceOps(const OpsOptions& options) {
  return std::make_unique<ReferenceOps>(options);
}

}  // namespace trivium::kernels
