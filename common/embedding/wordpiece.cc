#include "common/embedding/wordpiece.h"

#include <simdjson.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>

#include <algorithm>

#include "common/model/mapped_file.h"
#include "common/model/utf8.h"

namespace trivium::embedding {
namespace {

using simdjson::dom::element;

constexpr std::string_view kContinuing = "##";
constexpr size_t kWordCharactersMax = 100;  // a longer word is unknown
constexpr UChar32 kReplacement = 0xfffd;

bool IsSpace(UChar32 c) { return c == '\t' || c == '\n' || c == '\r' || u_isUWhiteSpace(c); }

bool IsDropped(UChar32 c) {
  if (c == '\t' || c == '\n' || c == '\r') return false;
  constexpr uint32_t kUnassigned = U_GC_CN_MASK;  // stays
  return c == 0 || c == kReplacement || (U_GET_GC_MASK(c) & U_GC_C_MASK & ~kUnassigned) != 0;
}

// The blocks that BERT takes for Chinese, each character of which is a word.
bool IsIdeograph(UChar32 c) {
  static constexpr UChar32 kBlocks[][2] = {
      {0x4e00, 0x9fff},   {0x3400, 0x4dbf},   {0x20000, 0x2a6df}, {0x2a700, 0x2b73f},
      {0x2b740, 0x2b81f}, {0x2b920, 0x2ceaf}, {0xf900, 0xfaff},   {0x2f800, 0x2fa1f}};
  return std::any_of(std::begin(kBlocks), std::end(kBlocks),
                     [c](const auto& block) { return c >= block[0] && c <= block[1]; });
}

bool IsPunctuation(UChar32 c) {
  if (c < 0x80) return c > 0x20 && c < 0x7f && !u_isalnum(c);
  if ((U_GET_GC_MASK(c) & U_GC_P_MASK) == 0) return false;
  constexpr uint8_t kUnicode = 8;  // what came later is a letter to `tokenizers`
  UVersionInfo age;
  u_charAge(c, age);
  return age[0] <= kUnicode;
}

// Takes a text apart into words; `word` is called with each, and with its characters, until it
// returns false.
template <typename Fn>
class Splitter {
 public:
  explicit Splitter(const Fn& word) : word_(word), nfd_(*Nfd()) {}

  void Split(std::string_view text) {
    while (!text.empty() && goes_on_) {
      const model::Utf8Char c = model::DecodeUtf8(text);
      text.remove_prefix(c.length);
      if (c.valid) Raw(static_cast<UChar32>(c.code_point));
    }
    End();
  }

 private:
  static const icu::Normalizer2* Nfd() {
    UErrorCode error = U_ZERO_ERROR;
    const icu::Normalizer2* nfd = icu::Normalizer2::getNFDInstance(error);
    TRIVIUM_CHECK(U_SUCCESS(error), "ICU has no NFD");
    return nfd;
  }

  void Raw(UChar32 c) {
    if (IsDropped(c)) return;
    if (IsSpace(c)) return End();
    if (c < 0x80) return Plain(c);
    const bool alone = IsIdeograph(c);
    if (alone) End();
    icu::UnicodeString decomposed;
    if (nfd_.getDecomposition(c, decomposed)) {
      for (int32_t i = 0; i < decomposed.length(); i = decomposed.moveIndex32(i, 1)) {
        Plain(decomposed.char32At(i));
      }
    } else {
      Plain(c);
    }
    if (alone) End();
  }

  void Plain(UChar32 c) {
    if (u_charType(c) == U_NON_SPACING_MARK) return;
    const auto lower = static_cast<uint32_t>(u_tolower(c));
    if (IsPunctuation(c)) {
      End();
      model::AppendUtf8(lower, current_);
      characters_ = 1;
      return End();
    }
    if (++characters_ <= kWordCharactersMax) model::AppendUtf8(lower, current_);
  }

  void End() {
    if (characters_ > 0 && goes_on_) goes_on_ = word_(current_, characters_);
    current_.clear();
    characters_ = 0;
  }

  const Fn& word_;
  const icu::Normalizer2& nfd_;
  std::string current_;
  size_t characters_ = 0;
  bool goes_on_ = true;
};

absl::Status CheckField(element root, const char* pointer, std::string_view wanted) {
  std::string_view value;
  if (root.at_pointer(pointer).get(value) == simdjson::SUCCESS && value == wanted) {
    return absl::OkStatus();
  }
  return Unimplemented("{} is not \"{}\"", pointer, wanted);
}

absl::Status CheckTrue(element root, const char* pointer) {
  bool value = false;
  if (root.at_pointer(pointer).get(value) == simdjson::SUCCESS && value) return absl::OkStatus();
  return Unimplemented("{} is not true", pointer);
}

absl::Status CheckForm(element root) {
  RETURN_IF_ERROR(CheckField(root, "/normalizer/type", "BertNormalizer"));
  RETURN_IF_ERROR(CheckTrue(root, "/normalizer/clean_text"));
  RETURN_IF_ERROR(CheckTrue(root, "/normalizer/handle_chinese_chars"));
  RETURN_IF_ERROR(CheckTrue(root, "/normalizer/lowercase"));
  bool keeps_accents = false;
  if (root.at_pointer("/normalizer/strip_accents").get(keeps_accents) == simdjson::SUCCESS &&
      !keeps_accents) {
    return Unimplemented("/normalizer/strip_accents is false");
  }
  RETURN_IF_ERROR(CheckField(root, "/pre_tokenizer/type", "BertPreTokenizer"));
  RETURN_IF_ERROR(CheckField(root, "/model/type", "WordPiece"));
  RETURN_IF_ERROR(CheckField(root, "/model/unk_token", "[UNK]"));
  RETURN_IF_ERROR(CheckField(root, "/model/continuing_subword_prefix", kContinuing));
  uint64_t characters = 0;
  if (root.at_pointer("/model/max_input_chars_per_word").get(characters) != simdjson::SUCCESS ||
      characters != kWordCharactersMax) {
    return Unimplemented("/model/max_input_chars_per_word is not {}", kWordCharactersMax);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status WordPiece::Parse(std::string_view json) {
  simdjson::dom::parser parser;
  element root;
  if (parser.parse(json.data(), json.size()).get(root) != simdjson::SUCCESS) {
    return InvalidArgument("is no JSON");
  }
  RETURN_IF_ERROR(CheckForm(root));
  simdjson::dom::object vocabulary;
  if (root.at_pointer("/model/vocab").get(vocabulary) != simdjson::SUCCESS) {
    return InvalidArgument("/model/vocab is no object");
  }
  for (const auto& [piece, value] : vocabulary) {
    uint64_t id = 0;
    if (value.get(id) != simdjson::SUCCESS || id >= kVocabularyMax || piece.empty() ||
        piece.size() > kPieceBytesMax || pieces_.size() == kVocabularyMax) {
      return InvalidArgument("/model/vocab: a piece of {} bytes with no usable id", piece.size());
    }
    pieces_.emplace(std::string(piece), static_cast<int32_t>(id));
    piece_bytes_max_ = std::max(piece_bytes_max_, piece.size());
    vocabulary_ = std::max(vocabulary_, static_cast<int32_t>(id) + 1);
  }
  for (const auto& [name, id] :
       {std::pair{"[UNK]", &unknown_}, {"[CLS]", &cls_}, {"[SEP]", &sep_}}) {
    const auto it = pieces_.find(std::string_view(name));
    if (it == pieces_.end()) return InvalidArgument("/model/vocab: {} is missing", name);
    *id = it->second;
  }
  return absl::OkStatus();
}

absl::StatusOr<WordPiece> WordPiece::Load(const std::string& path) {
  ASSIGN_OR_RETURN(const model::MappedFile file, model::MappedFile::Open(path));
  if (file.bytes().size() > kFileBytesMax) {
    return InvalidArgument("{}: larger than {} bytes", path, kFileBytesMax);
  }
  WordPiece words;
  const absl::Status status =
      words.Parse({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()});
  if (!status.ok()) return MakeStatus(status.code(), "{}: {}", path, Message(status));
  return words;
}

// The longest piece at each place; a word that cannot be put together so is unknown as a whole.
bool WordPiece::AddWord(std::string_view word, size_t ids_max, std::vector<int32_t>* ids) const {
  const size_t before = ids->size();
  std::string candidate;
  for (size_t at = 0; at < word.size();) {
    candidate.assign(at == 0 ? "" : kContinuing);
    const size_t prefix = candidate.size();
    candidate.append(word.substr(at, piece_bytes_max_));
    auto it = pieces_.find(candidate);
    while (it == pieces_.end() && candidate.size() > prefix + 1) {
      candidate.pop_back();
      it = pieces_.find(candidate);
    }
    if (it == pieces_.end()) {
      ids->resize(before);
      ids->push_back(unknown_);
      break;
    }
    ids->push_back(it->second);
    at += candidate.size() - prefix;
  }
  if (ids->size() <= ids_max) return true;
  ids->resize(ids_max);
  return false;
}

WordPiece::Tokens WordPiece::Encode(std::string_view text, size_t ids_max) const {
  TRIVIUM_CHECK(ids_max >= 2, "no room for [CLS] and [SEP]");
  Tokens tokens;
  tokens.ids.push_back(cls_);
  const auto add = [&](const std::string& word, size_t characters) {
    const bool is_known = characters <= kWordCharactersMax;
    if (!is_known) tokens.ids.push_back(unknown_);
    if (is_known ? AddWord(word, ids_max - 1, &tokens.ids) : tokens.ids.size() < ids_max) {
      return true;
    }
    tokens.ids.resize(ids_max - 1);
    tokens.is_cut = true;
    return false;
  };
  Splitter splitter(add);
  splitter.Split(text);
  tokens.ids.push_back(sep_);
  return tokens;
}

}  // namespace trivium::embedding
