#include "common/model/tokenizer.h"

#include <algorithm>
#include <unordered_map>

#include "common/model/bpe_merger.h"
#include "common/model/byte_alphabet.h"
#include "common/model/digest.h"
#include "common/model/pretokenizer.h"
#include "common/model/special_tokens.h"

namespace trivium::model {
namespace {

constexpr size_t kMaxVocab = 1 << 21;

// The numbers of tokenizer.ggml.token_type.
enum class TokenType : uint8_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

template <typename... Args>
absl::Status Unimplemented(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kUnimplemented, format, std::forward<Args>(args)...);
}

using IdsByText = std::unordered_map<std::string_view, int32_t>;

class ByteBpe final : public Tokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const GgufFile& file);

  std::vector<int32_t> Encode(std::string_view text, Options options) const override;
  std::string_view Piece(int32_t id, bool special) const override;
  int32_t vocab_size() const override { return static_cast<int32_t>(types_.size()); }
  int32_t bos_id() const override { return bos_id_; }
  int32_t eos_id() const override { return eos_id_; }
  std::span<const int32_t> end_of_generation_ids() const override { return end_ids_; }
  bool adds_bos() const override { return adds_bos_; }
  std::string_view digest() const override { return digest_; }

 private:
  absl::Status LoadTypes(const GgufFile& file, size_t count);
  absl::Status LoadPieces(const std::vector<std::string_view>& tokens, IdsByText& ids);
  void LoadByteIds(const IdsByText& ids);
  absl::Status LoadMerges(const GgufFile& file, const IdsByText& ids);
  absl::Status LoadSpecialIds(const GgufFile& file, const IdsByText& ids);
  std::string ComputeDigest(const GgufFile& file) const;
  void EncodeWords(std::string_view text, Merger& merger, std::vector<int32_t>& out) const;

  std::vector<TokenType> types_;
  std::string pieces_;                // the bytes of all tokens, one behind the other
  std::vector<size_t> piece_begins_;  // vocabulary + 1
  int32_t byte_ids_[256] = {};
  MergeRules rules_;
  SpecialTokens always_special_;  // user-defined: found in any text
  SpecialTokens all_special_;     // and control tokens
  int32_t bos_id_ = -1;
  int32_t eos_id_ = -1;
  std::vector<int32_t> end_ids_;
  bool adds_bos_ = false;
  std::string digest_;
};

absl::Status ByteBpe::LoadTypes(const GgufFile& file, size_t count) {
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

absl::Status ByteBpe::LoadPieces(const std::vector<std::string_view>& tokens, IdsByText& ids) {
  ids.reserve(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    if (!ids.emplace(tokens[i], id).second) {
      return InvalidArgument("tokenizer.ggml.tokens[{}] repeats \"{}\"", i, tokens[i]);
    }
    piece_begins_.push_back(pieces_.size());
    const bool as_written =
        types_[i] == TokenType::kControl || types_[i] == TokenType::kUserDefined;
    if (as_written || !AppendSymbolBytes(tokens[i], pieces_)) pieces_ += tokens[i];
    if (types_[i] == TokenType::kUserDefined) always_special_.Add(tokens[i], id);
    if (as_written) all_special_.Add(tokens[i], id);
  }
  piece_begins_.push_back(pieces_.size());
  return absl::OkStatus();
}

void ByteBpe::LoadByteIds(const IdsByText& ids) {
  for (int byte = 0; byte < 256; ++byte) {
    std::string symbol;
    AppendByteSymbol(static_cast<uint8_t>(byte), symbol);
    auto found = ids.find(symbol);
    byte_ids_[byte] = found == ids.end() ? Merger::kNoToken : found->second;
  }
}

absl::Status ByteBpe::LoadMerges(const GgufFile& file, const IdsByText& ids) {
  ASSIGN_OR_RETURN(std::vector<std::string_view> merges, file.Strings("tokenizer.ggml.merges"));
  rules_.Reserve(merges.size());
  std::string joined;
  for (size_t i = 0; i < merges.size(); ++i) {
    const size_t space = merges[i].find(' ');
    if (space == std::string_view::npos) {
      return InvalidArgument("tokenizer.ggml.merges[{}] is not a pair", i);
    }
    const std::string_view left_text = merges[i].substr(0, space);
    const std::string_view right_text = merges[i].substr(space + 1);
    joined.assign(left_text).append(right_text);
    auto left = ids.find(left_text);
    auto right = ids.find(right_text);
    auto result = ids.find(joined);
    if (left == ids.end() || right == ids.end() || result == ids.end()) {
      return InvalidArgument("tokenizer.ggml.merges[{}], \"{}\", joins or makes what is no token",
                             i, merges[i]);
    }
    if (!rules_.Add(left->second, right->second, {static_cast<int32_t>(i), result->second})) {
      return InvalidArgument("tokenizer.ggml.merges[{}], \"{}\", comes twice", i, merges[i]);
    }
  }
  return absl::OkStatus();
}

// -1 where the file has no such key.
absl::StatusOr<int32_t> SpecialId(const GgufFile& file, std::string_view name, size_t vocab) {
  const std::string key = fmt::format("tokenizer.ggml.{}_token_id", name);
  if (!file.Has(key)) return -1;
  ASSIGN_OR_RETURN(int64_t id, file.Int(key));
  if (id < 0 || static_cast<uint64_t>(id) >= vocab) {
    return InvalidArgument("{} is {}, outside of a vocabulary of {}", key, id, vocab);
  }
  return static_cast<int32_t>(id);
}

absl::Status ByteBpe::LoadSpecialIds(const GgufFile& file, const IdsByText& ids) {
  ASSIGN_OR_RETURN(bos_id_, SpecialId(file, "bos", types_.size()));
  ASSIGN_OR_RETURN(eos_id_, SpecialId(file, "eos", types_.size()));
  ASSIGN_OR_RETURN(int32_t end_of_turn, SpecialId(file, "eot", types_.size()));
  if (file.Has("tokenizer.ggml.add_bos_token")) {
    ASSIGN_OR_RETURN(adds_bos_, file.Bool("tokenizer.ggml.add_bos_token"));
  }
  for (int32_t id : {eos_id_, end_of_turn}) {
    if (id >= 0) end_ids_.push_back(id);
  }
  // Files often name one end only, though the model was taught several.
  for (std::string_view text : {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>"}) {
    auto found = ids.find(text);
    if (found == ids.end()) continue;
    if (types_[static_cast<size_t>(found->second)] == TokenType::kControl) {
      end_ids_.push_back(found->second);
    }
  }
  std::sort(end_ids_.begin(), end_ids_.end());
  end_ids_.erase(std::unique(end_ids_.begin(), end_ids_.end()), end_ids_.end());
  return absl::OkStatus();
}

std::string ByteBpe::ComputeDigest(const GgufFile& file) const {
  Digest digest;
  digest.Add("byte-level BPE, smollm");
  digest.Add(pieces_);
  digest.Add(
      {reinterpret_cast<const char*>(piece_begins_.data()), piece_begins_.size() * sizeof(size_t)});
  digest.Add({reinterpret_cast<const char*>(types_.data()), types_.size()});
  const absl::StatusOr<std::vector<std::string_view>> merges =
      file.Strings("tokenizer.ggml.merges");
  TRIVIUM_CHECK(merges.ok(), "merges that loaded are gone");
  for (std::string_view merge : *merges) digest.Add(merge);
  digest.AddInt(bos_id_);
  digest.AddInt(eos_id_);
  digest.AddInt(adds_bos_);
  for (int32_t id : end_ids_) digest.AddInt(id);
  return digest.Finish();
}

absl::Status CheckKind(const GgufFile& file) {
  ASSIGN_OR_RETURN(std::string_view kind, file.String("tokenizer.ggml.model"));
  if (kind != "gpt2") {
    return Unimplemented("tokenizer.ggml.model \"{}\" is not supported, only \"gpt2\"", kind);
  }
  ASSIGN_OR_RETURN(std::string_view rule, file.String("tokenizer.ggml.pre"));
  if (rule != "smollm") {
    return Unimplemented("tokenizer.ggml.pre \"{}\" is not supported, only \"smollm\"", rule);
  }
  constexpr std::string_view kPrefix = "tokenizer.ggml.add_space_prefix";
  if (!file.Has(kPrefix)) return absl::OkStatus();
  ASSIGN_OR_RETURN(bool add_space_prefix, file.Bool(kPrefix));
  if (add_space_prefix) return Unimplemented("{} is not supported", kPrefix);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> ByteBpe::Load(const GgufFile& file) {
  RETURN_IF_ERROR(CheckKind(file));
  ASSIGN_OR_RETURN(std::vector<std::string_view> tokens, file.Strings("tokenizer.ggml.tokens"));
  if (tokens.empty() || tokens.size() > kMaxVocab) {
    return InvalidArgument("tokenizer.ggml.tokens has {} elements, not 1 to {}", tokens.size(),
                           kMaxVocab);
  }
  auto bpe = std::make_unique<ByteBpe>();
  IdsByText ids;
  RETURN_IF_ERROR(bpe->LoadTypes(file, tokens.size()));
  RETURN_IF_ERROR(bpe->LoadPieces(tokens, ids));
  bpe->LoadByteIds(ids);
  RETURN_IF_ERROR(bpe->LoadMerges(file, ids));
  RETURN_IF_ERROR(bpe->LoadSpecialIds(file, ids));
  bpe->digest_ = bpe->ComputeDigest(file);
  return std::unique_ptr<Tokenizer>(std::move(bpe));
}

void ByteBpe::EncodeWords(std::string_view text, Merger& merger, std::vector<int32_t>& out) const {
  Pretokenizer words(text);
  for (std::string_view word = words.Next(); !word.empty(); word = words.Next()) {
    merger.Merge(word, byte_ids_, out);
  }
}

std::vector<int32_t> ByteBpe::Encode(std::string_view text, Options options) const {
  TRIVIUM_CHECK(text.size() <= INT32_MAX, "{} bytes of text", text.size());
  const SpecialTokens& special = options.parse_special ? all_special_ : always_special_;
  Merger merger(rules_);
  std::vector<int32_t> out;
  if (options.add_bos && bos_id_ >= 0) out.push_back(bos_id_);
  size_t begin = 0;  // of the ordinary text that is not encoded yet
  for (size_t i = 0; !special.empty() && i < text.size();) {
    const SpecialTokens::Match match = special.MatchAt(text.substr(i));
    if (match.id < 0) {
      ++i;
      continue;
    }
    EncodeWords(text.substr(begin, i - begin), merger, out);
    out.push_back(match.id);
    i += match.size;
    begin = i;
  }
  EncodeWords(text.substr(begin), merger, out);
  return out;
}

std::string_view ByteBpe::Piece(int32_t id, bool special) const {
  if (id < 0 || id >= vocab_size()) return {};
  const auto i = static_cast<size_t>(id);
  if (!special && (types_[i] == TokenType::kControl || types_[i] == TokenType::kUnknown)) return {};
  return std::string_view(pieces_).substr(piece_begins_[i],
                                          piece_begins_[i + 1] - piece_begins_[i]);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const GgufFile& file) {
  return ByteBpe::Load(file);
}

}  // namespace trivium::model
