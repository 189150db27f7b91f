#include "common/model/byte_bpe.h"

#include "common/model/byte_alphabet.h"

namespace trivium::model {
namespace {

// A pre-tokenizer by the name that files give it.
struct NamedRule {
  std::string_view name;
  WordRule rule;
  bool takes_whole_words;  // a word that is a token is not merged from its bytes
  bool adds_bos;           // where the file does not say
};

constexpr NamedRule kRules[] = {
    // "default" says that nothing was set: then byte-level tokenizers cut as GPT-2 does.
    {"default", WordRule::kGpt2, false, false},
    {"gpt-2", WordRule::kGpt2, false, false},
    {"phi-2", WordRule::kGpt2, false, false},
    {"mpt", WordRule::kGpt2, false, false},
    {"olmo", WordRule::kGpt2, false, false},
    {"smollm", WordRule::kSmollm, false, false},
    {"starcoder", WordRule::kSmollm, false, false},
    {"refact", WordRule::kSmollm, false, false},
    {"command-r", WordRule::kSmollm, false, false},
    {"llama-bpe", WordRule::kLlamaBpe, true, true},
    {"llama3", WordRule::kLlamaBpe, true, true},
    {"llama-v3", WordRule::kLlamaBpe, true, true},
    {"smaug-bpe", WordRule::kLlamaBpe, false, false},
    {"qwen2", WordRule::kQwen2, false, false},
    {"deepseek-r1-qwen", WordRule::kQwen2, false, false},
    {"stablelm2", WordRule::kQwen2, false, false},
};

constexpr char kRuleKey[] = "tokenizer.ggml.pre";

absl::StatusOr<NamedRule> FindRule(const GgufFile& file) {
  if (!file.Has(kRuleKey)) {
    return InvalidArgument(
        "the file has no key {}: how its tokenizer cuts words must be known; convert the model "
        "again",
        kRuleKey);
  }
  ASSIGN_OR_RETURN(std::string_view name, file.String(kRuleKey));
  for (const NamedRule& rule : kRules) {
    if (rule.name == name) return rule;
  }
  return Unimplemented("{} \"{}\" is not supported", kRuleKey, name);
}

absl::Status RefuseSpacePrefix(const GgufFile& file) {
  constexpr char kPrefix[] = "tokenizer.ggml.add_space_prefix";
  if (!file.Has(kPrefix)) return absl::OkStatus();
  ASSIGN_OR_RETURN(bool add_space_prefix, file.Bool(kPrefix));
  if (!add_space_prefix) return absl::OkStatus();
  return Unimplemented("{} is not supported in a vocabulary of bytes", kPrefix);
}

// Tokens that are not written in the alphabet stand for their text.
absl::Status Spell(std::string_view text, TokenType /*type*/, std::string& out) {
  if (!AppendSymbolBytes(text, out)) out += text;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<SegmentEncoder>> ByteBpe::Load(const GgufFile& file,
                                                              Vocabulary& vocabulary,
                                                              Digest& digest) {
  ASSIGN_OR_RETURN(const NamedRule rule, FindRule(file));
  RETURN_IF_ERROR(RefuseSpacePrefix(file));
  IdsByText ids;
  RETURN_IF_ERROR(vocabulary.Load(file, {.spell = Spell, .adds_bos = rule.adds_bos}, ids));
  auto bpe = std::make_unique<ByteBpe>();
  bpe->rule_ = rule.rule;
  digest.Add("byte-level BPE");
  digest.AddInt(static_cast<int64_t>(rule.rule));
  digest.AddInt(rule.takes_whole_words);
  bpe->LoadByteIds(ids);
  RETURN_IF_ERROR(bpe->LoadMerges(file, ids, digest));
  if (rule.takes_whole_words) bpe->LoadWholeWords(vocabulary, ids);
  return bpe;
}

void ByteBpe::LoadByteIds(const IdsByText& ids) {
  for (int byte = 0; byte < 256; ++byte) {
    std::string symbol;
    AppendByteSymbol(static_cast<uint8_t>(byte), symbol);
    auto found = ids.find(symbol);
    byte_ids_[byte] = found == ids.end() ? -1 : found->second;
  }
}

absl::Status ByteBpe::LoadMerges(const GgufFile& file, const IdsByText& ids, Digest& digest) {
  ASSIGN_OR_RETURN(std::vector<std::string_view> merges, file.Strings("tokenizer.ggml.merges"));
  merges_.Reserve(merges.size());
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
      return InvalidArgument(
          "tokenizer.ggml.merges[{}], \"{:.64}\", joins or makes what is no token", i, merges[i]);
    }
    if (!merges_.Add(left->second, right->second, {static_cast<int32_t>(i), result->second})) {
      return InvalidArgument("tokenizer.ggml.merges[{}], \"{:.64}\", comes twice", i, merges[i]);
    }
    digest.Add(merges[i]);
  }
  return absl::OkStatus();
}

void ByteBpe::LoadWholeWords(const Vocabulary& vocabulary, const IdsByText& ids) {
  std::string bytes;
  for (const auto& [text, id] : ids) {
    bytes.clear();
    if (vocabulary.type(id) != TokenType::kNormal || !AppendSymbolBytes(text, bytes)) continue;
    whole_words_.emplace(vocabulary.Piece(id, false), id);
  }
}

void ByteBpe::Encode(std::string_view text, bool /*opens*/, std::vector<int32_t>& out) const {
  Pretokenizer words(text, rule_);
  Merger merger(merges_);
  std::vector<int32_t> symbols;
  for (std::string_view word = words.Next(); !word.empty(); word = words.Next()) {
    if (auto whole = whole_words_.find(word); whole != whole_words_.end()) {
      out.push_back(whole->second);
      continue;
    }
    symbols.clear();
    for (char byte : word) {
      const int32_t id = byte_ids_[static_cast<uint8_t>(byte)];
      if (id >= 0) symbols.push_back(id);
    }
    merger.Merge(symbols, out);
  }
}

}  // namespace trivium::model
