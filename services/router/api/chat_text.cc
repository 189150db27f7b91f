#include "services/router/api/chat_text.h"

#include <utility>

#include "common/net/text.h"
#include "services/router/dispatch/random.h"

namespace trivium::router {
namespace {

std::string Hex(const std::string& bytes) {
  std::string hex;
  for (const unsigned char byte : bytes) hex += fmt::format("{:02x}", byte);
  return hex;
}

}  // namespace

ChatText::ChatText() : secret_(Hex(DrawSecret())) {}

std::string ChatText::MarkOf(size_t picture) const {
  return fmt::format("[picture {} {}]", secret_, picture);
}

absl::Status ChatText::Add(const v1::Message& message) {
  if (!net::IsUtf8(message.role()) || !net::IsUtf8(message.content())) {
    return InvalidArgument("is not valid UTF-8");
  }
  if (!message.content().empty() && !message.parts().empty()) {
    return InvalidArgument("has both content and parts");
  }
  std::string content = message.content();
  bytes_ += content.size();
  for (int i = 0; i < message.parts_size(); ++i) {
    const v1::ContentPart& part = message.parts(i);
    if (part.has_picture()) {
      content += MarkOf(pictures_.size());
      pictures_.push_back(&part.picture());
    } else if (part.has_text()) {
      if (!net::IsUtf8(part.text())) return InvalidArgument("parts[{}] is not valid UTF-8", i);
      bytes_ += part.text().size();
      content += part.text();
    } else {
      return InvalidArgument("parts[{}] is neither text nor picture", i);
    }
  }
  messages_.push_back({message.role(), std::move(content)});
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> ChatText::Split(const std::string& prompt) const {
  std::vector<std::string> pieces;
  size_t begin = 0;
  for (size_t i = 0; i < pictures_.size(); ++i) {
    const std::string mark = MarkOf(i);
    const size_t at = prompt.find(mark, begin);
    if (at == std::string::npos) break;
    pieces.push_back(prompt.substr(begin, at - begin));
    begin = at + mark.size();
  }
  pieces.push_back(prompt.substr(begin));
  bool is_whole = pieces.size() == pictures_.size() + 1;
  for (const std::string& piece : pieces) is_whole &= piece.find(secret_) == std::string::npos;
  if (is_whole) return pieces;
  return InvalidArgument("chat.messages: the chat template does not write each picture once");
}

}  // namespace trivium::router
