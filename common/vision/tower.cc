#include "common/vision/tower.h"

#include <set>

#include "common/model/digest.h"

namespace trivium::vision {
namespace {

using kernels::WeightType;
using kernels::WeightView;
using model::GgufTensor;

constexpr int64_t kMaxOutHidden = 65536;

int64_t Elements(const GgufTensor& tensor) {
  int64_t elements = 1;
  for (int64_t size : tensor.shape) elements *= size;
  return elements;
}

std::string ShapeText(const GgufTensor& tensor) {
  return fmt::format("[{}]", fmt::join(tensor.shape, ", "));
}

std::vector<float> Values(const GgufTensor& tensor) {
  std::vector<float> values(static_cast<size_t>(Elements(tensor)));
  const int64_t cols = tensor.shape[0];
  const auto* bytes = static_cast<const uint8_t*>(tensor.data);
  for (int64_t at = 0; at < Elements(tensor); at += cols) {
    kernels::DequantizeRow(tensor.type, bytes + at / cols * kernels::RowBytes(tensor.type, cols),
                           cols, values.data() + at);
  }
  return values;
}

// Keeps track of what was asked for: a tensor that nobody asks for would change the result.
class TensorReader {
 public:
  explicit TensorReader(const model::GgufFile& file) : file_(file) {}

  bool Has(const std::string& name) const { return file_.Tensor(name).ok(); }

  // Of exactly this shape, as in the file.
  absl::StatusOr<GgufTensor> Take(const std::string& name, const std::vector<int64_t>& shape) {
    ASSIGN_OR_RETURN(GgufTensor tensor, TakeAny(name));
    if (tensor.shape != shape) {
      return InvalidArgument("tensor {} has the shape {}, not [{}]", name, ShapeText(tensor),
                             fmt::join(shape, ", "));
    }
    return tensor;
  }

  absl::StatusOr<std::vector<float>> Vector(const std::string& name, int64_t size) {
    ASSIGN_OR_RETURN(const GgufTensor tensor, Take(name, {size}));
    return Values(tensor);
  }

  // `rows` 0: whatever the file has, up to kMaxOutHidden.
  absl::StatusOr<Linear> ReadLinear(const std::string& name, int64_t rows, int64_t cols) {
    ASSIGN_OR_RETURN(const GgufTensor tensor, TakeAny(name + ".weight"));
    if (rows == 0 && tensor.shape.size() == 2) rows = tensor.shape[1];
    if (tensor.shape != std::vector<int64_t>{cols, rows} || rows < 1 || rows > kMaxOutHidden) {
      return InvalidArgument("tensor {}.weight has the shape {}, not {} rows of {}", name,
                             ShapeText(tensor), rows, cols);
    }
    Linear linear{{tensor.type, tensor.data, rows, cols}, {}};
    if (Has(name + ".bias")) {
      ASSIGN_OR_RETURN(linear.bias, Vector(name + ".bias", rows));
    }
    return linear;
  }

  absl::StatusOr<LayerNormWeights> ReadNorm(const std::string& name, int64_t size) {
    LayerNormWeights norm;
    ASSIGN_OR_RETURN(norm.weight, Vector(name + ".weight", size));
    ASSIGN_OR_RETURN(norm.bias, Vector(name + ".bias", size));
    return norm;
  }
  absl::StatusOr<LayerNormWeights> ReadNormIfAny(const std::string& name, int64_t size) {
    if (!Has(name + ".weight")) return LayerNormWeights{};
    return ReadNorm(name, size);
  }

  absl::Status CheckAllTaken() const {
    for (const GgufTensor& tensor : file_.tensors()) {
      if (taken_.contains(tensor.name)) continue;
      return Unimplemented("tensor {} has no place in this tower", tensor.name);
    }
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<GgufTensor> TakeAny(const std::string& name) {
    absl::StatusOr<GgufTensor> tensor = file_.Tensor(name);
    if (!tensor.ok()) return InvalidArgument("tensor {} is missing", name);
    taken_.insert(name);
    return tensor;
  }

  const model::GgufFile& file_;
  std::set<std::string> taken_;
};

absl::StatusOr<TowerLayer> ReadLayer(TensorReader& reader, const model::GgufFile& file,
                                     const TowerConfig& c, int index) {
  const std::string name = fmt::format("v.blk.{}.", index);
  TowerLayer layer;
  ASSIGN_OR_RETURN(layer.norm1, reader.ReadNorm(name + "ln1", c.hidden));
  ASSIGN_OR_RETURN(layer.norm2, reader.ReadNorm(name + "ln2", c.hidden));
  ASSIGN_OR_RETURN(layer.q, reader.ReadLinear(name + "attn_q", c.hidden, c.hidden));
  ASSIGN_OR_RETURN(layer.k, reader.ReadLinear(name + "attn_k", c.hidden, c.hidden));
  ASSIGN_OR_RETURN(layer.v, reader.ReadLinear(name + "attn_v", c.hidden, c.hidden));
  ASSIGN_OR_RETURN(layer.attn_out, reader.ReadLinear(name + "attn_out", c.hidden, c.hidden));
  // Older converters wrote the two the other way round.
  const absl::StatusOr<GgufTensor> up = file.Tensor(name + "ffn_up.weight");
  const bool swapped =
      up.ok() && up->shape == std::vector<int64_t>{c.ffn, c.hidden} && c.ffn != c.hidden;
  const std::string first = swapped ? "ffn_down" : "ffn_up";
  const std::string second = swapped ? "ffn_up" : "ffn_down";
  ASSIGN_OR_RETURN(layer.up, reader.ReadLinear(name + first, c.ffn, c.hidden));
  ASSIGN_OR_RETURN(layer.down, reader.ReadLinear(name + second, c.hidden, c.ffn));
  return layer;
}

std::string Fingerprint(const model::GgufFile& file, const TowerConfig& c) {
  model::Digest digest;
  digest.Add("trivium tower");
  for (std::span<const uint8_t> bytes : file.parts()) {
    digest.Add({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  }
  digest.Add(fmt::format("{} slicing {} activation {} rotary {} merge {} edge {} pixels {} … {}",
                         c.kind, static_cast<int>(c.slicing), static_cast<int>(c.activation),
                         c.rotary, c.merge, c.longest_edge, c.pixels_min, c.pixels_max));
  return model::Hex(digest.Finish());
}

}  // namespace

absl::Status Tower::LoadWeights() {
  TensorReader reader(*file_);
  const TowerConfig& c = config;
  const std::vector<int64_t> patch_shape{c.patch_size, c.patch_size, 3, c.hidden};
  ASSIGN_OR_RETURN(const GgufTensor first, reader.Take("v.patch_embd.weight", patch_shape));
  patch.weight = {first.type, first.data, c.hidden, c.patch_inputs()};
  if (reader.Has("v.patch_embd.weight.1")) {
    ASSIGN_OR_RETURN(const GgufTensor second, reader.Take("v.patch_embd.weight.1", patch_shape));
    patch_sum_ = Values(first);
    const std::vector<float> more = Values(second);
    for (size_t i = 0; i < more.size(); ++i) patch_sum_[i] += more[i];
    patch.weight = {WeightType::kF32, patch_sum_.data(), c.hidden, c.patch_inputs()};
  }
  if (reader.Has("v.patch_embd.bias")) {
    ASSIGN_OR_RETURN(patch.bias, reader.Vector("v.patch_embd.bias", c.hidden));
  }
  if (c.class_token) {
    ASSIGN_OR_RETURN(class_embedding, reader.Vector("v.class_embd", c.hidden));
  }
  if (!c.rotary) {
    ASSIGN_OR_RETURN(
        const GgufTensor table,
        reader.Take("v.position_embd.weight", {c.hidden, c.RowsOf(c.image_size, c.image_size)}));
    positions = Values(table);
  }
  ASSIGN_OR_RETURN(pre_norm, reader.ReadNormIfAny("v.pre_ln", c.hidden));
  ASSIGN_OR_RETURN(post_norm, reader.ReadNormIfAny("v.post_ln", c.hidden));
  for (int i = 0; i < c.layers; ++i) {
    ASSIGN_OR_RETURN(TowerLayer layer, ReadLayer(reader, *file_, c, i));
    layers.push_back(std::move(layer));
  }
  int64_t inputs = c.projector_inputs();
  for (const std::string& name : c.projector) {
    ASSIGN_OR_RETURN(Linear linear, reader.ReadLinear(name, 0, inputs));
    inputs = linear.weight.rows;
    projector.push_back(std::move(linear));
  }
  config.out_hidden = static_cast<int32_t>(inputs);
  return reader.CheckAllTaken();
}

absl::StatusOr<std::shared_ptr<const Tower>> Tower::Load(const std::string& path) {
  auto tower = std::make_shared<Tower>();
  ASSIGN_OR_RETURN(tower->file_, model::GgufFile::Open(path));
  absl::StatusOr<TowerConfig> config = ReadTowerConfig(*tower->file_);
  absl::Status status = config.status();
  if (status.ok()) {
    tower->config = *std::move(config);
    status = tower->LoadWeights();
  }
  if (!status.ok()) return MakeStatus(status.code(), "{}: {}", path, Message(status));
  tower->fingerprint = Fingerprint(*tower->file_, tower->config);
  return tower;
}

}  // namespace trivium::vision
