// Fuzzes the tokenizers with a vocabulary and a text. The input is lines of text:
//
//   PRE               the pre-tokenizer's name, or "llama" for BPE by score
//   nTEXT, nA B       a normal token; with a space, the one that A and B merge into
//   cTEXT, uTEXT      a control token, a user-defined one
//                     (an empty line)
//   the text, up to the end
//
// All 256 bytes are in every vocabulary, so that what is encoded must decode to the same bytes: but
// for spaces where BPE by score is at work, which adds them and writes them as U+2581.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "common/model/byte_alphabet.h"
#include "common/model/gguf.h"
#include "common/model/testing/gguf_writer.h"
#include "common/model/tokenizer.h"
#include "common/net/text.h"
#include "tests/fuzz/memory_file.h"

namespace {

using namespace trivium;  // NOLINT

enum : int32_t { kNormal = 1, kControl = 3, kUserDefined = 4, kByte = 6 };

std::string_view TakeLine(std::string_view& rest) {
  const size_t end = std::min(rest.find('\n'), rest.size());
  const std::string_view line = rest.substr(0, end);
  rest.remove_prefix(std::min(end + 1, rest.size()));
  return line;
}

class VocabularyFile {
 public:
  explicit VocabularyFile(bool scored) : scored_(scored) {
    for (int byte = 0; byte < 256; ++byte) {
      std::string symbol;
      model::AppendByteSymbol(static_cast<uint8_t>(byte), symbol);
      Add(scored ? fmt::format("<0x{:02X}>", byte) : symbol, scored ? kByte : kNormal);
    }
  }

  void AddLine(std::string_view line) {
    const std::string_view text = line.substr(1);
    if (line[0] == 'c') return Add(std::string(text), kControl);
    if (line[0] == 'u') return Add(std::string(text), kUserDefined);
    const size_t space = scored_ ? text.npos : text.find(' ');
    if (space == text.npos) return Add(std::string(text), kNormal);
    std::string joined(text);
    joined.erase(space, 1);
    Add(joined, kNormal);
    if (merged_.insert(std::string(text)).second) merges_.emplace_back(text);
  }

  std::string Serialize(std::string_view pre) const {
    model::GgufWriter writer;
    writer.AddString("tokenizer.ggml.model", scored_ ? "llama" : "gpt2");
    writer.AddString("tokenizer.ggml.pre", pre);
    writer.AddStrings("tokenizer.ggml.tokens", tokens_);
    writer.AddInt32s("tokenizer.ggml.token_type", types_);
    writer.AddStrings("tokenizer.ggml.merges", merges_);
    std::vector<float> scores;
    for (size_t i = 0; i < tokens_.size(); ++i) scores.push_back(-static_cast<float>(i));
    writer.AddFloats("tokenizer.ggml.scores", scores);
    return writer.Serialize();
  }

 private:
  // A token that comes twice is left out: a file that has one is refused.
  void Add(const std::string& text, int32_t type) {
    if (!seen_.insert(text).second) return;
    tokens_.push_back(text);
    types_.push_back(type);
  }

  bool scored_;
  std::set<std::string> seen_, merged_;
  std::vector<std::string> tokens_, merges_;
  std::vector<int32_t> types_;
};

std::string WithoutSpaces(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const bool mark = text.starts_with("\xE2\x96\x81");
    if (!mark && text[0] != ' ') out += text[0];
    text.remove_prefix(mark ? 3 : 1);
  }
  return out;
}

void CheckText(const model::Tokenizer& tokenizer, std::string_view text, bool scored,
               bool parse_special) {
  const auto ids = tokenizer.Encode(text, {.parse_special = parse_special});
  model::Detokenizer detokenizer(tokenizer);
  std::string bytes, shown;
  for (int32_t id : ids) {
    TRIVIUM_CHECK(id >= 0 && id < tokenizer.vocab_size(), "id {}", id);
    bytes += tokenizer.Piece(id, true);
    shown += detokenizer.Add(id);
  }
  shown += detokenizer.Flush();
  TRIVIUM_CHECK(net::IsUtf8(shown), "a detokenizer's text is not UTF-8");
  const bool same = scored ? WithoutSpaces(bytes) == WithoutSpaces(text) : bytes == text;
  TRIVIUM_CHECK(same, "decodes to {} bytes of {}", bytes.size(), text.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  const std::string_view pre = TakeLine(rest);
  const bool scored = pre == "llama";
  VocabularyFile vocabulary(scored);
  for (auto line = TakeLine(rest); !line.empty(); line = TakeLine(rest)) vocabulary.AddLine(line);
  const std::string bytes = vocabulary.Serialize(pre);
  fuzz::SetFileBytes({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  const auto file = model::GgufFile::Open("fuzz.gguf");
  TRIVIUM_CHECK(file.ok(), "{}", Message(file.status()));
  const auto tokenizer = model::Tokenizer::Load(**file);
  if (!tokenizer.ok()) return 0;
  CheckText(**tokenizer, rest, scored, false);
  CheckText(**tokenizer, rest, scored, true);
  return 0;
}
