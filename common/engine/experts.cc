#include "common/engine/experts.h"

#include <algorithm>
#include <numeric>

#include "common/base/buffer.h"
#include "common/engine/softmax.h"

namespace trivium::engine {
namespace {

// to[width] += weight * from[width]
void AddWeighted(double weight, const float* from, int64_t width, float* to) {
  const auto factor = static_cast<float>(weight);
  for (int64_t i = 0; i < width; ++i) to[i] += factor * from[i];
}

double Sigmoid(float x) {
  const float two[] = {x, 0.0f};
  const std::vector<double> weights = Softmax(Highest(two), 1.0f).Weights(two);
  return weights[0] / Sum(weights);
}

}  // namespace

void WeighExperts(std::span<const float> scores, const model::ExpertConfig& config,
                  std::span<double> out) {
  const std::vector<double> weights = Softmax(Highest(scores), 1.0f).Weights(scores);
  std::vector<int32_t> order(weights.size());
  std::iota(order.begin(), order.end(), 0);
  const auto used = order.begin() + config.used;
  std::partial_sort(order.begin(), used, order.end(), [&](int32_t a, int32_t b) {
    const double left = weights[static_cast<size_t>(a)], right = weights[static_cast<size_t>(b)];
    return left != right ? left > right : a < b;
  });
  double kept = 0;
  for (auto it = order.begin(); it != used; ++it) kept += weights[static_cast<size_t>(*it)];
  const double total = config.normalised ? kept : Sum(weights);
  std::fill(out.begin(), out.end(), 0.0);
  for (auto it = order.begin(); it != used; ++it) {
    out[static_cast<size_t>(*it)] = weights[static_cast<size_t>(*it)] / total;
  }
}

Experts::Experts(const model::LayerWeights& layer, const model::ModelConfig& config,
                 kernels::Ops& ops)
    : config_(config.experts), hidden_(config.hidden), router_(ops.Pack(layer.router)) {
  for (const model::FfnWeights& expert : layer.experts) {
    experts_.emplace_back(expert, config.activation, ops);
  }
  if (config_.shared_ffn == 0) return;
  shared_router_ = ops.Pack(layer.shared_router);
  shared_.emplace(layer.shared, config.activation, ops);
}

void Experts::Route(kernels::Ops& ops, const float* x, int rows, Scratch& scratch) const {
  const auto count = static_cast<size_t>(config_.count);
  const size_t all = static_cast<size_t>(rows) * count;
  GrowTo(scratch.scores, static_cast<int64_t>(all));
  scratch.weights.resize(std::max(scratch.weights.size(), all));
  ops.Matmul(*router_, x, rows, scratch.scores.data());
  for (size_t at = 0; at < all; at += count) {
    WeighExperts(std::span(scratch.scores).subspan(at, count), config_,
                 std::span(scratch.weights).subspan(at, count));
  }
}

void Experts::FindRows(int32_t expert, int rows, Scratch& scratch) const {
  scratch.rows.clear();
  for (int32_t row = 0; row < rows; ++row) {
    if (Weight(scratch, row, expert) != 0) scratch.rows.push_back(row);
  }
}

// y += the expert's results for scratch.rows, by weight.
void Experts::AddExpert(kernels::Ops& ops, int32_t expert, const float* x, Scratch& scratch,
                        float* y) const {
  const auto chosen = static_cast<int>(scratch.rows.size());
  GrowTo(scratch.x, int64_t{chosen} * hidden_);
  GrowTo(scratch.y, int64_t{chosen} * hidden_);
  float* gathered = scratch.x.data();
  for (const int64_t row : scratch.rows) {
    gathered = std::copy_n(x + row * hidden_, hidden_, gathered);
  }
  experts_[static_cast<size_t>(expert)].Run(ops, scratch.x.data(), chosen, scratch.ffn,
                                            scratch.y.data());
  const float* result = scratch.y.data();
  for (const int32_t row : scratch.rows) {
    AddWeighted(Weight(scratch, row, expert), result, hidden_, y + int64_t{row} * hidden_);
    result += hidden_;
  }
}

int64_t Experts::Run(kernels::Ops& ops, const float* x, int rows, Scratch& scratch,
                     float* y) const {
  Route(ops, x, rows, scratch);
  std::fill_n(y, int64_t{rows} * hidden_, 0.0f);
  int64_t bytes_read = 0;
  for (int32_t expert = 0; expert < config_.count; ++expert) {
    FindRows(expert, rows, scratch);
    if (scratch.rows.empty()) continue;
    AddExpert(ops, expert, x, scratch, y);
    bytes_read += experts_[static_cast<size_t>(expert)].bytes();
  }
  if (shared_) AddShared(ops, x, rows, scratch, y);
  return bytes_read;
}

void Experts::AddShared(kernels::Ops& ops, const float* x, int rows, Scratch& scratch,
                        float* y) const {
  GrowTo(scratch.scores, rows);
  GrowTo(scratch.y, int64_t{rows} * hidden_);
  ops.Matmul(*shared_router_, x, rows, scratch.scores.data());
  shared_->Run(ops, x, rows, scratch.ffn, scratch.y.data());
  for (int64_t row = 0; row < rows; ++row) {
    AddWeighted(Sigmoid(scratch.scores[static_cast<size_t>(row)]), scratch.y.data() + row * hidden_,
                hidden_, y + row * hidden_);
  }
}

}  // namespace trivium::engine
