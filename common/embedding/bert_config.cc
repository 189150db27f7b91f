#include <simdjson.h>

#include "common/embedding/text_encoder.h"
#include "common/model/mapped_file.h"

namespace trivium::embedding {
namespace {

using simdjson::dom::element;

absl::StatusOr<int32_t> Size(element root, const char* field) {
  int64_t value = 0;
  if (root[field].get(value) == simdjson::SUCCESS && value >= 1 && value <= BertConfig::kSizeMax) {
    return static_cast<int32_t>(value);
  }
  return InvalidArgument("{}: must be a number from 1 to {}", field, BertConfig::kSizeMax);
}

// What is not said is as it should be.
absl::Status CheckText(element root, const char* field, std::string_view wanted) {
  std::string_view value;
  if (root[field].get(value) != simdjson::SUCCESS || value == wanted) return absl::OkStatus();
  return Unimplemented("{} is not \"{}\"", field, wanted);
}

absl::StatusOr<BertConfig> Parse(std::string_view json) {
  simdjson::dom::parser parser;
  element root;
  if (parser.parse(json.data(), json.size()).get(root) != simdjson::SUCCESS || !root.is_object()) {
    return InvalidArgument("is no JSON object");
  }
  RETURN_IF_ERROR(CheckText(root, "model_type", "bert"));
  RETURN_IF_ERROR(CheckText(root, "hidden_act", "gelu"));
  RETURN_IF_ERROR(CheckText(root, "position_embedding_type", "absolute"));
  BertConfig config;
  for (const auto& [field, size] : {std::pair{"hidden_size", &config.hidden},
                                    {"num_hidden_layers", &config.layers},
                                    {"num_attention_heads", &config.heads},
                                    {"intermediate_size", &config.ffn},
                                    {"max_position_embeddings", &config.positions},
                                    {"vocab_size", &config.vocabulary}}) {
    ASSIGN_OR_RETURN(*size, Size(root, field));
  }
  double eps = 0;
  if (root["layer_norm_eps"].get(eps) != simdjson::SUCCESS || !(eps > 0 && eps < 1)) {
    return InvalidArgument("layer_norm_eps: must be a number between 0 and 1");
  }
  config.eps = static_cast<float>(eps);
  if (config.hidden % config.heads != 0 || config.positions < 2) {
    return InvalidArgument("num_attention_heads must divide hidden_size");
  }
  return config;
}

}  // namespace

absl::StatusOr<BertConfig> ReadBertConfig(const std::string& path) {
  constexpr size_t kFileBytesMax = 1 << 20;
  ASSIGN_OR_RETURN(const model::MappedFile file, model::MappedFile::Open(path));
  if (file.bytes().size() > kFileBytesMax) {
    return InvalidArgument("{}: larger than {} bytes", path, kFileBytesMax);
  }
  absl::StatusOr<BertConfig> config =
      Parse({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()});
  if (config.ok()) return config;
  return MakeStatus(config.status().code(), "{}: {}", path, Message(config.status()));
}

}  // namespace trivium::embedding
