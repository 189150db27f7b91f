// Fuzzes the loading of a model from a GGUF file: what is accepted must lie inside the file, whole
// and readable, down to every row of every matrix and every token's text.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "common/model/gguf.h"
#include "common/model/model.h"
#include "tests/fuzz/memory_file.h"

namespace {

using namespace trivium;  // NOLINT

// Named as a part of a split model, so that what an input says of its parts counts too.
constexpr char kPath[] = "fuzz-00001-of-00002.gguf";

void CheckTensor(const model::GgufTensor& tensor, std::span<const uint8_t> file) {
  const auto* begin = static_cast<const uint8_t*>(tensor.data);
  TRIVIUM_CHECK(!std::less<>()(begin, file.data()) && tensor.bytes >= 0 &&
                    tensor.bytes <= file.data() + file.size() - begin,
                "tensor {} leaves the file", tensor.name);
  const int64_t cols = tensor.shape[0];
  const int64_t row_bytes = kernels::RowBytes(tensor.type, cols);
  TRIVIUM_CHECK(row_bytes > 0 && tensor.bytes % row_bytes == 0, "tensor {}: {} bytes", tensor.name,
                tensor.bytes);
  std::vector<float> row(static_cast<size_t>(cols));
  for (int64_t at = 0; at < tensor.bytes; at += row_bytes) {
    kernels::DequantizeRow(tensor.type, begin + at, cols, row.data());
  }
}

void CheckTokenizer(const model::Tokenizer& tokenizer) {
  for (int32_t id = -1; id <= tokenizer.vocab_size(); ++id) {
    const std::string_view piece = tokenizer.Piece(id, true);
    for (int32_t part : tokenizer.Encode(piece, {.parse_special = true})) {
      TRIVIUM_CHECK(part >= 0 && part < tokenizer.vocab_size(), "id {}", part);
    }
  }
}

void CheckModel(const model::Model& m) {
  TRIVIUM_CHECK(m.tokenizer->vocab_size() == m.embedding.rows, "{} tokens for {} rows",
                m.tokenizer->vocab_size(), m.embedding.rows);
  TRIVIUM_CHECK(m.layers.size() == static_cast<size_t>(m.config.layers), "layers");
  CheckTokenizer(*m.tokenizer);
  (void)m.chat_template.Render(std::vector<model::ChatMessage>{{"user", "Hi"}});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::SetFileBytes({data, size});
  const auto file = model::GgufFile::Open(kPath);
  if (!file.ok()) return 0;
  for (const model::GgufTensor& tensor : (*file)->tensors()) {
    CheckTensor(tensor, (*file)->parts()[0]);
  }
  const auto loaded = model::Model::Load(kPath);
  if (loaded.ok()) {
    CheckModel(**loaded);
  } else if (const auto tokenizer = model::Tokenizer::Load(**file); tokenizer.ok()) {
    CheckTokenizer(**tokenizer);
  }
  return 0;
}
