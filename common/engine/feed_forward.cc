#include "common/engine/feed_forward.h"

namespace trivium::engine {
namespace {

int64_t Bytes(const kernels::WeightView& view) {
  return view.rows * kernels::RowBytes(view.type, view.cols);
}

}  // namespace

FeedForward::FeedForward(const model::FfnWeights& weights, kernels::Activation activation,
                         kernels::Ops& ops)
    : gate_(ops.Pack(weights.gate)),
      up_(ops.Pack(weights.up)),
      down_(ops.Pack(weights.down)),
      activation_(activation),
      bytes_(Bytes(weights.gate) + Bytes(weights.up) + Bytes(weights.down)) {}

void FeedForward::Run(kernels::Ops& ops, const float* x, int rows, Scratch& scratch,
                      float* y) const {
  const int64_t inner = int64_t{rows} * gate_->rows();
  for (auto* buffer : {&scratch.gate, &scratch.up}) {
    if (buffer->size() < static_cast<size_t>(inner)) buffer->resize(static_cast<size_t>(inner));
  }
  ops.MatmulGatedDown(activation_, {gate_.get(), scratch.gate.data()},
                      {up_.get(), scratch.up.data()}, {down_.get(), y}, x, rows);
}

}  // namespace trivium::engine
