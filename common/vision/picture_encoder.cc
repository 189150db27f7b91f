#include "common/vision/picture_encoder.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "common/base/buffer.h"

namespace trivium::vision {
namespace {

// As vision towers have it, for queries and keys of any length.
constexpr double kRotaryBase = 10000;

struct PackedLinear {
  std::unique_ptr<kernels::Matrix> weight;
  const float* bias = nullptr;  // null: none
};

PackedLinear Pack(kernels::Ops& ops, const Linear& linear) {
  return {ops.Pack(linear.weight), linear.bias.empty() ? nullptr : linear.bias.data()};
}

void Apply(kernels::Ops& ops, const PackedLinear& linear, const float* x, int rows, float* out) {
  ops.Matmul(*linear.weight, x, rows, out);
  if (linear.bias == nullptr) return;
  ops.encoder().AddBias(out, linear.bias, rows, static_cast<int>(linear.weight->rows()));
}

// The patches of a slice, those of one token next to one another, row by row: so that a token's
// patches lie side by side wherever rows do.
template <typename Fn>
void ForPatches(const TowerConfig& config, const image::Image& slice, const Fn& fn) {
  const int32_t rows = slice.height / config.patch_size, cols = slice.width / config.patch_size;
  for (int32_t top = 0; top < rows; top += config.merge) {
    for (int32_t left = 0; left < cols; left += config.merge) {
      for (int32_t y = top; y < top + config.merge; ++y) {
        for (int32_t x = left; x < left + config.merge; ++x) fn(y, x);
      }
    }
  }
}

}  // namespace

struct PictureEncoder::Packed {
  struct Layer {
    PackedLinear q, k, v, attn_out, up, down;
  };
  PackedLinear patch;
  std::vector<Layer> layers;
  std::vector<PackedLinear> projector;
  // What each byte of a channel becomes: rescaled, less the mean, over the deviation.
  std::array<std::array<float, 256>, 3> levels{};
};

struct PictureEncoder::Pass {
  int rows = 0;
  std::vector<kernels::RowSpan> spans;  // one a slice
  std::vector<float> x, normed;         // [rows, hidden]
  std::vector<float> q, k, v, attn;     // [rows, heads, head_dim]
  std::vector<float> projected;         // [rows, hidden]
  std::vector<float> wide;              // [rows, ffn]; the patches before, the projector's after
  std::vector<float> cosines, sines;    // [rows, head_dim / 2], where positions rotate
};

PictureEncoder::PictureEncoder(std::shared_ptr<const Tower> tower,
                               std::unique_ptr<kernels::Ops> ops)
    : tower_(std::move(tower)),
      ops_(std::move(ops)),
      packed_(std::make_unique<Packed>()),
      pass_(std::make_unique<Pass>()) {
  packed_->patch = Pack(*ops_, tower_->patch);
  for (const TowerLayer& layer : tower_->layers) {
    packed_->layers.push_back({Pack(*ops_, layer.q), Pack(*ops_, layer.k), Pack(*ops_, layer.v),
                               Pack(*ops_, layer.attn_out), Pack(*ops_, layer.up),
                               Pack(*ops_, layer.down)});
  }
  for (const Linear& linear : tower_->projector) {
    packed_->projector.push_back(Pack(*ops_, linear));
  }
  for (size_t c = 0; c < 3; ++c) {
    for (size_t i = 0; i < 256; ++i) {
      const auto rescaled = static_cast<float>(static_cast<double>(i) * (1 / 255.0));
      packed_->levels[c][i] = (rescaled - tower_->config.mean[c]) / tower_->config.deviation[c];
    }
  }
}

PictureEncoder::~PictureEncoder() = default;

int32_t PictureEncoder::TokensOf(const image::Image& slice) const {
  const int32_t side = tower_->config.token_side();
  return slice.width / side * (slice.height / side);
}

void PictureEncoder::Encode(std::span<const image::Image> slices, float* out) {
  const TowerConfig& c = tower_->config;
  while (!slices.empty()) {
    size_t count = 0;
    int64_t rows = 0, tokens = 0;
    while (count < slices.size()) {
      const image::Image& slice = slices[count];
      const int64_t more = c.RowsOf(slice.width, slice.height);
      const bool whole = slice.width % c.token_side() == 0 && slice.height % c.token_side() == 0;
      const bool right = c.rotary || (slice.width == c.image_size && slice.height == c.image_size);
      TRIVIUM_CHECK(whole && right && more >= 1 && more <= kMaxSliceRows,
                    "a slice of {} x {} pixels", slice.width, slice.height);
      if (count > 0 && rows + more > kPassRows) break;
      rows += more;
      tokens += TokensOf(slice);
      ++count;
    }
    RunPass(slices.first(count), out);
    out += tokens * c.out_hidden;
    slices = slices.subspan(count);
  }
}

void PictureEncoder::RunPass(std::span<const image::Image> slices, float* out) {
  const TowerConfig& c = tower_->config;
  Pass& p = *pass_;
  p.spans.clear();
  p.rows = 0;
  for (const image::Image& slice : slices) {
    const auto rows = static_cast<int>(c.RowsOf(slice.width, slice.height));
    p.spans.push_back({p.rows, rows});
    p.rows += rows;
  }
  const int64_t elems = int64_t{p.rows} * c.hidden;
  for (auto* buffer : {&p.x, &p.normed, &p.q, &p.k, &p.v, &p.attn, &p.projected}) {
    GrowTo(*buffer, elems);
  }
  GrowTo(p.wide, p.rows * std::max<int64_t>(c.ffn, c.patch_inputs()));
  Embed(slices);
  for (int layer = 0; layer < c.layers; ++layer) RunLayer(layer);
  Project(out);
}

void PictureEncoder::CutPatches(std::span<const image::Image> slices) {
  const TowerConfig& c = tower_->config;
  float* to = pass_->wide.data();
  for (const image::Image& slice : slices) {
    ForPatches(c, slice, [&](int32_t top, int32_t left) {
      const uint8_t* corner =
          slice.rgb.data() + 3 * (int64_t{top} * slice.width + left) * c.patch_size;
      for (size_t channel = 0; channel < 3; ++channel) {
        for (int32_t y = 0; y < c.patch_size; ++y) {
          const uint8_t* from = corner + 3 * int64_t{y} * slice.width + channel;
          for (int32_t x = 0; x < c.patch_size; ++x) {
            *to++ = packed_->levels[channel][from[3 * x]];
          }
        }
      }
    });
  }
}

void PictureEncoder::AddPositions(const image::Image& slice, float* rows) {
  const TowerConfig& c = tower_->config;
  const int32_t cols = slice.width / c.patch_size;
  const float* table = tower_->positions.data();
  if (c.class_token) {
    ops_->Add(rows, table, c.hidden);
    table += c.hidden;
    rows += c.hidden;
  }
  ForPatches(c, slice, [&](int32_t y, int32_t x) {
    ops_->Add(rows, table + (int64_t{y} * cols + x) * c.hidden, c.hidden);
    rows += c.hidden;
  });
}

void PictureEncoder::MakeRotations(std::span<const image::Image> slices) {
  const TowerConfig& c = tower_->config;
  const int32_t half = c.head_dim() / 2, quarter = half / 2;
  pass_->cosines.clear();
  pass_->sines.clear();
  const auto turn = [&](int32_t position) {
    for (int32_t i = 0; i < quarter; ++i) {
      // The reference rounds frequency and angle to float32.
      const auto frequency = static_cast<float>(1 / std::pow(kRotaryBase, 2.0 * i / half));
      const double angle = static_cast<float>(position) * frequency;
      pass_->cosines.push_back(static_cast<float>(std::cos(angle)));
      pass_->sines.push_back(static_cast<float>(std::sin(angle)));
    }
  };
  for (const image::Image& slice : slices) {
    // A class row stands where nothing is turned.
    pass_->cosines.insert(pass_->cosines.end(), c.class_token ? static_cast<size_t>(half) : 0, 1);
    pass_->sines.insert(pass_->sines.end(), c.class_token ? static_cast<size_t>(half) : 0, 0);
    ForPatches(c, slice, [&](int32_t y, int32_t x) {
      turn(y);
      turn(x);
    });
  }
}

void PictureEncoder::Embed(std::span<const image::Image> slices) {
  const TowerConfig& c = tower_->config;
  Pass& p = *pass_;
  CutPatches(slices);
  const int lead = c.class_token ? 1 : 0;
  const int patches = p.rows - lead * static_cast<int>(slices.size());
  Apply(*ops_, packed_->patch, p.wide.data(), patches, p.projected.data());
  const float* from = p.projected.data();
  for (size_t i = 0; i < slices.size(); ++i) {
    float* rows = p.x.data() + int64_t{p.spans[i].row_begin} * c.hidden;
    const int64_t elems = int64_t{p.spans[i].row_count - lead} * c.hidden;
    if (lead == 1) std::copy_n(tower_->class_embedding.data(), c.hidden, rows);
    std::copy_n(from, elems, rows + lead * c.hidden);
    from += elems;
    if (!c.rotary) AddPositions(slices[i], rows);
  }
  if (c.rotary) MakeRotations(slices);
  Norm(tower_->pre_norm, p.x.data(), p.x.data());
}

void PictureEncoder::Norm(const LayerNormWeights& norm, const float* x, float* out) {
  const TowerConfig& c = tower_->config;
  if (norm.weight.empty()) return;
  ops_->encoder().LayerNorm(x, norm.weight.data(), norm.bias.data(), c.norm_eps, pass_->rows,
                            c.hidden, out);
}

void PictureEncoder::RunLayer(int index) {
  const TowerConfig& c = tower_->config;
  const TowerLayer& weights = tower_->layers[static_cast<size_t>(index)];
  const Packed::Layer& layer = packed_->layers[static_cast<size_t>(index)];
  Pass& p = *pass_;
  const int64_t elems = int64_t{p.rows} * c.hidden;
  Norm(weights.norm1, p.x.data(), p.normed.data());
  Apply(*ops_, layer.q, p.normed.data(), p.rows, p.q.data());
  Apply(*ops_, layer.k, p.normed.data(), p.rows, p.k.data());
  Apply(*ops_, layer.v, p.normed.data(), p.rows, p.v.data());
  if (c.rotary) {
    for (float* x : {p.q.data(), p.k.data()}) {
      ops_->encoder().RotateHalves(
          {x, p.rows, c.heads, c.head_dim(), p.cosines.data(), p.sines.data()});
    }
  }
  ops_->encoder().FullAttention({.q = p.q.data(),
                                 .k = p.k.data(),
                                 .v = p.v.data(),
                                 .spans = p.spans,
                                 .heads = c.heads,
                                 .head_dim = c.head_dim(),
                                 .scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim())),
                                 .out = p.attn.data()});
  Apply(*ops_, layer.attn_out, p.attn.data(), p.rows, p.projected.data());
  ops_->Add(p.x.data(), p.projected.data(), elems);
  Norm(weights.norm2, p.x.data(), p.normed.data());
  Apply(*ops_, layer.up, p.normed.data(), p.rows, p.wide.data());
  ops_->encoder().Activate(c.activation, p.wide.data(), int64_t{p.rows} * c.ffn);
  Apply(*ops_, layer.down, p.wide.data(), p.rows, p.projected.data());
  ops_->Add(p.x.data(), p.projected.data(), elems);
}

void PictureEncoder::Project(float* out) {
  const TowerConfig& c = tower_->config;
  Pass& p = *pass_;
  Norm(tower_->post_norm, p.x.data(), p.x.data());
  const int lead = c.class_token ? 1 : 0;
  float* packed = p.x.data();  // without the class rows
  for (const kernels::RowSpan& span : p.spans) {
    const float* from = p.x.data() + int64_t{span.row_begin + lead} * c.hidden;
    const int64_t elems = int64_t{span.row_count - lead} * c.hidden;
    std::memmove(packed, from, static_cast<size_t>(elems) * sizeof(float));
    packed += elems;
  }
  const auto tokens = static_cast<int>((packed - p.x.data()) / c.projector_inputs());
  const float* x = p.x.data();
  for (size_t i = 0; i < packed_->projector.size(); ++i) {
    const bool last = i + 1 == packed_->projector.size();
    const int64_t elems = tokens * packed_->projector[i].weight->rows();
    std::vector<float>& buffer = i % 2 == 0 ? p.wide : p.normed;
    if (!last) GrowTo(buffer, elems);
    float* y = last ? out : buffer.data();
    Apply(*ops_, packed_->projector[i], x, tokens, y);
    if (!last) ops_->encoder().Activate(kernels::Activation::kGelu, y, elems);
    x = y;
  }
}

}  // namespace trivium::vision
