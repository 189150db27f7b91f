// The tokens of a GGUF file's vocabulary: their bytes, their kinds, and the ids with a meaning of
// their own. What both kinds of tokenizer share. Immutable once loaded; then safe from any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/base/status.h"
#include "common/model/digest.h"
#include "common/model/gguf.h"
#include "common/model/special_tokens.h"

namespace trivium::model {

// The numbers of tokenizer.ggml.token_type.
enum class TokenType : uint8_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

// By the text that the file gives, which is UTF-8; views into the file.
using IdsByText = std::unordered_map<std::string_view, int32_t>;

class Vocabulary {
 public:
  // Appends the bytes that a token stands for.
  using Spell = absl::Status (*)(std::string_view text, TokenType type, std::string& out);

  struct Options {
    Spell spell = nullptr;  // not used for control and user-defined tokens: these are as written
    bool adds_bos = false;  // where the file does not say
  };

  // Fills `ids` too, which must not outlive the file. INVALID_ARGUMENT for tokens that repeat,
  // arrays of different lengths, ids out of range, and tokens that are not UTF-8, as the format
  // wants all its strings: a special token of half a character would cut a text inside of one.
  absl::Status Load(const GgufFile& file, const Options& options, IdsByText& ids);

  int32_t size() const { return static_cast<int32_t>(types_.size()); }
  TokenType type(int32_t id) const { return types_[static_cast<size_t>(id)]; }
  bool IsControl(int32_t id) const { return type(id) == TokenType::kControl; }
  // Of any id; see Tokenizer::Piece.
  std::string_view Piece(int32_t id, bool special) const;

  const SpecialTokens& user_defined() const { return user_defined_; }
  const SpecialTokens& special() const { return special_; }  // user-defined and control tokens
  int32_t bos_id() const { return bos_id_; }                 // -1: none
  int32_t eos_id() const { return eos_id_; }
  int32_t unknown_id() const { return unknown_id_; }
  std::span<const int32_t> end_ids() const { return end_ids_; }
  bool adds_bos() const { return adds_bos_; }
  bool adds_eos() const { return adds_eos_; }

  void AddTo(Digest& digest) const;

 private:
  absl::Status LoadTypes(const GgufFile& file, size_t count);
  absl::Status LoadPieces(std::span<const std::string_view> tokens, Spell spell, IdsByText& ids);
  absl::Status LoadSpecialIds(const GgufFile& file, const IdsByText& ids);

  std::vector<TokenType> types_;
  std::string pieces_;                // the bytes of all tokens, one behind the other
  std::vector<size_t> piece_begins_;  // size() + 1
  SpecialTokens user_defined_;
  SpecialTokens special_;
  int32_t bos_id_ = -1;
  int32_t eos_id_ = -1;
  int32_t unknown_id_ = -1;
  std::vector<int32_t> end_ids_;
  bool adds_bos_ = false;
  bool adds_eos_ = false;
};

}  // namespace trivium::model
