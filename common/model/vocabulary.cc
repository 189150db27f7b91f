#include "common/model/vocabulary.h"

#include <algorithm>

#include "common/net/text.h"

namespace trivium::model {
namespace {

constexpr size_t kMaxVocab = 1 << 21;

// Files often name one end only, though the model was taught several.
constexpr std::string_view kEndTexts[] = {"<|im_end|>",      "<|endoftext|>", "<|eot_id|>",
                                          "<|end_of_text|>", "<|eom_id|>",    "<end_of_turn>"};

// -1 where the file has no such key.
absl::StatusOr<int32_t> SpecialId(const GgufFile& file, std::string_view name, int32_t vocab) {
  const std::string key = fmt::format("tokenizer.ggml.{}_token_id", name);
  if (!file.Has(key)) return -1;
  ASSIGN_OR_RETURN(int64_t id, file.Int(key));
  if (id < 0 || id >= vocab) {
    return InvalidArgument("{} is {}, outside of a vocabulary of {}", key, id, vocab);
  }
  return static_cast<int32_t>(id);
}

absl::StatusOr<bool> FlagOr(const GgufFile& file, std::string_view key, bool otherwise) {
  return file.Has(key) ? file.Bool(key) : otherwise;
}

bool IsAsWritten(TokenType type) {
  return type == TokenType::kControl || type == TokenType::kUserDefined;
}

}  // namespace

absl::Status Vocabulary::Load(const GgufFile& file, const Options& options, IdsByText& ids) {
  ASSIGN_OR_RETURN(std::vector<std::string_view> tokens, file.Strings("tokenizer.ggml.tokens"));
  if (tokens.empty() || tokens.size() > kMaxVocab) {
    return InvalidArgument("tokenizer.ggml.tokens has {} elements, not 1 to {}", tokens.size(),
                           kMaxVocab);
  }
  RETURN_IF_ERROR(LoadTypes(file, tokens.size()));
  RETURN_IF_ERROR(LoadPieces(tokens, options.spell, ids));
  RETURN_IF_ERROR(LoadSpecialIds(file, ids));
  ASSIGN_OR_RETURN(adds_bos_, FlagOr(file, "tokenizer.ggml.add_bos_token", options.adds_bos));
  ASSIGN_OR_RETURN(adds_eos_, FlagOr(file, "tokenizer.ggml.add_eos_token", false));
  return absl::OkStatus();
}

absl::Status Vocabulary::LoadTypes(const GgufFile& file, size_t count) {
  types_.assign(count, TokenType::kNormal);
  if (!file.Has("tokenizer.ggml.token_type")) return absl::OkStatus();
  ASSIGN_OR_RETURN(std::vector<int64_t> numbers, file.Ints("tokenizer.ggml.token_type"));
  if (numbers.size() != count) {
    return InvalidArgument("tokenizer.ggml.token_type has {} elements for {} tokens",
                           numbers.size(), count);
  }
  for (size_t i = 0; i < count; ++i) {
    if (numbers[i] < 1 || numbers[i] > 6) {
      return InvalidArgument("tokenizer.ggml.token_type[{}] is {}", i, numbers[i]);
    }
    types_[i] = static_cast<TokenType>(numbers[i]);
  }
  return absl::OkStatus();
}

absl::Status Vocabulary::LoadPieces(std::span<const std::string_view> tokens, Spell spell,
                                    IdsByText& ids) {
  ids.reserve(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    if (!net::IsUtf8(tokens[i])) {
      return InvalidArgument("tokenizer.ggml.tokens[{}] is not valid UTF-8", i);
    }
    if (!ids.emplace(tokens[i], id).second) {
      return InvalidArgument("tokenizer.ggml.tokens[{}] repeats \"{:.64}\"", i, tokens[i]);
    }
    piece_begins_.push_back(pieces_.size());
    if (!IsAsWritten(types_[i])) {
      if (absl::Status status = spell(tokens[i], types_[i], pieces_); !status.ok()) {
        return InvalidArgument("tokenizer.ggml.tokens[{}]: {}", i, Message(status));
      }
      continue;
    }
    pieces_ += tokens[i];
    special_.Add(tokens[i], id);
    if (types_[i] == TokenType::kUserDefined) user_defined_.Add(tokens[i], id);
  }
  piece_begins_.push_back(pieces_.size());
  return absl::OkStatus();
}

absl::Status Vocabulary::LoadSpecialIds(const GgufFile& file, const IdsByText& ids) {
  ASSIGN_OR_RETURN(bos_id_, SpecialId(file, "bos", size()));
  ASSIGN_OR_RETURN(eos_id_, SpecialId(file, "eos", size()));
  ASSIGN_OR_RETURN(unknown_id_, SpecialId(file, "unknown", size()));
  ASSIGN_OR_RETURN(int32_t end_of_turn, SpecialId(file, "eot", size()));
  for (int32_t id : {eos_id_, end_of_turn}) {
    if (id >= 0) end_ids_.push_back(id);
  }
  for (std::string_view text : kEndTexts) {
    auto found = ids.find(text);
    if (found != ids.end() && IsControl(found->second)) end_ids_.push_back(found->second);
  }
  std::sort(end_ids_.begin(), end_ids_.end());
  end_ids_.erase(std::unique(end_ids_.begin(), end_ids_.end()), end_ids_.end());
  return absl::OkStatus();
}

std::string_view Vocabulary::Piece(int32_t id, bool special) const {
  if (id < 0 || id >= size()) return {};
  if (!special && (IsControl(id) || type(id) == TokenType::kUnknown)) return {};
  const auto i = static_cast<size_t>(id);
  return std::string_view(pieces_).substr(piece_begins_[i],
                                          piece_begins_[i + 1] - piece_begins_[i]);
}

void Vocabulary::AddTo(Digest& digest) const {
  digest.Add(pieces_);
  digest.Add(
      {reinterpret_cast<const char*>(piece_begins_.data()), piece_begins_.size() * sizeof(size_t)});
  digest.Add({reinterpret_cast<const char*>(types_.data()), types_.size()});
  for (int32_t id : {bos_id_, eos_id_, unknown_id_}) digest.AddInt(id);
  digest.AddInt(adds_bos_);
  digest.AddInt(adds_eos_);
  for (int32_t id : end_ids_) digest.AddInt(id);
}

}  // namespace trivium::model
