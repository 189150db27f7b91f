#include "common/model/tokenizer.h"

#include "common/model/byte_bpe.h"
#include "common/model/digest.h"
#include "common/model/scored_bpe.h"
#include "common/model/vocabulary.h"

namespace trivium::model {
namespace {

class VocabularyTokenizer final : public Tokenizer {
 public:
  absl::Status Load(const GgufFile& file);

  std::vector<int32_t> Encode(std::string_view text, Options options) const override;
  std::string_view Piece(int32_t id, bool special) const override {
    return vocabulary_.Piece(id, special);
  }
  bool AddsSpaceAfter(int32_t previous_id) const override;
  int32_t vocab_size() const override { return vocabulary_.size(); }
  int32_t bos_id() const override { return vocabulary_.bos_id(); }
  int32_t eos_id() const override { return vocabulary_.eos_id(); }
  std::span<const int32_t> end_of_generation_ids() const override { return vocabulary_.end_ids(); }
  bool adds_bos() const override { return vocabulary_.adds_bos(); }
  bool adds_eos() const override { return vocabulary_.adds_eos(); }
  std::string_view digest() const override { return digest_; }

 private:
  void EncodeText(std::string_view text, const SpecialTokens& special,
                  std::vector<int32_t>& out) const;

  Vocabulary vocabulary_;
  std::unique_ptr<SegmentEncoder> encoder_;  // points into vocabulary_
  std::string digest_;
};

absl::Status VocabularyTokenizer::Load(const GgufFile& file) {
  ASSIGN_OR_RETURN(std::string_view kind, file.String("tokenizer.ggml.model"));
  Digest digest;
  if (kind == "gpt2") {
    ASSIGN_OR_RETURN(encoder_, ByteBpe::Load(file, vocabulary_, digest));
  } else if (kind == "llama") {
    ASSIGN_OR_RETURN(encoder_, ScoredBpe::Load(file, vocabulary_, digest));
  } else {
    return Unimplemented(
        "tokenizer.ggml.model \"{}\" is not supported, only \"gpt2\" and \"llama\"", kind);
  }
  vocabulary_.AddTo(digest);
  digest_ = digest.Finish();
  return absl::OkStatus();
}

bool VocabularyTokenizer::AddsSpaceAfter(int32_t previous_id) const {
  if (!encoder_->adds_space() || previous_id >= vocab_size()) return false;
  return previous_id < 0 || vocabulary_.IsControl(previous_id);
}

// A user-defined token is part of the text that it stands in, so that the text opens before it; a
// control token ends a text.
void VocabularyTokenizer::EncodeText(std::string_view text, const SpecialTokens& special,
                                     std::vector<int32_t>& out) const {
  size_t begin = 0;  // of the ordinary text that is not encoded yet
  bool opens = true;
  for (size_t i = 0; !special.empty() && i < text.size();) {
    const SpecialTokens::Match match = special.MatchAt(text.substr(i));
    if (match.id < 0) {
      ++i;
      continue;
    }
    const bool is_control = vocabulary_.IsControl(match.id);
    if (begin < i || (opens && !is_control)) {
      encoder_->Encode(text.substr(begin, i - begin), opens, out);
    }
    out.push_back(match.id);
    opens = is_control;
    i += match.size;
    begin = i;
  }
  if (begin < text.size()) encoder_->Encode(text.substr(begin), opens, out);
}

std::vector<int32_t> VocabularyTokenizer::Encode(std::string_view text, Options options) const {
  TRIVIUM_CHECK(text.size() < INT32_MAX, "{} bytes of text", text.size());
  std::vector<int32_t> out;
  if (options.add_bos && bos_id() >= 0) out.push_back(bos_id());
  EncodeText(text, options.parse_special ? vocabulary_.special() : vocabulary_.user_defined(), out);
  if (options.add_eos && eos_id() >= 0) out.push_back(eos_id());
  return out;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const GgufFile& file) {
  auto tokenizer = std::make_unique<VocabularyTokenizer>();
  RETURN_IF_ERROR(tokenizer->Load(file));
  return std::unique_ptr<Tokenizer>(std::move(tokenizer));
}

}  // namespace trivium::model
