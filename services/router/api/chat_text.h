// The messages of a chat as its template takes them, which knows texts alone: in the place of each
// picture stands a mark that nobody can guess, by which the rendered prompt is cut again.
// Thread-safety: none; plain value.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/model/chat_template.h"
#include "trivium/v1/inference.pb.h"

namespace trivium::router {

class ChatText {
 public:
  ChatText();

  // INVALID_ARGUMENT: what is not UTF-8, content beside parts, a part that is none. The message
  // outlives this.
  absl::Status Add(const v1::Message& message);

  std::span<const model::ChatMessage> messages() const { return messages_; }
  // The files, in order.
  std::span<const std::string* const> pictures() const { return pictures_; }
  size_t bytes() const { return bytes_; }  // of texts

  // What stands before, between and behind the pictures: one piece more than pictures.
  // INVALID_ARGUMENT: the template has not written each of them once, in order.
  absl::StatusOr<std::vector<std::string>> Split(const std::string& prompt) const;

 private:
  std::string MarkOf(size_t picture) const;

  const std::string secret_;
  std::vector<model::ChatMessage> messages_;
  std::vector<const std::string*> pictures_;
  size_t bytes_ = 0;
};

}  // namespace trivium::router
