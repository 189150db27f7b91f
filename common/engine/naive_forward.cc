#include "common/engine/naive_forward.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

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

void Rotate(Vector& x, const model::ModelConfig& config, int layer, size_t position) {
  const auto head_dim = static_cast<size_t>(config.head_dim);
  const model::Rope& rope = config.RopeOf(layer);
  const size_t pairs = rope.frequencies.size();
  const bool halves = config.rope_pairs == kernels::RopePairs::kHalves;
  for (size_t head = 0; head < x.size(); head += head_dim) {
    for (size_t i = 0; i < pairs; ++i) {
      const size_t first = head + (halves ? i : 2 * i);
      const size_t second = head + (halves ? i + pairs : 2 * i + 1);
      const double angle = static_cast<double>(position) * rope.frequencies[i];
      const double a = x[first], b = x[second];
      x[first] = rope.scale * (a * std::cos(angle) - b * std::sin(angle));
      x[second] = rope.scale * (a * std::sin(angle) + b * std::cos(angle));
    }
  }
}

void AddTo(Vector& x, const Vector& y) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

// A product for the heads of q, k or v, with what the architecture does to them before they turn.
Vector Heads(const kernels::WeightView& w, const Vector& x, const float* bias, const float* norm,
             const model::ModelConfig& config) {
  Vector y = Times(w, x);
  for (size_t i = 0; bias != nullptr && i < y.size(); ++i) y[i] += bias[i];
  const auto head_dim = static_cast<std::ptrdiff_t>(config.head_dim);
  for (auto head = y.begin(); norm != nullptr && head != y.end(); head += head_dim) {
    const Vector normed = Norm({head, head + head_dim}, norm, static_cast<double>(config.rms_eps));
    std::copy(normed.begin(), normed.end(), head);
  }
  return y;
}

void RoundToHalf(Vector& x) {
  for (double& value : x) {
    value = kernels::HalfToFloat(kernels::FloatToHalf(static_cast<float>(value)));
  }
}

double Capped(double x, double cap) { return cap == 0 ? x : cap * std::tanh(x / cap); }

// The attention of one token over keys `first` … `last`.
Vector Attend(const Vector& q, const std::vector<Vector>& k, const std::vector<Vector>& v,
              const model::ModelConfig& config, size_t first, size_t last) {
  const auto head_dim = static_cast<size_t>(config.head_dim);
  const size_t group = static_cast<size_t>(config.heads / config.kv_heads);
  Vector out(q.size());
  for (size_t head = 0; head < static_cast<size_t>(config.heads); ++head) {
    const size_t from = head / group * head_dim;
    Vector weights(last + 1, -INFINITY);
    for (size_t t = first; t <= last; ++t) {
      double score = 0;
      for (size_t i = 0; i < head_dim; ++i) score += q[head * head_dim + i] * k[t][from + i];
      weights[t] = Capped(score * static_cast<double>(config.attention_scale),
                          static_cast<double>(config.attention_softcap));
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

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double Activated(kernels::Activation activation, double x) {
  if (activation == kernels::Activation::kSilu) return x * Sigmoid(x);
  return x / 2 * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
}

Vector Gated(const model::FfnWeights& ffn, kernels::Activation activation, const Vector& x) {
  Vector gate = Times(ffn.gate, x);
  const Vector up = Times(ffn.up, x);
  for (size_t i = 0; i < gate.size(); ++i) gate[i] = Activated(activation, gate[i]) * up[i];
  return Times(ffn.down, gate);
}

// Every expert computes, and those that the row does not use count nothing.
Vector Experts(const model::LayerWeights& layer, const model::ModelConfig& config,
               const Vector& x) {
  Vector weights = Times(layer.router, x);
  for (double& weight : weights) weight = std::exp(weight);
  Vector sorted = weights;
  std::sort(sorted.rbegin(), sorted.rend());
  const double least = sorted[static_cast<size_t>(config.experts.used) - 1];
  const auto counted =
      config.experts.normalised ? sorted.begin() + config.experts.used : sorted.end();
  const double total = std::accumulate(sorted.begin(), counted, 0.0);
  Vector y(x.size());
  for (size_t e = 0; e < weights.size(); ++e) {
    Vector part = Gated(layer.experts[e], config.activation, x);
    for (double& value : part) value *= weights[e] >= least ? weights[e] / total : 0;
    AddTo(y, part);
  }
  if (config.experts.shared_ffn == 0) return y;
  Vector shared = Gated(layer.shared, config.activation, x);
  const double share = Sigmoid(Times(layer.shared_router, x)[0]);
  for (double& value : shared) value *= share;
  AddTo(y, shared);
  return y;
}

Vector FeedForward(const model::LayerWeights& layer, const model::ModelConfig& config,
                   const Vector& x) {
  if (!layer.experts.empty()) return Experts(layer, config, x);
  return Gated(layer.ffn, config.activation, x);
}

// One layer; keys and values are added to `result`.
void RunLayer(const model::Model& model, int index, std::vector<Vector>& x, NaiveResult& result) {
  const model::ModelConfig& config = model.config;
  const model::LayerWeights& layer = model.layers[static_cast<size_t>(index)];
  const auto eps = static_cast<double>(config.rms_eps);
  const auto normed = [&](const Vector& row, const float* norm) {
    return norm == nullptr ? row : Norm(row, norm, eps);
  };
  std::vector<Vector> q, k, v;
  for (size_t t = 0; t < x.size(); ++t) {
    const Vector in = Norm(x[t], layer.attn_norm, eps);
    q.push_back(Heads(layer.q, in, layer.q_bias, layer.q_norm, config));
    k.push_back(Heads(layer.k, in, layer.k_bias, layer.k_norm, config));
    v.push_back(Heads(layer.v, in, layer.v_bias, nullptr, config));
    Rotate(q.back(), config, index, t);
    Rotate(k.back(), config, index, t);
    RoundToHalf(k.back());
    RoundToHalf(v.back());
  }
  const auto window = static_cast<size_t>(config.WindowOf(index));
  for (size_t t = 0; t < x.size(); ++t) {
    const size_t first = window == 0 || t < window ? 0 : t - window + 1;
    AddTo(x[t], normed(Times(layer.attn_out, Attend(q[t], k, v, config, first, t)),
                       layer.attn_post_norm));
    AddTo(x[t],
          normed(FeedForward(layer, config, Norm(x[t], layer.ffn_norm, eps)), layer.ffn_post_norm));
  }
  result.k.push_back(std::move(k));
  result.v.push_back(std::move(v));
}

}  // namespace

NaiveResult NaiveForward(const model::Model& model, std::span<const int32_t> tokens) {
  const model::ModelConfig& config = model.config;
  NaiveResult result;
  std::vector<Vector> x;
  for (int32_t id : tokens) {
    x.push_back(Row(model.embedding, id));
    for (double& value : x.back()) value *= static_cast<double>(config.embedding_scale);
  }
  for (int layer = 0; layer < config.layers; ++layer) RunLayer(model, layer, x, result);
  for (const Vector& row : x) {
    Vector logits =
        Times(model.output, Norm(row, model.output_norm, static_cast<double>(config.rms_eps)));
    for (double& logit : logits) logit = Capped(logit, static_cast<double>(config.logit_softcap));
    result.logits.push_back(std::move(logits));
  }
  return result;
}

}  // namespace trivium::engine
