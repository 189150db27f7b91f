#include "common/model/chat_template.h"

#include <algorithm>

namespace trivium::model {
namespace {

constexpr std::string_view kOpen = "<|im_start|>";
constexpr std::string_view kClose = "<|im_end|>";
constexpr std::string_view kTemplateKey = "tokenizer.chat_template";
// Real ones have a few kilobytes; reading takes time in proportion to the square.
constexpr size_t kMaxTemplateBytes = 64 * 1024;

void ReplaceAll(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

// The template in one spelling: single quotes, message.role, no spaces, real newlines.
std::string Normalised(std::string_view source) {
  std::string text(source);
  std::erase_if(text, [](char c) { return c == ' ' || c == '\t'; });
  ReplaceAll(text, "\\n", "\n");
  ReplaceAll(text, "\"", "'");
  ReplaceAll(text, "message['role']", "message.role");
  ReplaceAll(text, "message['content']", "message.content");
  return text;
}

bool IsChatml(std::string_view source) {
  const std::string text = Normalised(source);
  return text.find("'<|im_start|>'+message.role+'\n'+message.content+'<|im_end|>'") !=
             std::string::npos &&
         text.find("'<|im_start|>assistant\n'") != std::string::npos;
}

// The text of a system message that stands in the template as a literal; empty when there is none.
std::string DefaultSystem(std::string_view source) {
  std::string text(source);
  ReplaceAll(text, "\\n", "\n");
  const std::string opening = std::string(kOpen) + "system\n";
  for (size_t at = text.find(opening); at != std::string::npos; at = text.find(opening, at + 1)) {
    const size_t begin = at + opening.size();
    const size_t end = text.find(kClose, begin);
    if (end == std::string::npos || at == 0) break;
    const char quote = text[at - 1];
    std::string literal;
    size_t i = begin;
    for (; i < end && text[i] != quote; ++i) {
      if (text[i] == '\\' && i + 1 < end) ++i;
      literal += text[i];
    }
    // A quote before the end means that a variable's text follows: no literal.
    if (i == end) return literal;
  }
  return "";
}

std::shared_ptr<const SpecialTokens> ControlTokens(const GgufFile& file) {
  auto control = std::make_shared<SpecialTokens>();
  control->Add(kOpen, 0);
  control->Add(kClose, 0);
  auto texts = file.Strings("tokenizer.ggml.tokens");
  auto types = file.Ints("tokenizer.ggml.token_type");
  if (!texts.ok() || !types.ok()) return control;
  constexpr int64_t kControlType = 3;
  for (size_t i = 0; i < std::min(texts->size(), types->size()); ++i) {
    if ((*types)[i] == kControlType) control->Add((*texts)[i], static_cast<int32_t>(i));
  }
  return control;
}

std::string RenderMessage(std::string_view role, std::string_view content) {
  return fmt::format("{}{}\n{}{}\n", kOpen, role, content, kClose);
}

}  // namespace

ChatTemplate ChatTemplate::FromFile(const GgufFile& file) {
  ChatTemplate chat;
  absl::StatusOr<std::string_view> source = file.String(kTemplateKey);
  if (!source.ok() || source->size() > kMaxTemplateBytes || !IsChatml(*source)) return chat;
  chat.is_chatml_ = true;
  chat.default_system_ = DefaultSystem(*source);
  chat.control_tokens_ = ControlTokens(file);
  return chat;
}

absl::Status ChatTemplate::CheckMessage(const ChatMessage& message, size_t index) const {
  if (message.role != "system" && message.role != "user" && message.role != "assistant") {
    return InvalidArgument("messages[{}].role \"{}\" is not system, user or assistant", index,
                           message.role);
  }
  // The whole turn is searched, so that content and template cannot form a token between them.
  const std::string turn = RenderMessage(message.role, message.content);
  const size_t close = turn.size() - kClose.size() - 1;
  for (size_t i = kOpen.size(); i < close; ++i) {
    const SpecialTokens::Match match = control_tokens_->MatchAt(std::string_view(turn).substr(i));
    if (match.size == 0) continue;
    return InvalidArgument("messages[{}].content holds the control token {}", index,
                           turn.substr(i, match.size));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ChatTemplate::Render(std::span<const ChatMessage> messages) const {
  if (!is_chatml_) {
    return MakeStatus(absl::StatusCode::kUnimplemented,
                      "the model's chat template is missing or not ChatML; send text or token ids");
  }
  if (messages.empty()) return InvalidArgument("messages is empty");
  std::string prompt;
  if (messages[0].role != "system" && !default_system_.empty()) {
    prompt = RenderMessage("system", default_system_);
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    RETURN_IF_ERROR(CheckMessage(messages[i], i));
    prompt += RenderMessage(messages[i].role, messages[i].content);
  }
  return prompt += fmt::format("{}assistant\n", kOpen);
}

}  // namespace trivium::model
