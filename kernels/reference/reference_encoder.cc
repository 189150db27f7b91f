#include "kernels/reference/reference_encoder.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "kernels/check.h"

namespace trivium::kernels {
namespace {

double Activated(Activation activation, double x) {
  switch (activation) {
    case Activation::kGelu:
      return 0.5 * x * (1.0 + std::erf(x / std::numbers::sqrt2));
    case Activation::kGeluTanh:
      return 0.5 * x *
             (1.0 + std::tanh(std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
    case Activation::kQuickGelu:
      return x / (1.0 + std::exp(-1.702 * x));
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
  }
  return x;
}

// The softmax of one query row and head over the rows of its span, and the values weighted by it.
void AttendRow(const FullAttentionArgs& args, const RowSpan& span, int64_t row, int64_t head) {
  const int64_t dim = args.head_dim, stride = dim * args.heads;
  const float* q = args.q + row * stride + head * dim;
  const int64_t first = span.row_begin * stride + head * dim;
  std::vector<double> weights(static_cast<size_t>(span.row_count));
  double largest = -INFINITY, total = 0;
  for (int64_t j = 0; j < span.row_count; ++j) {
    double score = 0;
    for (int64_t d = 0; d < dim; ++d) score += double{q[d]} * args.k[first + j * stride + d];
    weights[static_cast<size_t>(j)] = score * args.scale;
    largest = std::max(largest, score * args.scale);
  }
  for (double& w : weights) total += w = std::exp(w - largest);
  for (int64_t d = 0; d < dim; ++d) {
    double sum = 0;
    for (int64_t j = 0; j < span.row_count; ++j) {
      sum += weights[static_cast<size_t>(j)] * args.v[first + j * stride + d];
    }
    args.out[row * stride + head * dim + d] = static_cast<float>(sum / total);
  }
}

}  // namespace

void ReferenceEncoder::LayerNorm(const float* x, const float* weight, const float* bias, float eps,
                                 int rows, int dim, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* in = x + r * dim;
    double mean = 0, variance = 0;
    for (int i = 0; i < dim; ++i) mean += in[i];
    mean /= dim;
    for (int i = 0; i < dim; ++i) variance += (in[i] - mean) * (in[i] - mean);
    const double scale = 1.0 / std::sqrt(variance / dim + eps);
    for (int i = 0; i < dim; ++i) {
      out[r * dim + i] = static_cast<float>((in[i] - mean) * scale * weight[i] + bias[i]);
    }
  }
}

void ReferenceEncoder::AddBias(float* x, const float* bias, int rows, int dim) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int i = 0; i < dim; ++i) x[r * dim + i] += bias[i];
  }
}

void ReferenceEncoder::Activate(Activation activation, float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = static_cast<float>(Activated(activation, x[i]));
}

void ReferenceEncoder::FullAttention(const FullAttentionArgs& args) {
  KERNELS_CHECK(args.heads >= 1 && args.head_dim >= 1);
  for (const RowSpan& span : args.spans) {
    pool_.ParallelFor(span.row_count, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        for (int head = 0; head < args.heads; ++head) {
          AttendRow(args, span, span.row_begin + i, head);
        }
      }
    });
  }
}

void ReferenceEncoder::RotateHalves(const RotateHalvesArgs& args) {
  KERNELS_CHECK(args.head_dim % 2 == 0);
  const int half = args.head_dim / 2;
  for (int64_t i = 0; i < int64_t{args.rows} * args.heads * half; ++i) {
    const int64_t head = i / half, row = head / args.heads, pair = i % half;
    float* x = args.x + head * args.head_dim + pair;
    const double a = x[0], b = x[half];
    const double c = args.cosines[row * half + pair], s = args.sines[row * half + pair];
    x[0] = static_cast<float>(a * c - b * s);
    x[half] = static_cast<float>(b * c + a * s);
  }
}

}  // namespace trivium::kernels
