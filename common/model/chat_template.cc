#include "common/model/chat_template.h"

#include <algorithm>
#include <cctype>

namespace trivium::model {
namespace {

using jinja::NamedValue;
using jinja::Text;
using jinja::Value;
using jinja::Workspace;

constexpr std::string_view kTemplateKey = "tokenizer.chat_template";
constexpr size_t kRoleBytesMax = 64;

// Real templates take some hundred steps a message, and some ten thousand at most for what else
// they write; a step takes some 30 ns. They copy a text a few times; a character has four bytes.
constexpr uint64_t kStepsPerMessage = 2'000, kStepsPerCharacter = 4;
constexpr size_t kBytesPerCharacter = 256;

std::shared_ptr<const SpecialTokens> ControlTokens(const GgufFile& file) {
  auto control = std::make_shared<SpecialTokens>();
  auto texts = file.Strings("tokenizer.ggml.tokens");
  auto types = file.Ints("tokenizer.ggml.token_type");
  if (!texts.ok() || !types.ok()) return control;
  constexpr int64_t kControlType = 3;
  for (size_t i = 0; i < std::min(texts->size(), types->size()); ++i) {
    if ((*types)[i] == kControlType) control->Add((*texts)[i], static_cast<int32_t>(i));
  }
  return control;
}

// The names that Hugging Face gives to a template, where the file says which tokens they are.
std::vector<std::pair<std::u32string, std::u32string>> SpecialTexts(const GgufFile& file) {
  std::vector<std::pair<std::u32string, std::u32string>> found;
  const auto texts = file.Strings("tokenizer.ggml.tokens");
  if (!texts.ok()) return found;
  for (const auto& [name, key] :
       {std::pair{U"bos_token", "bos"}, std::pair{U"eos_token", "eos"},
        std::pair{U"unk_token", "unknown"}, std::pair{U"pad_token", "padding"}}) {
    const auto id = file.Int(fmt::format("tokenizer.ggml.{}_token_id", key));
    if (!id.ok() || *id < 0 || static_cast<uint64_t>(*id) >= texts->size()) continue;
    std::u32string text;
    if (!jinja::AppendUtf8Text((*texts)[static_cast<size_t>(*id)], 0, text).ok()) continue;
    found.emplace_back(name, std::move(text));
  }
  return found;
}

// Roles that templates know by name, and write into control tokens such as "<|user|>".
bool IsKnownRole(std::string_view role) {
  return role == "system" || role == "user" || role == "assistant" || role == "tool" ||
         role == "developer";
}

absl::Status CheckRole(std::string_view role, size_t index) {
  const bool is_name = !role.empty() && role.size() <= kRoleBytesMax &&
                       std::all_of(role.begin(), role.end(), [](unsigned char c) {
                         return c < 0x80 && (std::isalnum(c) || c == '_' || c == '-' || c == '.');
                       });
  if (is_name) return absl::OkStatus();
  return InvalidArgument("messages[{}].role is no name such as system, user, assistant or tool",
                         index);
}

uint32_t MarkOfMessage(size_t index) {
  return static_cast<uint32_t>(std::min<size_t>(index + 1, jinja::kMarkMax));
}

}  // namespace

ChatTemplate ChatTemplate::FromFile(const GgufFile& file, std::time_t (*clock)()) {
  ChatTemplate chat;
  chat.clock_ = clock;
  const absl::StatusOr<std::string_view> source = file.String(kTemplateKey);
  if (!source.ok() || source->empty()) {
    chat.unusable_ = "the model has no chat template";
    return chat;
  }
  absl::StatusOr<jinja::Template> parsed = jinja::Template::Parse(*source);
  if (!parsed.ok()) {
    chat.unusable_ =
        fmt::format("the model's chat template cannot be used: {}", Message(parsed.status()));
    return chat;
  }
  chat.template_ = *std::move(parsed);
  chat.special_texts_ = SpecialTexts(file);
  chat.control_tokens_ = ControlTokens(file);
  return chat;
}

absl::StatusOr<Value> ChatTemplate::MakeMessages(Workspace& workspace,
                                                 std::span<const ChatMessage> messages) const {
  ASSIGN_OR_RETURN(const Value list, workspace.NewSequence(jinja::Kind::kList, {}));
  ASSIGN_OR_RETURN(list.sequence->items, workspace.NewItems(messages.size()));
  for (size_t i = 0; i < messages.size(); ++i) {
    const auto& [role, content] = messages[i];
    RETURN_IF_ERROR(CheckRole(role, i));
    const uint32_t mark = MarkOfMessage(i);
    ASSIGN_OR_RETURN(const Value role_text, workspace.NewText(role, IsKnownRole(role) ? 0 : mark));
    const absl::StatusOr<Value> text = workspace.NewText(content, mark);
    if (!text.ok()) {
      return MakeStatus(text.status().code(), "messages[{}].content {}", i, Message(text.status()));
    }
    ASSIGN_OR_RETURN(list.sequence->items[i], workspace.NewDict(2));
    jinja::Dict& message = *list.sequence->items[i].dict;
    RETURN_IF_ERROR(workspace.SetEntry(message, jinja::Borrow(U"role"), role_text));
    RETURN_IF_ERROR(workspace.SetEntry(message, jinja::Borrow(U"content"), *text));
  }
  return list;
}

absl::StatusOr<std::string> ChatTemplate::Checked(Text prompt,
                                                  std::span<const ChatMessage> messages) const {
  std::string utf8 = jinja::ToUtf8(prompt);
  std::vector<uint32_t> marks;  // of each byte
  marks.reserve(utf8.size());
  for (size_t i = 0, at = 0; i < prompt.size(); ++i) {
    // The first byte of a character and those that continue it.
    do marks.push_back(jinja::MarkOf(prompt[i]));
    while (++at < utf8.size() && (utf8[at] & 0xC0) == 0x80);
  }
  for (size_t i = 0; i < utf8.size(); ++i) {
    const SpecialTokens::Match match = control_tokens_->MatchAt(std::string_view(utf8).substr(i));
    const auto end = marks.begin() + static_cast<std::ptrdiff_t>(i + match.size);
    const auto forged = std::find_if(end - static_cast<std::ptrdiff_t>(match.size), end,
                                     [](uint32_t mark) { return mark != 0; });
    if (forged == end) continue;
    const bool by_content = *forged < jinja::kMarkMax && IsKnownRole(messages[*forged - 1].role);
    return InvalidArgument("messages[{}]{} would forge the control token {}", *forged - 1,
                           by_content                   ? ".content"
                           : *forged == jinja::kMarkMax ? " or later"
                                                        : "",
                           utf8.substr(i, match.size));
  }
  if (utf8.empty()) return InvalidArgument("messages: the chat template writes nothing for them");
  return utf8;
}

absl::StatusOr<std::string> ChatTemplate::Render(std::span<const ChatMessage> messages) const {
  if (!template_) {
    return Unimplemented("{}; send text or token ids", unusable_);
  }
  if (messages.empty()) return InvalidArgument("messages is empty");
  size_t characters = 0;
  for (const ChatMessage& message : messages) characters += message.content.size();
  Workspace workspace(
      kTemplateStepsBase + messages.size() * kStepsPerMessage + characters * kStepsPerCharacter,
      kTemplateBytesBase + characters * kBytesPerCharacter, clock_());
  ASSIGN_OR_RETURN(const Value list, MakeMessages(workspace, messages));
  std::vector<NamedValue> variables = {{U"messages", list},
                                       {U"tools", jinja::None()},
                                       {U"documents", jinja::None()},
                                       {U"add_generation_prompt", jinja::Bool(true)}};
  for (const auto& [name, text] : special_texts_) variables.push_back({name, jinja::Borrow(text)});
  const absl::StatusOr<std::u32string> prompt = template_->Render(workspace, variables);
  if (!prompt.ok()) {
    return MakeStatus(prompt.status().code(), "messages: the chat template stops at {}",
                      Message(prompt.status()));
  }
  return Checked(*prompt, messages);
}

}  // namespace trivium::model
