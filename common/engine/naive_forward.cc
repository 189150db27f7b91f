#include "common/engine/naive_forward.h"

#include <algorithm>
#include <cmath>

#include "kernels/weights.h"

namespace trivium::engine {
namespace {

using Vector = std::vector<double>;

Vector Row(const kernels::WeightView& view, int64_t row) {
  std::vector<float> values(static_cast<size_t>(view.cols));
  const auto* bytes = static_cast<const uint8_t*>(view.data);
  kernels::DequantizeRow(view.type, bytes + row * kernels::RowBytes(view.type, view.cols),
                         view.cols, values.data());
  return {values.begin(), values.end()};
}

Vector Times(const kernels::WeightView& w, const Vector& x) {
  Vector y(static_cast<size_t>(w.rows));
  for (int64_t i = 0; i < w.rows; ++i) {
    const Vector row = Row(w, i);
    for (size_t j = 0; j < x.size(); ++j) y[static_cast<size_t>(i)] += row[j] * x[j];
  }
  return y;
}

Vector Norm(const Vector& x, const float* weight, double eps) {
  double squares = 0;
  for (double value : x) squares += value * value;
  const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
  Vector y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * weight[i];
  return y;
}

void Rotate(Vector& x, const model::ModelConfig& config, size_t position) {
  const auto head_dim = static_cast<size_t>(config.head_dim);
  for (size_t head = 0; head < x.size(); head += head_dim) {
    for (size_t i = 0; i < config.rope.frequencies.size(); ++i) {
      const double angle = static_cast<double>(position) * config.rope.frequencies[i];
      const double a = x[head + 2 * i], b = x[head + 2 * i + 1];
      x[head + 2 * i] = config.rope.scale * (a * std::cos(angle) - b * std::sin(angle));
      x[head + 2 * i + 1] = config.rope.scale * (a * std::sin(angle) + b * std::cos(angle));
    }
  }
}

void RoundToHalf(Vector& x) {
  for (double& value : x) {
    value = kernels::HalfToFloat(kernels::FloatToHalf(static_cast<float>(value)));
  }
}

// The attention of one token over keys 0 … `last`.
Vector Attend(const Vector& q, const std::vector<Vector>& k, const std::vector<Vector>& v,
              const model::ModelConfig& config, size_t last) {
  const auto head_dim = static_cast<size_t>(config.head_dim);
  const size_t group = static_cast<size_t>(config.heads / config.kv_heads);
  Vector out(q.size());
  for (size_t head = 0; head < static_cast<size_t>(config.heads); ++head) {
    const size_t from = head / group * head_dim;
    Vector weights(last + 1);
    for (size_t t = 0; t <= last; ++t) {
      for (size_t i = 0; i < head_dim; ++i) weights[t] += q[head * head_dim + i] * k[t][from + i];
      weights[t] /= std::sqrt(static_cast<double>(head_dim));
    }
    const double highest = *std::max_element(weights.begin(), weights.end());
    double total = 0;
    for (double& weight : weights) total += weight = std::exp(weight - highest);
    for (size_t t = 0; t <= last; ++t) {
      for (size_t i = 0; i < head_dim; ++i) {
        out[head * head_dim + i] += weights[t] / total * v[t][from + i];
      }
    }
  }
  return out;
}

void AddTo(Vector& x, const Vector& y) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

Vector FeedForward(const model::LayerWeights& layer, const Vector& x) {
  Vector gate = Times(layer.gate, x);
  const Vector up = Times(layer.up, x);
  for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
  return Times(layer.down, gate);
}

}  // namespace

NaiveResult NaiveForward(const model::Model& model, std::span<const int32_t> tokens) {
  const model::ModelConfig& config = model.config;
  NaiveResult result;
  std::vector<Vector> x;
  for (int32_t id : tokens) x.push_back(Row(model.embedding, id));
  for (const model::LayerWeights& layer : model.layers) {
    std::vector<Vector> q, k, v;
    for (size_t t = 0; t < x.size(); ++t) {
      const Vector normed = Norm(x[t], layer.attn_norm, static_cast<double>(config.rms_eps));
      q.push_back(Times(layer.q, normed));
      k.push_back(Times(layer.k, normed));
      v.push_back(Times(layer.v, normed));
      Rotate(q.back(), config, t);
      Rotate(k.back(), config, t);
      RoundToHalf(k.back());
      RoundToHalf(v.back());
    }
    for (size_t t = 0; t < x.size(); ++t) {
      AddTo(x[t], Times(layer.attn_out, Attend(q[t], k, v, config, t)));
      AddTo(x[t],
            FeedForward(layer, Norm(x[t], layer.ffn_norm, static_cast<double>(config.rms_eps))));
    }
    result.k.push_back(std::move(k));
    result.v.push_back(std::move(v));
  }
  for (const Vector& row : x) {
    result.logits.push_back(
        Times(model.output, Norm(row, model.output_norm, static_cast<double>(config.rms_eps))));
  }
  return result;
}

}  // namespace trivium::engine
