// Renders chat messages into the prompt that a model was trained on, by the Jinja template in its
// file, run in the bounded interpreter of jinja/. Immutable; safe from any thread.
//
// Invariant: no control token of a rendered prompt holds a character that a message brought in,
// whatever the template does with its messages.
#pragma once

#include <ctime>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/status.h"
#include "common/model/gguf.h"
#include "common/model/jinja/template.h"
#include "common/model/special_tokens.h"

namespace trivium::model {

// What rendering may take, beside what each message and character adds: some milliseconds.
constexpr uint64_t kTemplateStepsBase = 50'000;
constexpr size_t kTemplateBytesBase = size_t{2} << 20;

struct ChatMessage {
  std::string role;  // system, user, assistant, or what else the template takes
  std::string content;
};

class ChatTemplate {
 public:
  // A file without a template, or with one that the interpreter cannot parse, loads; Render then
  // answers UNIMPLEMENTED. `clock`: seconds since 1970, for templates that write the date.
  static ChatTemplate FromFile(const GgufFile& file, std::time_t (*clock)() = SystemClock);

  // The prompt, ending in the opening of the assistant's turn where the template has one. To be
  // tokenised with parse_special. INVALID_ARGUMENT for no messages, what is not UTF-8, a role that
  // is no name or content that would forge a control token such as "<|im_end|>" (naming
  // messages[i]), and for what the template itself refuses. RESOURCE_EXHAUSTED: the template does
  // not end within bounds that grow with the messages.
  absl::StatusOr<std::string> Render(std::span<const ChatMessage> messages) const;

 private:
  static std::time_t SystemClock() { return std::time(nullptr); }

  absl::StatusOr<jinja::Value> MakeMessages(jinja::Workspace& workspace,
                                            std::span<const ChatMessage> messages) const;
  absl::StatusOr<std::string> Checked(jinja::Text prompt,
                                      std::span<const ChatMessage> messages) const;

  std::optional<jinja::Template> template_;
  std::string unusable_;  // why there is no template
  // "bos_token" and so on, with their texts.
  std::vector<std::pair<std::u32string, std::u32string>> special_texts_;
  std::shared_ptr<const SpecialTokens> control_tokens_;
  std::time_t (*clock_)() = SystemClock;
};

}  // namespace trivium::model
