// A batch of attention over random pages for the tests of kernels/, with its exact result. Test
// code only; not thread-safe.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/kv_row.h"
#include "kernels/test_util.h"

namespace trivium::kernels {

struct Dims {
  int heads, groups, dim, block_tokens;
  KvType type = KvType::kF16;
};

// A batch of sequences with random pages; each has keys 0 … last and queries at its last positions.
// A sequence may begin with the same pages as the one before it.
class Batch {
 public:
  struct Sequence {
    int keys;
    int rows;
    int shared_blocks = 0;
  };

  Batch(std::mt19937& random, Dims dims, const std::vector<Sequence>& sequences,
        float deviation = 2.0f)
      : dims_(dims), layout_{dims.block_tokens, dims.groups, dims.dim, dims.type} {
    int pages = 3;
    for (const Sequence& s : sequences) pages += s.keys / dims.block_tokens + 1;
    std::vector<int32_t> free(pages);
    std::iota(free.begin(), free.end(), 0);
    std::shuffle(free.begin(), free.end(), random);
    kv_.resize(pages * layout_.PageWords(), 0x7e00);  // NaN wherever nothing is stored
    for (const Sequence& s : sequences) {
      const int shared = s.shared_blocks * dims.block_tokens;
      std::vector<int32_t> table;
      if (shared > 0)
        table.assign(tables_.back().begin(), tables_.back().begin() + s.shared_blocks);
      for (int b = shared; b < s.keys; b += dims.block_tokens) {
        table.push_back(free.back());
        free.pop_back();
      }
      tables_.push_back(table);
      spans_.push_back({static_cast<int>(positions_.size()), s.rows, nullptr, shared});
      for (int p = s.keys - s.rows; p < s.keys; ++p) positions_.push_back(p);
      for (int p = shared; p < s.keys; ++p)
        FillKey(random, static_cast<int>(tables_.size()) - 1, p);
    }
    for (size_t i = 0; i < spans_.size(); ++i) spans_[i].block_table = tables_[i].data();
    q_ = RandomFloats(random, static_cast<int64_t>(positions_.size()) * dims.heads * dims.dim,
                      deviation);
  }

  void FillKey(std::mt19937& random, int sequence, int p) {
    const auto values = RandomFloats(random, 2 * layout_.RowElems());
    StoreKvRow(layout_, values.data(), Key(sequence, p));
    StoreKvRow(layout_, values.data() + layout_.RowElems(), Value(sequence, p));
  }
  // Rows as they lie in the pages.
  uint16_t* Key(int sequence, int p) {
    return kv_.data() + tables_[sequence][p / dims_.block_tokens] * layout_.PageWords() +
           p % dims_.block_tokens * layout_.RowWords();
  }
  uint16_t* Value(int sequence, int p) {
    return Key(sequence, p) + dims_.block_tokens * layout_.RowWords();
  }

  struct Result {
    std::vector<float> out, lse;
    int64_t kv_bytes_read = 0;
    bool operator==(const Result& other) const { return out == other.out && lse == other.lse; }
  };

  void SetPosition(int row, int position) { positions_[row] = position; }
  void SetWindow(int window) { window_ = window; }
  void SetSoftcap(float softcap) { softcap_ = softcap; }
  // CheckExact allows rounding to bfloat16 of all that is multiplied.
  void AllowBfloat(bool bfloat) { bfloat_ = bfloat; }
  int rows() const { return static_cast<int>(positions_.size()); }
  int64_t row_elems() const { return int64_t{dims_.heads} * dims_.dim; }
  const std::vector<SequenceSpan>& spans() const { return spans_; }

  Result Run(Ops& ops) const { return Run(ops, spans_); }
  Result Run(Ops& ops, std::span<const SequenceSpan> spans) const {
    Result result{std::vector<float>(rows() * row_elems(), -7.0f),
                  std::vector<float>(rows() * dims_.heads, -7.0f)};
    AttentionArgs args{.q = q_.data(),
                       .positions = positions_.data(),
                       .spans = spans,
                       .kv_layer = kv_.data(),
                       .layout = layout_,
                       .heads = dims_.heads};
    args.scale = static_cast<float>(1 / std::sqrt(dims_.dim));
    args.window = window_;
    args.softcap = softcap_;
    args.out = result.out.data();
    args.lse = result.lse.data();
    args.kv_bytes_read = &result.kv_bytes_read;
    ops.Attention(args);
    return result;
  }

  // Rounding of scores moves a weight by |score| * epsilon * dim, and a cap of scores by a few
  // units in the last place more; the rest is a mean of values.
  void CheckExact(const Result& result) {
    for (size_t s = 0; s < spans_.size(); ++s) {
      for (int r = spans_[s].row_begin; r < spans_[s].row_begin + spans_[s].row_count; ++r) {
        for (int h = 0; h < dims_.heads; ++h) CheckHead(static_cast<int>(s), r, h, result);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }

 private:
  void CheckHead(int s, int r, int h, const Result& result) {
    const int group = h / (dims_.heads / dims_.groups);
    std::vector<float> loaded(dims_.dim);
    const float* q = q_.data() + r * row_elems() + int64_t{h} * dims_.dim;
    const double scale = static_cast<float>(1 / std::sqrt(dims_.dim));
    std::vector<double> weights;
    double largest = -INFINITY, total = 0, score_size = 0;
    const int first = window_ == 0 ? 0 : std::max(0, positions_[r] - window_ + 1);
    for (int p = first; p <= positions_[r]; ++p) {
      LoadKvHead(layout_, Key(s, p), group, loaded.data());
      double dot = 0, size = 0;
      for (int d = 0; d < dims_.dim; ++d) {
        const double product = double{q[d]} * loaded[d] * scale;
        dot += product;
        size += std::abs(product);
      }
      if (softcap_ > 0) dot = softcap_ * std::tanh(dot / softcap_);
      weights.push_back(dot);
      largest = std::max(largest, dot);
      score_size = std::max(score_size, size);
    }
    for (double& w : weights) total += w = std::exp(w - largest);
    const double relative =
        bfloat_
            ? 0x1p-8 * (score_size + 2)
            : 0x1p-23 * (score_size * (softcap_ > 0 ? 6 : 2) + 2 * std::sqrt(weights.size()) + 8);
    ASSERT_NEAR(result.lse[r * dims_.heads + h], largest + std::log(total),
                relative + std::abs(largest) * 0x1p-22);
    std::vector<double> exact(dims_.dim), sizes(dims_.dim);
    for (int p = first; p <= positions_[r]; ++p) {
      LoadKvHead(layout_, Value(s, p), group, loaded.data());
      for (int d = 0; d < dims_.dim; ++d) {
        const double product = weights[p - first] / total * loaded[d];
        exact[d] += product;
        sizes[d] += std::abs(product);
      }
    }
    for (int d = 0; d < dims_.dim; ++d) {
      ASSERT_NEAR(result.out[r * row_elems() + h * dims_.dim + d], exact[d],
                  2 * relative * sizes[d])
          << "sequence " << s << " row " << r << " head " << h;
    }
  }

  Dims dims_;
  KvLayout layout_;
  std::vector<uint16_t> kv_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<SequenceSpan> spans_;
  std::vector<int32_t> positions_;
  std::vector<float> q_;
  int window_ = 0;
  float softcap_ = 0;
  bool bfloat_ = false;
};

}  // namespace trivium::kernels
