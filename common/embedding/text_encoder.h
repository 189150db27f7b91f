// Sentences as unit vectors: a BERT encoder, the mean of its last rows, length 1, as
// sentence-transformers computes them with all-MiniLM-L6-v2.
//
// A folder holds model.safetensors, config.json and tokenizer.json. Thread-safety: none; the
// thread that loads an encoder is the one that uses it, as of kernels/ops.h.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/embedding/safetensors.h"
#include "common/embedding/wordpiece.h"
#include "kernels/ops.h"

namespace trivium::embedding {

struct BertConfig {
  static constexpr int32_t kSizeMax = 1 << 20;

  int32_t hidden = 0, layers = 0, heads = 0, ffn = 0, positions = 0, vocabulary = 0;
  float eps = 0;
};
// UNIMPLEMENTED for what this encoder would compute otherwise.
absl::StatusOr<BertConfig> ReadBertConfig(const std::string& path);

struct Embedding {
  std::vector<float> vector;  // of length 1
  int32_t tokens = 0;         // with [CLS] and [SEP]
  bool is_cut = false;        // the text has more tokens than were read
};

class TextEncoder {
 public:
  static constexpr size_t kTokensMax =
      256;  // of one text, as sentence-transformers reads this model

  // Checks every tensor's presence, type and shape before anything uses it.
  static absl::StatusOr<std::unique_ptr<TextEncoder>> Load(const std::string& folder,
                                                           const kernels::OpsOptions& options);

  // All texts as one batch without padding: memory grows with their sum.
  std::vector<Embedding> Encode(std::span<const std::string> texts);

  int32_t dim() const { return config_.hidden; }
  // Hex of 32 bytes over the files' contents: vectors of different fingerprints are not comparable.
  const std::string& fingerprint() const { return fingerprint_; }

 private:
  struct Norm {
    std::vector<float> weight, bias;
  };
  struct Linear {
    std::unique_ptr<kernels::Matrix> matrix;
    std::vector<float> bias;
  };
  struct Layer {
    Linear q, k, v, attn_out, up, down;
    Norm attn_norm, ffn_norm;
  };
  TextEncoder(BertConfig config, SafeTensorsFile file, WordPiece words,
              const kernels::OpsOptions& options);

  absl::Status LoadWeights();
  absl::StatusOr<Linear> ReadLinear(const std::string& name, int64_t outputs, int64_t inputs);
  absl::StatusOr<Norm> ReadNorm(const std::string& name) const;
  absl::StatusOr<Layer> ReadLayer(const std::string& name);

  void EmbedTokens(std::span<const int32_t> ids, std::span<const kernels::RowSpan> spans);
  void RunLayer(const Layer& layer, std::span<const kernels::RowSpan> spans);
  void Apply(const Linear& linear, const float* x, float* y);
  void AddAndNorm(const float* y, const Norm& norm);
  std::vector<float> Pooled(const kernels::RowSpan& span) const;

  const BertConfig config_;
  const SafeTensorsFile file_;
  const WordPiece words_;
  const std::unique_ptr<kernels::Ops> ops_;
  const bool uses_tiles_;  // which multiply bfloat16: weights are rounded to it
  std::string fingerprint_;
  kernels::WeightView word_table_;
  std::vector<float> positions_;  // [positions, hidden], with the embedding of the first type added
  Norm embedding_norm_;
  std::vector<Layer> layers_;

  int rows_ = 0;  // of the batch that the following are for
  std::vector<float> x_, q_, k_, v_, y_, wide_;
};

}  // namespace trivium::embedding
