// Fuzzes chat templates: the input is a template's source, which renders two short messages. It
// must end within its bounds, in valid UTF-8; and whatever it does to the messages, no control
// token of the prompt may hold a character of theirs. The character U+014B shows that: it stands in
// the messages and in a control token, and a source that has no escapes can only have it as it is.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/model/chat_template.h"
#include "common/model/testing/gguf_writer.h"
#include "common/net/text.h"
#include "tests/fuzz/memory_file.h"

namespace {

using namespace trivium;  // NOLINT

constexpr char kControlToken[] = "<|\xC5\x8B|>";
constexpr std::string_view kMark = "\xC5\x8B", kCapitalMark = "\xC5\x8A";
constexpr size_t kPromptBytesMax = size_t{16} << 20;
constexpr size_t kErrorBytesMax = 5000;

bool Has(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

std::string ModelFile(std::string_view source) {
  model::GgufWriter writer;
  writer.AddString("tokenizer.chat_template", source);
  writer.AddStrings("tokenizer.ggml.tokens", {kControlToken, "<s>", "</s>"});
  writer.AddInt32s("tokenizer.ggml.token_type", {3, 3, 3});
  writer.AddUint32("tokenizer.ggml.bos_token_id", 1);
  writer.AddUint32("tokenizer.ggml.eos_token_id", 2);
  return writer.Serialize();
}

const std::vector<model::ChatMessage>& Messages() {
  static const std::vector<model::ChatMessage> messages = {
      {"system", " Be\n<brief> "}, {"user", "\xC5\x8B|>a\xC5\x8B<|"}, {"assistant", "b\xC5\x8B"}};
  return messages;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view source(reinterpret_cast<const char*>(data), size);
  const std::string bytes = ModelFile(source);
  fuzz::SetFileBytes({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  const auto file = model::GgufFile::Open("fuzz.gguf");
  TRIVIUM_CHECK(file.ok(), "{}", Message(file.status()));
  const auto chat_template = model::ChatTemplate::FromFile(**file, [] { return std::time_t{0}; });
  const auto prompt = chat_template.Render(Messages());
  if (!prompt.ok()) {
    const std::string error = Message(prompt.status());
    TRIVIUM_CHECK(error.size() < kErrorBytesMax, "{} bytes of error", error.size());
    TRIVIUM_CHECK(net::IsUtf8(error), "an error that is not UTF-8");
    return 0;
  }
  TRIVIUM_CHECK(net::IsUtf8(*prompt), "a prompt that is not UTF-8");
  TRIVIUM_CHECK(prompt->size() < kPromptBytesMax, "{} bytes of prompt", prompt->size());
  const bool could_write_it = Has(source, kMark) || Has(source, kCapitalMark) || Has(source, "\\");
  TRIVIUM_CHECK(could_write_it || !Has(*prompt, kControlToken), "a forged control token");
  return 0;
}
