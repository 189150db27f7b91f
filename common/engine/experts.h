// The feed-forward network of a layer with experts (Shazeer et al., arXiv:1701.06538): a router
// scores all experts for each row, the likeliest few compute it, and their results are added up by
// weight. Rows are sorted by expert, and each expert's matrices are multiplied once, with its own
// rows only.
//
// Thread-safety: one thread, that of the Ops. Invariants: a row's result depends on its own values
// alone, as far as that is true of the Ops: its experts are added in ascending order. An expert
// without rows is not read.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "common/engine/feed_forward.h"
#include "common/model/model.h"
#include "kernels/ops.h"

namespace trivium::engine {

class Experts {
 public:
  // Room that layers share; it grows to the largest call and stays.
  struct Scratch {
    FeedForward::Scratch ffn;
    std::vector<float> scores;    // [rows, experts]
    std::vector<float> x, y;      // [rows of an expert, hidden]
    std::vector<double> weights;  // [rows, experts]; 0 for those that a row does not use
    std::vector<int32_t> rows;    // of an expert
  };

  // Packs the weights of a layer that has experts.
  Experts(const model::LayerWeights& layer, const model::ModelConfig& config, kernels::Ops& ops);

  // y[rows, hidden] of x[rows, hidden]. Returns the bytes of weights of the experts that were read,
  // the shared one's not counted.
  int64_t Run(kernels::Ops& ops, const float* x, int rows, Scratch& scratch, float* y) const;

 private:
  void Route(kernels::Ops& ops, const float* x, int rows, Scratch& scratch) const;
  void FindRows(int32_t expert, int rows, Scratch& scratch) const;
  void AddExpert(kernels::Ops& ops, int32_t expert, const float* x, Scratch& scratch,
                 float* y) const;
  double& Weight(Scratch& scratch, int32_t row, int32_t expert) const {
    return scratch.weights[static_cast<size_t>(int64_t{row} * config_.count + expert)];
  }
  void AddShared(kernels::Ops& ops, const float* x, int rows, Scratch& scratch, float* y) const;

  model::ExpertConfig config_;
  int32_t hidden_;
  std::unique_ptr<kernels::Matrix> router_;
  std::vector<FeedForward> experts_;
  std::unique_ptr<kernels::Matrix> shared_router_;  // null: no shared expert
  std::optional<FeedForward> shared_;
};

// The weights of a row's experts: `used` of `scores` (their softmax; the first among equals) keep
// their weight in out[scores], divided by the sum of those kept where `normalised`; all others get
// 0. Fixed double-precision arithmetic.
void WeighExperts(std::span<const float> scores, const model::ExpertConfig& config,
                  std::span<double> out);

}  // namespace trivium::engine
