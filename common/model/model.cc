#include "common/model/model.h"

#include <cmath>
#include <set>
#include <string_view>

#include "common/model/architecture.h"
#include "common/model/digest.h"

namespace trivium::model {
namespace {

using kernels::WeightType;
using kernels::WeightView;

// Tensors that were asked for, so that one nobody asked for can be refused: it would change the
// result.
class TensorReader {
 public:
  explicit TensorReader(const GgufFile& file)
      : file_(file), taken_(std::begin(kRopeTensors), std::end(kRopeTensors)) {}

  bool Has(const std::string& name) const { return file_.Tensor(name).ok(); }

  absl::StatusOr<WeightView> Matrix(const std::string& name, int64_t rows, int64_t cols) {
    ASSIGN_OR_RETURN(GgufTensor tensor, Take(name));
    if (tensor.shape != std::vector<int64_t>{cols, rows}) {
      return InvalidArgument("tensor {} has the shape {}, not {} rows of {}", name,
                             ShapeText(tensor), rows, cols);
    }
    return WeightView{tensor.type, tensor.data, rows, cols};
  }

  absl::StatusOr<const float*> Norm(const std::string& name, int64_t size) {
    ASSIGN_OR_RETURN(GgufTensor tensor, Take(name));
    if (tensor.shape != std::vector<int64_t>{size}) {
      return InvalidArgument("tensor {} has the shape {}, not {}", name, ShapeText(tensor), size);
    }
    if (tensor.type != WeightType::kF32) {
      return Unimplemented("tensor {} is {}; norms must be F32", name,
                           kernels::WeightTypeName(tensor.type));
    }
    return static_cast<const float*>(tensor.data);
  }

  absl::Status CheckAllTaken() const {
    for (const GgufTensor& tensor : file_.tensors()) {
      if (taken_.contains(tensor.name)) continue;
      return Unimplemented("tensor {} has no place in this architecture", tensor.name);
    }
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<GgufTensor> Take(const std::string& name) {
    absl::StatusOr<GgufTensor> tensor = file_.Tensor(name);
    if (!tensor.ok()) return InvalidArgument("tensor {} is missing", name);
    taken_.insert(name);
    return tensor;
  }

  static std::string ShapeText(const GgufTensor& tensor) {
    return fmt::format("[{}]", fmt::join(tensor.shape, ", "));
  }

  const GgufFile& file_;
  std::set<std::string> taken_;
};

absl::StatusOr<LayerWeights> LoadLayer(TensorReader& reader, const ModelConfig& c, int index) {
  const std::string layer = fmt::format("blk.{}.", index);
  const int64_t q_rows = int64_t{c.heads} * c.head_dim;
  const int64_t kv_rows = int64_t{c.kv_heads} * c.head_dim;
  LayerWeights w;
  ASSIGN_OR_RETURN(w.attn_norm, reader.Norm(layer + "attn_norm.weight", c.hidden));
  ASSIGN_OR_RETURN(w.ffn_norm, reader.Norm(layer + "ffn_norm.weight", c.hidden));
  ASSIGN_OR_RETURN(w.q, reader.Matrix(layer + "attn_q.weight", q_rows, c.hidden));
  ASSIGN_OR_RETURN(w.k, reader.Matrix(layer + "attn_k.weight", kv_rows, c.hidden));
  ASSIGN_OR_RETURN(w.v, reader.Matrix(layer + "attn_v.weight", kv_rows, c.hidden));
  ASSIGN_OR_RETURN(w.attn_out, reader.Matrix(layer + "attn_output.weight", c.hidden, q_rows));
  ASSIGN_OR_RETURN(w.gate, reader.Matrix(layer + "ffn_gate.weight", c.ffn, c.hidden));
  ASSIGN_OR_RETURN(w.up, reader.Matrix(layer + "ffn_up.weight", c.ffn, c.hidden));
  ASSIGN_OR_RETURN(w.down, reader.Matrix(layer + "ffn_down.weight", c.hidden, c.ffn));
  return w;
}

std::string Fingerprint(const GgufFile& file, const Tokenizer& tokenizer, const ModelConfig& c) {
  Digest digest;
  for (std::span<const uint8_t> bytes : file.parts()) {
    digest.Add({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  }
  digest.Add(tokenizer.digest());
  digest.Add(fmt::format("{} layers {} heads {}/{} of {} eps {} rope of pairs scale {}",
                         c.architecture, c.layers, c.heads, c.kv_heads, c.head_dim, c.rms_eps,
                         c.rope.scale));
  digest.Add({reinterpret_cast<const char*>(c.rope.frequencies.data()),
              c.rope.frequencies.size() * sizeof(c.rope.frequencies.front())});
  digest.Add("keys rotated");
  return Hex(digest.Finish());
}

}  // namespace

absl::Status Model::LoadWeights() {
  TensorReader reader(*file_);
  ASSIGN_OR_RETURN(embedding, reader.Matrix("token_embd.weight", config.vocab, config.hidden));
  output = embedding;
  if (reader.Has("output.weight")) {
    ASSIGN_OR_RETURN(output, reader.Matrix("output.weight", config.vocab, config.hidden));
  }
  ASSIGN_OR_RETURN(output_norm, reader.Norm("output_norm.weight", config.hidden));
  for (int i = 0; i < config.layers; ++i) {
    ASSIGN_OR_RETURN(LayerWeights layer, LoadLayer(reader, config, i));
    layers.push_back(layer);
  }
  return reader.CheckAllTaken();
}

absl::StatusOr<std::shared_ptr<const Model>> Model::Load(const std::string& path) {
  auto model = std::make_shared<Model>();
  ASSIGN_OR_RETURN(model->file_, GgufFile::Open(path));
  const GgufFile& file = *model->file_;
  model->path = path;
  absl::StatusOr<ModelConfig> config = ReadConfig(file);
  if (!config.ok()) {
    return MakeStatus(config.status().code(), "{}: {}", path, Message(config.status()));
  }
  model->config = *std::move(config);
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(file);
  absl::Status status = tokenizer.ok() ? absl::OkStatus() : tokenizer.status();
  if (status.ok() && (*tokenizer)->vocab_size() != model->config.vocab) {
    status = InvalidArgument("{} tokens for a vocabulary of {}", (*tokenizer)->vocab_size(),
                             model->config.vocab);
  }
  if (status.ok()) status = model->LoadWeights();
  if (!status.ok()) return MakeStatus(status.code(), "{}: {}", path, Message(status));
  model->tokenizer = *std::move(tokenizer);
  model->chat_template = ChatTemplate::FromFile(file);
  model->fingerprint = Fingerprint(file, *model->tokenizer, model->config);
  return model;
}

}  // namespace trivium::model
