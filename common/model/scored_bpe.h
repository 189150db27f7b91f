// BPE by score (tokenizer.ggml.model "llama", as SentencePiece trains it): characters are merged
// into the token of highest score first, the leftmost among equals, over a whole text without
// cutting it into words. Spaces are written U+2581, so that this character in a text comes back as
// a space; what has no token is encoded as its bytes, <0x00> … <0xFF>.
//
// Unused tokens are never made. Immutable; safe from any thread.
#pragma once

#include <memory>

#include "common/model/bpe_merger.h"
#include "common/model/segment_encoder.h"
#include "common/model/vocabulary.h"

namespace trivium::model {

class ScoredBpe final : public SegmentEncoder {
 public:
  // Loads the vocabulary too. What shapes the ids beside it goes into `digest`. UNIMPLEMENTED for
  // ways of normalising a text that we do not have, naming the key.
  static absl::StatusOr<std::unique_ptr<SegmentEncoder>> Load(const GgufFile& file,
                                                              Vocabulary& vocabulary,
                                                              Digest& digest);

  void Encode(std::string_view text, bool opens, std::vector<int32_t>& out) const override;
  bool adds_space() const override { return adds_space_; }

 private:
  explicit ScoredBpe(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {}

  absl::Status LoadBytes();
  absl::Status LoadMerges(const GgufFile& file, const IdsByText& ids, Digest& digest);
  absl::Status AddRules(std::string_view text, MergeRules::Result result, const IdsByText& ids);
  int32_t SymbolOf(std::string_view text, const IdsByText& ids) const;
  int32_t CharSymbol(uint32_t code_point) const;
  void AppendSymbols(std::string_view text, std::vector<int32_t>& symbols) const;
  void AppendUnknown(int32_t symbol, std::vector<int32_t>& out) const;

  const Vocabulary& vocabulary_;
  MergeRules rules_;  // of symbols: token ids, and behind them characters that are no token
  std::unordered_map<uint32_t, int32_t> char_ids_;  // tokens of one character
  int32_t byte_ids_[256] = {};
  bool has_bytes_ = false;
  bool adds_space_ = true;
};

}  // namespace trivium::model
