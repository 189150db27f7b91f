// Renders chat messages into the prompt that a model was trained on. ChatML only; a model with
// another template is refused by name rather than answered in the wrong format. Immutable; safe
// from any thread.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "common/base/status.h"
#include "common/model/gguf.h"
#include "common/model/special_tokens.h"

namespace trivium::model {

struct ChatMessage {
  std::string role;  // system, user or assistant
  std::string content;
};

class ChatTemplate {
 public:
  // A file without a template, or with another than ChatML, loads; Render then answers
  // UNIMPLEMENTED.
  static ChatTemplate FromFile(const GgufFile& file);

  // The prompt, ending in the opening of the assistant's turn. To be tokenised with parse_special.
  // INVALID_ARGUMENT for no messages, an unknown role (naming messages[i].role), or content that
  // would forge a control token such as "<|im_end|>".
  absl::StatusOr<std::string> Render(std::span<const ChatMessage> messages) const;

 private:
  absl::Status CheckMessage(const ChatMessage& message, size_t index) const;

  bool is_chatml_ = false;
  std::string
      default_system_;  // what the template itself puts first when there is no system message
  std::shared_ptr<const SpecialTokens> control_tokens_;
};

}  // namespace trivium::model
