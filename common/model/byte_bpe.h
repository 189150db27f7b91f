// Byte-level BPE (tokenizer.ggml.model "gpt2"): text is cut into words, and within each word bytes
// are merged in the order of the file's list of merges. Immutable; safe from any thread.
#pragma once

#include <memory>

#include "common/model/bpe_merger.h"
#include "common/model/pretokenizer.h"
#include "common/model/segment_encoder.h"
#include "common/model/vocabulary.h"

namespace trivium::model {

class ByteBpe final : public SegmentEncoder {
 public:
  // Loads the vocabulary too. What shapes the ids beside it goes into `digest`. UNIMPLEMENTED for a
  // pre-tokenizer that is not known, naming it.
  static absl::StatusOr<std::unique_ptr<SegmentEncoder>> Load(const GgufFile& file,
                                                              Vocabulary& vocabulary,
                                                              Digest& digest);

  void Encode(std::string_view text, bool opens, std::vector<int32_t>& out) const override;
  bool adds_space() const override { return false; }

 private:
  void LoadByteIds(const IdsByText& ids);
  absl::Status LoadMerges(const GgufFile& file, const IdsByText& ids, Digest& digest);
  void LoadWholeWords(const Vocabulary& vocabulary, const IdsByText& ids);

  WordRule rule_ = WordRule::kGpt2;
  int32_t byte_ids_[256] = {};  // -1: no token
  MergeRules merges_;
  // Words that are taken as they are, without merging, by their bytes; views into the vocabulary.
  std::unordered_map<std::string_view, int32_t> whole_words_;
};

}  // namespace trivium::model
