// The gated feed-forward network of a layer: y = down(activation(gate x) * up x).
// Thread-safety: one thread, that of the Ops. Invariant: a row of y depends on its row of x alone.
#pragma once

#include <memory>
#include <vector>

#include "common/model/model.h"
#include "kernels/ops.h"

namespace trivium::engine {

class FeedForward {
 public:
  // Room that calls share; it grows to the largest of them and stays.
  struct Scratch {
    std::vector<float> gate, up;  // [rows, inner]
  };

  // Packs the weights.
  FeedForward(const model::FfnWeights& weights, kernels::Activation activation, kernels::Ops& ops);

  // x and y: [rows, hidden].
  void Run(kernels::Ops& ops, const float* x, int rows, Scratch& scratch, float* y) const;

  // Of the weights in the file, which are read once a call.
  int64_t bytes() const { return bytes_; }

 private:
  std::unique_ptr<kernels::Matrix> gate_, up_, down_;
  kernels::Activation activation_;
  int64_t bytes_;
};

}  // namespace trivium::engine
