#include "common/embedding/text_encoder.h"

#include <algorithm>
#include <cmath>

#include "common/base/buffer.h"
#include "common/model/digest.h"

namespace trivium::embedding {
namespace {

using kernels::RowSpan;
using kernels::WeightView;

std::vector<float> Values(const SafeTensor& tensor) {
  int64_t count = 1;
  for (const int64_t size : tensor.shape) count *= size;
  std::vector<float> values(static_cast<size_t>(count));
  kernels::DequantizeRow(tensor.type, tensor.data, count, values.data());
  return values;
}

std::vector<uint16_t> Rounded(const std::vector<float>& values) {
  std::vector<uint16_t> rounded(values.size());
  std::ranges::transform(values, rounded.begin(), kernels::FloatToBFloat);
  return rounded;
}

std::string_view AsText(std::span<const uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

TextEncoder::TextEncoder(BertConfig config, SafeTensorsFile file, WordPiece words,
                         const kernels::OpsOptions& options)
    : config_(config),
      file_(std::move(file)),
      words_(std::move(words)),
      ops_(kernels::MakeOps(options)),
      uses_tiles_(options.isa == kernels::Isa::kAmx &&
                  options.numerics == kernels::Numerics::kFast) {}

absl::StatusOr<TextEncoder::Linear> TextEncoder::ReadLinear(const std::string& name,
                                                            int64_t outputs, int64_t inputs) {
  ASSIGN_OR_RETURN(const SafeTensor weight, file_.Tensor(name + ".weight", {outputs, inputs}));
  ASSIGN_OR_RETURN(const SafeTensor bias, file_.Tensor(name + ".bias", {outputs}));
  if (!uses_tiles_) {
    return Linear{ops_->Pack({weight.type, weight.data, outputs, inputs}), Values(bias)};
  }
  const std::vector<uint16_t> rounded = Rounded(Values(weight));
  const auto* bytes = reinterpret_cast<const uint8_t*>(rounded.data());
  return Linear{ops_->Pack({kernels::WeightType::kBF16, bytes, outputs, inputs}), Values(bias)};
}

absl::StatusOr<TextEncoder::Norm> TextEncoder::ReadNorm(const std::string& name) const {
  ASSIGN_OR_RETURN(const SafeTensor weight, file_.Tensor(name + ".weight", {config_.hidden}));
  ASSIGN_OR_RETURN(const SafeTensor bias, file_.Tensor(name + ".bias", {config_.hidden}));
  return Norm{Values(weight), Values(bias)};
}

absl::StatusOr<TextEncoder::Layer> TextEncoder::ReadLayer(const std::string& name) {
  const int64_t hidden = config_.hidden, ffn = config_.ffn;
  Layer layer;
  ASSIGN_OR_RETURN(layer.q, ReadLinear(name + "attention.self.query", hidden, hidden));
  ASSIGN_OR_RETURN(layer.k, ReadLinear(name + "attention.self.key", hidden, hidden));
  ASSIGN_OR_RETURN(layer.v, ReadLinear(name + "attention.self.value", hidden, hidden));
  ASSIGN_OR_RETURN(layer.attn_out, ReadLinear(name + "attention.output.dense", hidden, hidden));
  ASSIGN_OR_RETURN(layer.attn_norm, ReadNorm(name + "attention.output.LayerNorm"));
  ASSIGN_OR_RETURN(layer.up, ReadLinear(name + "intermediate.dense", ffn, hidden));
  ASSIGN_OR_RETURN(layer.down, ReadLinear(name + "output.dense", hidden, ffn));
  ASSIGN_OR_RETURN(layer.ffn_norm, ReadNorm(name + "output.LayerNorm"));
  return layer;
}

absl::Status TextEncoder::LoadWeights() {
  const int64_t hidden = config_.hidden;
  ASSIGN_OR_RETURN(const SafeTensor words,
                   file_.Tensor("embeddings.word_embeddings.weight", {config_.vocabulary, hidden}));
  word_table_ = {words.type, words.data, config_.vocabulary, hidden};
  ASSIGN_OR_RETURN(const SafeTensor positions, file_.Tensor("embeddings.position_embeddings.weight",
                                                            {config_.positions, hidden}));
  const SafeTensor* types = file_.Find("embeddings.token_type_embeddings.weight");
  if (types == nullptr || types->shape.size() != 2 || types->shape[1] != hidden) {
    return InvalidArgument("embeddings.token_type_embeddings.weight: missing, or of a wrong shape");
  }
  positions_ = Values(positions);
  const std::vector<float> type = Values(*types);
  for (size_t i = 0; i < positions_.size(); ++i) {
    positions_[i] += type[i % static_cast<size_t>(hidden)];
  }
  ASSIGN_OR_RETURN(embedding_norm_, ReadNorm("embeddings.LayerNorm"));
  for (int32_t i = 0; i < config_.layers; ++i) {
    ASSIGN_OR_RETURN(Layer layer, ReadLayer(fmt::format("encoder.layer.{}.", i)));
    layers_.push_back(std::move(layer));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<TextEncoder>> TextEncoder::Load(const std::string& folder,
                                                               const kernels::OpsOptions& options) {
  const std::string path = folder + "/model.safetensors", words_path = folder + "/tokenizer.json";
  ASSIGN_OR_RETURN(const BertConfig config, ReadBertConfig(folder + "/config.json"));
  ASSIGN_OR_RETURN(WordPiece words, WordPiece::Load(words_path));
  ASSIGN_OR_RETURN(SafeTensorsFile file, SafeTensorsFile::Open(path));
  if (words.vocabulary() > config.vocabulary) {
    return InvalidArgument("{}: has {} tokens, the model {}", words_path, words.vocabulary(),
                           config.vocabulary);
  }
  std::unique_ptr<TextEncoder> encoder(
      new TextEncoder(config, std::move(file), std::move(words), options));
  if (encoder->ops_ == nullptr) {
    return FailedPrecondition("this machine cannot run the instruction set");
  }
  const absl::Status status = encoder->LoadWeights();
  if (!status.ok()) return MakeStatus(status.code(), "{}: {}", path, Message(status));
  ASSIGN_OR_RETURN(const model::MappedFile tokenizer, model::MappedFile::Open(words_path));
  model::Digest digest;
  digest.Add("trivium text encoder");
  digest.Add(AsText(encoder->file_.bytes()));
  digest.Add(AsText(tokenizer.bytes()));
  encoder->fingerprint_ = model::Hex(digest.Finish());
  return encoder;
}

void TextEncoder::EmbedTokens(std::span<const int32_t> ids, std::span<const RowSpan> spans) {
  const int64_t hidden = config_.hidden;
  ops_->EmbedRows(word_table_, ids, x_.data());
  for (const RowSpan& span : spans) {
    ops_->Add(x_.data() + span.row_begin * hidden, positions_.data(), span.row_count * hidden);
  }
  ops_->encoder().LayerNorm(x_.data(), embedding_norm_.weight.data(), embedding_norm_.bias.data(),
                            config_.eps, rows_, config_.hidden, x_.data());
}

void TextEncoder::Apply(const Linear& linear, const float* x, float* y) {
  ops_->Matmul(*linear.matrix, x, rows_, y);
  ops_->encoder().AddBias(y, linear.bias.data(), rows_, static_cast<int>(linear.bias.size()));
}

void TextEncoder::AddAndNorm(const float* y, const Norm& norm) {
  ops_->Add(x_.data(), y, int64_t{rows_} * config_.hidden);
  ops_->encoder().LayerNorm(x_.data(), norm.weight.data(), norm.bias.data(), config_.eps, rows_,
                            config_.hidden, x_.data());
}

void TextEncoder::RunLayer(const Layer& layer, std::span<const RowSpan> spans) {
  Apply(layer.q, x_.data(), q_.data());
  Apply(layer.k, x_.data(), k_.data());
  Apply(layer.v, x_.data(), v_.data());
  const int head_dim = config_.hidden / config_.heads;
  kernels::FullAttentionArgs args{q_.data(), k_.data(), v_.data(), spans, config_.heads, head_dim};
  args.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  args.out = y_.data();
  ops_->encoder().FullAttention(args);
  Apply(layer.attn_out, y_.data(), q_.data());
  AddAndNorm(q_.data(), layer.attn_norm);
  Apply(layer.up, x_.data(), wide_.data());
  ops_->encoder().Activate(kernels::Activation::kGelu, wide_.data(), int64_t{rows_} * config_.ffn);
  Apply(layer.down, wide_.data(), y_.data());
  AddAndNorm(y_.data(), layer.ffn_norm);
}

std::vector<float> TextEncoder::Pooled(const RowSpan& span) const {
  const auto hidden = static_cast<size_t>(config_.hidden);
  std::vector<float> mean(hidden, 0.0f);
  for (int r = span.row_begin; r < span.row_begin + span.row_count; ++r) {
    for (size_t i = 0; i < hidden; ++i) mean[i] += x_[static_cast<size_t>(r) * hidden + i];
  }
  double squares = 0;
  for (const float value : mean) squares += double{value} * value;
  const auto scale = static_cast<float>(1.0 / std::sqrt(std::max(squares, 1e-24)));
  for (float& value : mean) value *= scale;
  return mean;
}

std::vector<Embedding> TextEncoder::Encode(std::span<const std::string> texts) {
  std::vector<int32_t> ids;
  std::vector<RowSpan> spans;
  std::vector<Embedding> embeddings;
  const size_t ids_max = std::min<size_t>(kTokensMax, static_cast<size_t>(config_.positions));
  for (const std::string& text : texts) {
    const WordPiece::Tokens tokens = words_.Encode(text, ids_max);
    const auto count = static_cast<int32_t>(tokens.ids.size());
    spans.push_back({static_cast<int>(ids.size()), count});
    ids.insert(ids.end(), tokens.ids.begin(), tokens.ids.end());
    embeddings.push_back({{}, count, tokens.is_cut});
  }
  if (texts.empty()) return embeddings;
  rows_ = static_cast<int>(ids.size());
  for (std::vector<float>* buffer : {&x_, &q_, &k_, &v_, &y_}) {
    GrowTo(*buffer, int64_t{rows_} * config_.hidden);
  }
  GrowTo(wide_, int64_t{rows_} * config_.ffn);
  EmbedTokens(ids, spans);
  for (const Layer& layer : layers_) RunLayer(layer, spans);
  for (size_t i = 0; i < texts.size(); ++i) embeddings[i].vector = Pooled(spans[i]);
  return embeddings;
}

}  // namespace trivium::embedding
