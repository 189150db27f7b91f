// Text to the tokens of BERT models: the tokenizer.json of the `tokenizers` library with its
// BertNormalizer (without case and accents), BertPreTokenizer and WordPiece. Anything else in that
// file is refused.
//
// Special tokens that a text spells out ("[SEP]") are text: no text can end or join a sequence.
// Thread-safety: immutable after Load; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/base/status.h"

namespace trivium::embedding {

class WordPiece {
 public:
  static constexpr size_t kFileBytesMax = 64 << 20, kPieceBytesMax = 1024, kVocabularyMax = 1 << 20;

  static absl::StatusOr<WordPiece> Load(const std::string& path);

  struct Tokens {
    std::vector<int32_t> ids;  // from [CLS] to [SEP]
    bool is_cut = false;       // the text has more than fit
  };
  // At most `ids_max` (>= 2) ids. Bytes that are no UTF-8 count as U+FFFD, which is dropped.
  Tokens Encode(std::string_view text, size_t ids_max) const;
  int32_t vocabulary() const { return vocabulary_; }

 private:
  struct TransparentHash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  absl::Status Parse(std::string_view json);
  // False: `ids_max` is reached.
  bool AddWord(std::string_view word, size_t ids_max, std::vector<int32_t>* ids) const;

  std::unordered_map<std::string, int32_t, TransparentHash, std::equal_to<>> pieces_;
  size_t piece_bytes_max_ = 0;  // of one that is in pieces_
  int32_t vocabulary_ = 0;      // every id is below
  int32_t unknown_ = 0, cls_ = 0, sep_ = 0;
};

}  // namespace trivium::embedding
