#include "common/model/scored_bpe.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "common/model/utf8.h"

namespace trivium::model {
namespace {

constexpr uint32_t kSpaceMark = 0x2581;
constexpr std::string_view kSpaceMarkText = "\xE2\x96\x81";
// Symbols that are no token: vocabulary size + code point, then vocabulary size + this + byte.
constexpr int32_t kBytesBegin = 0x110000;
constexpr int32_t kNoSymbol = -1;
// A rule is looked up for each place where a token can be cut in two, and kept for those that
// join two symbols. Real vocabularies have tokens of up to 100 bytes and 10 rules a token.
constexpr size_t kMaxTokenBytes = 1024;
constexpr size_t kMaxRules = 1 << 24;

// The value of "<0x0A>", or -1.
int ByteOf(std::string_view text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  int value = 0;
  for (char c : text.substr(3, 2)) {
    const size_t digit = std::string_view("0123456789ABCDEF").find(c);
    if (digit == std::string_view::npos) return -1;
    value = 16 * value + static_cast<int>(digit);
  }
  return value;
}

absl::Status Spell(std::string_view text, TokenType type, std::string& out) {
  if (type == TokenType::kByte) {
    const int byte = ByteOf(text);
    if (byte < 0) return InvalidArgument("\"{:.64}\" is no byte", text);
    out.push_back(static_cast<char>(byte));
    return absl::OkStatus();
  }
  if (text.size() > kMaxTokenBytes) {
    return InvalidArgument("{} bytes, at most {} are taken", text.size(), kMaxTokenBytes);
  }
  for (size_t at = text.find(kSpaceMarkText); at != std::string_view::npos;
       at = text.find(kSpaceMarkText)) {
    out.append(text.substr(0, at)).push_back(' ');
    text.remove_prefix(at + kSpaceMarkText.size());
  }
  out += text;
  return absl::OkStatus();
}

absl::Status RefuseNormalisation(const GgufFile& file) {
  constexpr char kCharsMap[] = "tokenizer.ggml.precompiled_charsmap";
  constexpr char kExtraSpaces[] = "tokenizer.ggml.remove_extra_whitespaces";
  const auto refuse = [](std::string_view key) {
    return Unimplemented("{} is not supported", key);
  };
  if (file.Has(kCharsMap)) return refuse(kCharsMap);
  if (!file.Has(kExtraSpaces)) return absl::OkStatus();
  ASSIGN_OR_RETURN(bool removes, file.Bool(kExtraSpaces));
  return removes ? refuse(kExtraSpaces) : absl::OkStatus();
}

absl::StatusOr<std::vector<float>> ReadScores(const GgufFile& file, int32_t count) {
  constexpr char kKey[] = "tokenizer.ggml.scores";
  ASSIGN_OR_RETURN(std::vector<float> scores, file.Floats(kKey));
  if (scores.size() != static_cast<size_t>(count)) {
    return InvalidArgument("{} has {} elements for {} tokens", kKey, scores.size(), count);
  }
  for (size_t i = 0; i < scores.size(); ++i) {
    if (!std::isfinite(scores[i])) return InvalidArgument("{}[{}] is {}", kKey, i, scores[i]);
  }
  return scores;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SegmentEncoder>> ScoredBpe::Load(const GgufFile& file,
                                                                Vocabulary& vocabulary,
                                                                Digest& digest) {
  RETURN_IF_ERROR(RefuseNormalisation(file));
  IdsByText ids;
  RETURN_IF_ERROR(vocabulary.Load(file, {.spell = Spell, .adds_bos = true}, ids));
  std::unique_ptr<ScoredBpe> bpe(new ScoredBpe(vocabulary));
  constexpr char kPrefix[] = "tokenizer.ggml.add_space_prefix";
  if (file.Has(kPrefix)) {
    ASSIGN_OR_RETURN(bpe->adds_space_, file.Bool(kPrefix));
  }
  digest.Add("BPE by score");
  digest.AddInt(bpe->adds_space_);
  RETURN_IF_ERROR(bpe->LoadBytes());
  RETURN_IF_ERROR(bpe->LoadMerges(file, ids, digest));
  return bpe;
}

// All 256 bytes, or none.
absl::Status ScoredBpe::LoadBytes() {
  std::fill(std::begin(byte_ids_), std::end(byte_ids_), -1);
  for (int32_t id = 0; id < vocabulary_.size(); ++id) {
    if (vocabulary_.type(id) != TokenType::kByte) continue;
    byte_ids_[static_cast<uint8_t>(vocabulary_.Piece(id, false)[0])] = id;
    has_bytes_ = true;
  }
  for (int byte = 0; has_bytes_ && byte < 256; ++byte) {
    if (byte_ids_[byte] >= 0) continue;
    return InvalidArgument("tokenizer.ggml.tokens has some bytes, but not <0x{:02X}>", byte);
  }
  return absl::OkStatus();
}

absl::Status ScoredBpe::LoadMerges(const GgufFile& file, const IdsByText& ids, Digest& digest) {
  ASSIGN_OR_RETURN(const std::vector<float> scores, ReadScores(file, vocabulary_.size()));
  digest.Add(
      {reinterpret_cast<const char*>(scores.data()), scores.size() * sizeof(scores.front())});
  std::vector<float> ordered = scores;
  std::sort(ordered.begin(), ordered.end(), std::greater<>());
  for (const auto& [text, id] : ids) {
    if (vocabulary_.type(id) != TokenType::kNormal || text.empty()) continue;
    const float score = scores[static_cast<size_t>(id)];
    const auto rank = std::lower_bound(ordered.begin(), ordered.end(), score, std::greater<>());
    const MergeRules::Result result{static_cast<int32_t>(rank - ordered.begin()), id};
    RETURN_IF_ERROR(AddRules(text, result, ids));
  }
  return absl::OkStatus();
}

// A rule for each way in which two symbols make the token.
absl::Status ScoredBpe::AddRules(std::string_view text, MergeRules::Result result,
                                 const IdsByText& ids) {
  const Utf8Char first = DecodeUtf8(text);
  if (first.valid && first.length == text.size()) char_ids_[first.code_point] = result.id;
  for (size_t cut = first.length; cut < text.size(); cut += DecodeUtf8(text.substr(cut)).length) {
    const int32_t left = SymbolOf(text.substr(0, cut), ids);
    const int32_t right = SymbolOf(text.substr(cut), ids);
    if (left == kNoSymbol || right == kNoSymbol) continue;
    if (rules_.size() == kMaxRules) {
      return InvalidArgument("tokenizer.ggml.tokens needs more than {} rules", kMaxRules);
    }
    rules_.Add(left, right, result);
  }
  return absl::OkStatus();
}

int32_t ScoredBpe::SymbolOf(std::string_view text, const IdsByText& ids) const {
  const auto found = ids.find(text);
  if (found != ids.end() && vocabulary_.type(found->second) == TokenType::kNormal) {
    return found->second;
  }
  const Utf8Char c = DecodeUtf8(text);
  if (!c.valid || c.length != text.size()) return kNoSymbol;
  return vocabulary_.size() + static_cast<int32_t>(c.code_point);
}

int32_t ScoredBpe::CharSymbol(uint32_t code_point) const {
  const auto found = char_ids_.find(code_point);
  if (found != char_ids_.end()) return found->second;
  return vocabulary_.size() + static_cast<int32_t>(code_point);
}

void ScoredBpe::AppendSymbols(std::string_view text, std::vector<int32_t>& symbols) const {
  const int32_t space = CharSymbol(kSpaceMark);
  while (!text.empty()) {
    const Utf8Char c = DecodeUtf8(text);
    if (c.valid) {
      symbols.push_back(c.code_point == ' ' ? space : CharSymbol(c.code_point));
    } else {
      for (char byte : text.substr(0, c.length)) {
        symbols.push_back(vocabulary_.size() + kBytesBegin + static_cast<uint8_t>(byte));
      }
    }
    text.remove_prefix(c.length);
  }
}

void ScoredBpe::Encode(std::string_view text, bool opens, std::vector<int32_t>& out) const {
  std::vector<int32_t> symbols;
  if (opens && adds_space_) symbols.push_back(CharSymbol(kSpaceMark));
  AppendSymbols(text, symbols);
  std::vector<int32_t> merged;
  Merger(rules_).Merge(symbols, merged);
  for (int32_t symbol : merged) {
    if (symbol < vocabulary_.size()) {
      out.push_back(symbol);
    } else {
      AppendUnknown(symbol - vocabulary_.size(), out);
    }
  }
}

// `symbol`: a code point, or kBytesBegin + a byte. A run of unknown ones is one unknown token where
// the vocabulary has no bytes.
void ScoredBpe::AppendUnknown(int32_t symbol, std::vector<int32_t>& out) const {
  if (!has_bytes_) {
    const int32_t unknown = vocabulary_.unknown_id();
    if (unknown >= 0 && (out.empty() || out.back() != unknown)) out.push_back(unknown);
    return;
  }
  if (symbol >= kBytesBegin) return out.push_back(byte_ids_[symbol - kBytesBegin]);
  std::string bytes;
  AppendUtf8(symbol == kSpaceMark ? uint32_t{' '} : static_cast<uint32_t>(symbol), bytes);
  for (char byte : bytes) out.push_back(byte_ids_[static_cast<uint8_t>(byte)]);
}

}  // namespace trivium::model
