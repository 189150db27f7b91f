#include "kernels/cpu/dense_matmul.h"

#include <algorithm>
#include <oneapi/dnnl/dnnl.hpp>
#include <vector>

extern "C" void omp_set_num_threads(int);  // of libgomp, which comes with oneDNN

namespace trivium::kernels {
namespace {

using Tag = dnnl::memory::format_tag;
using Type = dnnl::memory::data_type;

constexpr int64_t kSliceOutputs = 32;  // slices begin at multiples of the blocks that oneDNN likes

void CapIsa(Isa isa) {
  static const bool capped = [isa] {
    if (isa == Isa::kAvx2) dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx2);
    if (isa == Isa::kAvx512) dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx512_core_vnni);
    return true;
  }();
  static_cast<void>(capped);
}

// The outputs n_begin … n_end - 1 of a matrix. Made and executed by one thread of the pool.
class Slice {
 public:
  Slice(const WeightView& view, int64_t n_begin, int64_t n_end)
      : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_), n_begin_(n_begin) {
    const int64_t n = n_end - n_begin, k = view.cols;
    const dnnl::memory::desc src({DenseMatmul::kTileRows, k}, Type::f32, Tag::ab);
    const dnnl::memory::desc weights({k, n}, Type::f32, Tag::any);
    const dnnl::memory::desc dst({DenseMatmul::kTileRows, n}, Type::f32,
                                 dnnl::memory::dims{view.rows, 1});
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    const dnnl::matmul::primitive_desc desc(dnnl::matmul::desc(src, weights, dst), attr, engine_);
    matmul_ = dnnl::matmul(desc);
    scratchpad_ = dnnl::memory(desc.scratchpad_desc(), engine_);
    src_ = dnnl::memory(src, engine_, nullptr);
    dst_ = dnnl::memory(dst, engine_, nullptr);
    weights_ = dnnl::memory(desc.weights_desc(), engine_);
    FillWeights(view, n);
  }

  // One tile; `y` is the first output of its first row in the whole result.
  void Run(const float* x, float* y) {
    src_.set_data_handle(const_cast<float*>(x));
    dst_.set_data_handle(y + n_begin_);
    matmul_.execute(stream_, {{DNNL_ARG_SRC, src_},
                              {DNNL_ARG_WEIGHTS, weights_},
                              {DNNL_ARG_DST, dst_},
                              {DNNL_ARG_SCRATCHPAD, scratchpad_}});
    stream_.wait();
  }

 private:
  void FillWeights(const WeightView& view, int64_t n) {
    std::vector<float> plain(n * view.cols);
    const auto* data = static_cast<const uint8_t*>(view.data);
    const int64_t row_bytes = RowBytes(view.type, view.cols);
    for (int64_t i = 0; i < n; ++i) {
      DequantizeRow(view.type, data + (n_begin_ + i) * row_bytes, view.cols,
                    plain.data() + i * view.cols);
    }
    dnnl::memory from({{view.cols, n}, Type::f32, Tag::ba}, engine_, plain.data());
    dnnl::reorder(from, weights_).execute(stream_, from, weights_);
    stream_.wait();
  }

  dnnl::engine engine_;
  dnnl::stream stream_;
  int64_t n_begin_;
  dnnl::matmul matmul_;
  dnnl::memory src_, weights_, dst_, scratchpad_;
};

class OneDnnMatmul final : public DenseMatmul {
 public:
  OneDnnMatmul(const WeightView& view, ThreadPool& pool)
      : n_(view.rows), k_(view.cols), pool_(pool) {
    const int64_t units = (n_ + kSliceOutputs - 1) / kSliceOutputs;
    slices_.resize(std::min<int64_t>(units, pool.threads()));
    const auto count = static_cast<int64_t>(slices_.size());
    ForSlices([&](int64_t s) {
      const int64_t begin = units * s / count * kSliceOutputs;
      const int64_t end = std::min(n_, units * (s + 1) / count * kSliceOutputs);
      try {
        slices_[s] = std::make_unique<Slice>(view, begin, end);
      } catch (const dnnl::error&) {
        slices_[s] = nullptr;  // no such primitive on this machine
      }
    });
  }

  bool usable() const {
    return std::all_of(slices_.begin(), slices_.end(), [](const auto& s) { return s != nullptr; });
  }

  void Run(const float* x, int rows, float* y) override {
    const int whole = rows / kTileRows * kTileRows;
    RunTiles(x, whole, y);
    if (whole == rows) return;
    const int64_t left = rows - whole;
    padded_x_.assign(kTileRows * k_, 0.0f);
    std::copy_n(x + whole * k_, left * k_, padded_x_.begin());
    padded_y_.resize(kTileRows * n_);
    RunTiles(padded_x_.data(), kTileRows, padded_y_.data());
    std::copy_n(padded_y_.begin(), left * n_, y + whole * n_);
  }

 private:
  template <typename Fn>
  void ForSlices(const Fn& fn) {
    pool_.ParallelFor(static_cast<int64_t>(slices_.size()), 1,
                      [&](int64_t begin, int64_t end, int) {
                        for (int64_t s = begin; s < end; ++s) fn(s);
                      });
  }

  void RunTiles(const float* x, int rows, float* y) {
    ForSlices([&](int64_t s) {
      for (int64_t row = 0; row < rows; row += kTileRows) {
        slices_[s]->Run(x + row * k_, y + row * n_);
      }
    });
  }

  const int64_t n_, k_;
  ThreadPool& pool_;
  std::vector<std::unique_ptr<Slice>> slices_;
  std::vector<float> padded_x_, padded_y_;
};

}  // namespace

std::unique_ptr<DenseMatmul> DenseMatmul::Make(const WeightView& view, Isa isa, ThreadPool& pool) {
  CapIsa(isa);
  StayInThisThread();  // the caller, which is thread 0 of the pool
  auto matmul = std::make_unique<OneDnnMatmul>(view, pool);
  return matmul->usable() ? std::move(matmul) : nullptr;
}

void DenseMatmul::StayInThisThread() { omp_set_num_threads(1); }

}  // namespace trivium::kernels
