#include "kernels/cpu/cpu_encoder.h"

#include <algorithm>

#include "kernels/check.h"

namespace trivium::kernels {
namespace {

constexpr int64_t kElementsPerPart = 16384;
// Query rows that share a pass over the panels; their scores stay in the second-level cache.
constexpr int kAttentionRows = 48;

int64_t RowGrain(int64_t row_elements) {
  return std::max<int64_t>(1, kElementsPerPart / std::max<int64_t>(1, row_elements));
}

int64_t Panels(int64_t outputs) { return (outputs + kPanelOutputs - 1) / kPanelOutputs; }

void Grow(std::vector<float>& buffer, int64_t elems) {
  if (buffer.size() < static_cast<size_t>(elems)) buffer.resize(static_cast<size_t>(elems));
}

// Keys as outputs and the elements of D as inputs. The last panel is padded with zeros.
void PackKeys(const float* k, int64_t stride, int64_t count, int64_t dim, float* out) {
  for (int64_t i = 0; i < Panels(count) * kPanelOutputs; ++i) {
    float* panel = out + i / kPanelOutputs * kPanelOutputs * dim + i % kPanelOutputs;
    for (int64_t d = 0; d < dim; ++d) panel[d * kPanelOutputs] = i < count ? k[i * stride + d] : 0;
  }
}

// The elements of D as outputs and keys as inputs.
void PackValues(const float* v, int64_t stride, int64_t count, int64_t dim, float* out) {
  for (int64_t d = 0; d < Panels(dim) * kPanelOutputs; ++d) {
    float* panel = out + d / kPanelOutputs * kPanelOutputs * count + d % kPanelOutputs;
    for (int64_t i = 0; i < count; ++i) panel[i * kPanelOutputs] = d < dim ? v[i * stride + d] : 0;
  }
}

MatmulTask FloatTask(const std::vector<float>& panels, int64_t n, int64_t k, int64_t rows,
                     const float* x, float* y) {
  MatmulTask task;
  task.kind = PanelKind::kF32;
  task.panels = reinterpret_cast<const uint8_t*>(panels.data());
  task.panel_bytes = k * kPanelOutputs * static_cast<int64_t>(sizeof(float));
  task.n = n;
  task.k = k;
  task.panel_end = Panels(n);
  task.rows = rows;
  task.x = x;
  task.y = y;
  return task;
}

}  // namespace

void CpuEncoder::LayerNorm(const float* x, const float* weight, const float* bias, float eps,
                           int rows, int dim, float* out) {
  pool_.ParallelFor(rows, RowGrain(dim), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      kernels_.encoder.layer_norm(x + r * dim, weight, bias, eps, dim, out + r * dim);
    }
  });
}

void CpuEncoder::AddBias(float* x, const float* bias, int rows, int dim) {
  pool_.ParallelFor(rows, RowGrain(dim), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) kernels_.add(x + r * dim, bias, dim);
  });
}

void CpuEncoder::Activate(Activation activation, float* x, int64_t count) {
  pool_.ParallelFor(count, kElementsPerPart, [&](int64_t begin, int64_t end, int) {
    kernels_.encoder.activate(activation, x + begin, end - begin);
  });
}

void CpuEncoder::AttendRows(const FullAttentionArgs& args, const RowSpan& span, int head, int row,
                            int count, Scratch& s) const {
  const int64_t dim = args.head_dim, stride = dim * args.heads, keys = span.row_count;
  const int64_t at = (span.row_begin + int64_t{row}) * stride + head * dim;
  for (int64_t r = 0; r < count; ++r) {
    kernels_.encoder.scale(args.q + at + r * stride, args.scale, dim, s.q.data() + r * dim);
  }
  kernels_.matmul(FloatTask(s.keys, keys, dim, count, s.q.data(), s.scores.data()));
  float sums[kAttentionRows];
  for (int64_t r = 0; r < count; ++r) {
    sums[r] = kernels_.encoder.softmax(s.scores.data() + r * keys, keys);
  }
  kernels_.matmul(FloatTask(s.values, dim, keys, count, s.scores.data(), s.out.data()));
  for (int64_t r = 0; r < count; ++r) {
    kernels_.encoder.scale(s.out.data() + r * dim, 1.0f / sums[r], dim, args.out + at + r * stride);
  }
}

void CpuEncoder::AttendHead(const FullAttentionArgs& args, const RowSpan& span, int head,
                            Scratch& s) const {
  const int64_t dim = args.head_dim, stride = dim * args.heads, keys = span.row_count;
  const int64_t at = span.row_begin * stride + head * dim;
  Grow(s.keys, Panels(keys) * kPanelOutputs * dim);
  Grow(s.values, Panels(dim) * kPanelOutputs * keys);
  Grow(s.q, kAttentionRows * dim);
  Grow(s.scores, kAttentionRows * keys);
  Grow(s.out, kAttentionRows * dim);
  PackKeys(args.k + at, stride, keys, dim, s.keys.data());
  PackValues(args.v + at, stride, keys, dim, s.values.data());
  // A single row takes another path through the product than several do, with the same results.
  for (int row = 0; row < span.row_count; row += kAttentionRows) {
    AttendRows(args, span, head, row, std::min(kAttentionRows, span.row_count - row), s);
  }
}

void CpuEncoder::FullAttention(const FullAttentionArgs& args) {
  KERNELS_CHECK(args.heads >= 1 && args.head_dim >= 1);
  const auto items = static_cast<int64_t>(args.spans.size()) * args.heads;
  pool_.ParallelFor(items, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) {
      const RowSpan& span = args.spans[static_cast<size_t>(i / args.heads)];
      AttendHead(args, span, static_cast<int>(i % args.heads),
                 scratch_[static_cast<size_t>(thread)]);
    }
  });
}

void CpuEncoder::RotateHalves(const RotateHalvesArgs& args) {
  KERNELS_CHECK(args.head_dim % 2 == 0);
  const int64_t half = args.head_dim / 2, row = int64_t{args.heads} * args.head_dim;
  pool_.ParallelFor(args.rows, RowGrain(row), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float* cosines = args.cosines + r * half;
      const float* sines = args.sines + r * half;
      for (float* head = args.x + r * row; head < args.x + (r + 1) * row; head += 2 * half) {
        for (int64_t i = 0; i < half; ++i) {
          const float a = head[i], b = head[i + half];
          head[i] = a * cosines[i] - b * sines[i];
          head[i + half] = b * cosines[i] + a * sines[i];
        }
      }
    }
  });
}

}  // namespace trivium::kernels
