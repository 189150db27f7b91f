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

  absl::StatusOr<const float*> Vector(const std::string& name, int64_t size) {
    ASSIGN_OR_RETURN(GgufTensor tensor, Take(name));
    if (tensor.shape != std::vector<int64_t>{size}) {
      return InvalidArgument("tensor {} has the shape {}, not {}", name, ShapeText(tensor), size);
    }
    if (tensor.type != WeightType::kF32) {
      return Unimplemented("tensor {} is {}; norms and biases must be F32", name,
                           kernels::WeightTypeName(tensor.type));
    }
    return static_cast<const float*>(tensor.data);
  }

  // A vector as the matrix of one row.
  absl::StatusOr<WeightView> Row(const std::string& name, int64_t size) {
    ASSIGN_OR_RETURN(const float* data, Vector(name, size));
    return WeightView{WeightType::kF32, data, 1, size};
  }

  // `count` matrices behind one another.
  absl::StatusOr<std::vector<WeightView>> Matrices(const std::string& name, int64_t count,
                                                   int64_t rows, int64_t cols) {
    ASSIGN_OR_RETURN(GgufTensor tensor, Take(name));
    if (tensor.shape != std::vector<int64_t>{cols, rows, count}) {
      return InvalidArgument("tensor {} has the shape {}, not {} times {} rows of {}", name,
                             ShapeText(tensor), count, rows, cols);
    }
    std::vector<WeightView> views;
    const auto* data = static_cast<const uint8_t*>(tensor.data);
    const int64_t bytes = rows * kernels::RowBytes(tensor.type, cols);
    for (int64_t i = 0; i < count; ++i) {
      views.push_back({tensor.type, data + i * bytes, rows, cols});
    }
    return views;
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

// One layer of a file, under the names that llama.cpp's converters write.
class LayerLoader {
 public:
  LayerLoader(TensorReader& reader, const ModelConfig& config, const ArchitectureTensors& has,
              int index)
      : reader_(reader), c_(config), has_(has), prefix_(fmt::format("blk.{}.", index)) {}

  absl::StatusOr<LayerWeights> Load() {
    RETURN_IF_ERROR(LoadAttention());
    RETURN_IF_ERROR(LoadNorms());
    RETURN_IF_ERROR(c_.experts.count > 0 ? LoadExperts() : LoadFfn("", c_.ffn, w_.ffn));
    return std::move(w_);
  }

 private:
  absl::Status LoadAttention();
  absl::Status LoadNorms();
  absl::Status LoadFfn(std::string_view suffix, int64_t inner, FfnWeights& ffn);
  absl::Status LoadExperts();

  std::string Name(std::string_view part) const { return fmt::format("{}{}", prefix_, part); }

  TensorReader& reader_;
  const ModelConfig& c_;
  const ArchitectureTensors& has_;
  const std::string prefix_;
  LayerWeights w_;
};

absl::Status LayerLoader::LoadAttention() {
  const int64_t q_rows = int64_t{c_.heads} * c_.head_dim;
  const int64_t kv_rows = int64_t{c_.kv_heads} * c_.head_dim;
  ASSIGN_OR_RETURN(w_.q, reader_.Matrix(Name("attn_q.weight"), q_rows, c_.hidden));
  ASSIGN_OR_RETURN(w_.k, reader_.Matrix(Name("attn_k.weight"), kv_rows, c_.hidden));
  ASSIGN_OR_RETURN(w_.v, reader_.Matrix(Name("attn_v.weight"), kv_rows, c_.hidden));
  ASSIGN_OR_RETURN(w_.attn_out, reader_.Matrix(Name("attn_output.weight"), c_.hidden, q_rows));
  if (!has_.qkv_bias) return absl::OkStatus();
  ASSIGN_OR_RETURN(w_.q_bias, reader_.Vector(Name("attn_q.bias"), q_rows));
  ASSIGN_OR_RETURN(w_.k_bias, reader_.Vector(Name("attn_k.bias"), kv_rows));
  ASSIGN_OR_RETURN(w_.v_bias, reader_.Vector(Name("attn_v.bias"), kv_rows));
  return absl::OkStatus();
}

absl::Status LayerLoader::LoadNorms() {
  ASSIGN_OR_RETURN(w_.attn_norm, reader_.Vector(Name("attn_norm.weight"), c_.hidden));
  ASSIGN_OR_RETURN(w_.ffn_norm, reader_.Vector(Name("ffn_norm.weight"), c_.hidden));
  if (has_.qk_norm) {
    ASSIGN_OR_RETURN(w_.q_norm, reader_.Vector(Name("attn_q_norm.weight"), c_.head_dim));
    ASSIGN_OR_RETURN(w_.k_norm, reader_.Vector(Name("attn_k_norm.weight"), c_.head_dim));
  }
  if (has_.post_norms) {
    ASSIGN_OR_RETURN(w_.attn_post_norm,
                     reader_.Vector(Name("post_attention_norm.weight"), c_.hidden));
    ASSIGN_OR_RETURN(w_.ffn_post_norm, reader_.Vector(Name("post_ffw_norm.weight"), c_.hidden));
  }
  return absl::OkStatus();
}

absl::Status LayerLoader::LoadFfn(std::string_view suffix, int64_t inner, FfnWeights& ffn) {
  const auto name = [&](const char* part) {
    return fmt::format("{}ffn_{}{}.weight", prefix_, part, suffix);
  };
  ASSIGN_OR_RETURN(ffn.gate, reader_.Matrix(name("gate"), inner, c_.hidden));
  ASSIGN_OR_RETURN(ffn.up, reader_.Matrix(name("up"), inner, c_.hidden));
  ASSIGN_OR_RETURN(ffn.down, reader_.Matrix(name("down"), c_.hidden, inner));
  return absl::OkStatus();
}

absl::Status LayerLoader::LoadExperts() {
  const auto& [count, used, inner, shared_inner, normalised] = c_.experts;
  ASSIGN_OR_RETURN(w_.router, reader_.Matrix(Name("ffn_gate_inp.weight"), count, c_.hidden));
  ASSIGN_OR_RETURN(auto gates,
                   reader_.Matrices(Name("ffn_gate_exps.weight"), count, inner, c_.hidden));
  ASSIGN_OR_RETURN(auto ups, reader_.Matrices(Name("ffn_up_exps.weight"), count, inner, c_.hidden));
  ASSIGN_OR_RETURN(auto downs,
                   reader_.Matrices(Name("ffn_down_exps.weight"), count, c_.hidden, inner));
  for (size_t i = 0; i < gates.size(); ++i) w_.experts.push_back({gates[i], ups[i], downs[i]});
  if (shared_inner == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(w_.shared_router, reader_.Row(Name("ffn_gate_inp_shexp.weight"), c_.hidden));
  return LoadFfn("_shexp", shared_inner, w_.shared);
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
  ASSIGN_OR_RETURN(output_norm, reader.Vector("output_norm.weight", config.hidden));
  const ArchitectureTensors has = TensorsOf(config.architecture);
  for (int i = 0; i < config.layers; ++i) {
    ASSIGN_OR_RETURN(LayerWeights layer, LayerLoader(reader, config, has, i).Load());
    layers.push_back(std::move(layer));
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
