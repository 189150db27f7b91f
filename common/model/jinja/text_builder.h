// A text that grows within a workspace's bounds. For one thread.
#pragma once

#include <algorithm>
#include <string>
#include <utility>

#include "common/model/jinja/value.h"

namespace trivium::model::jinja {

class TextBuilder {
 public:
  explicit TextBuilder(Workspace& workspace) : workspace_(workspace) {}

  absl::Status Append(Text text) {
    RETURN_IF_ERROR(workspace_.Charge(text.size(), sizeof(char32_t)));
    text_.append(text);
    return absl::OkStatus();
  }
  absl::Status Append(std::string_view ascii) {
    RETURN_IF_ERROR(workspace_.Charge(ascii.size(), sizeof(char32_t)));
    AppendAscii(ascii, text_);
    return absl::OkStatus();
  }
  absl::Status Repeat(char32_t c, size_t count) {
    RETURN_IF_ERROR(workspace_.Charge(count, sizeof(char32_t)));
    text_.append(count, c);
    return absl::OkStatus();
  }

  absl::Status AppendTimes(Text text, size_t times) {
    RETURN_IF_ERROR(workspace_.Charge(times, std::max<size_t>(1, text.size() * sizeof(char32_t))));
    text_.reserve(text_.size() + text.size() * times);
    for (size_t i = 0; i < times; ++i) text_.append(text);
    return absl::OkStatus();
  }

  absl::StatusOr<Value> Finish() const { return workspace_.NewText(text_); }
  std::u32string Take() { return std::move(text_); }
  Text text() const { return text_; }
  Workspace& workspace() { return workspace_; }

 private:
  Workspace& workspace_;
  std::u32string text_;
};

}  // namespace trivium::model::jinja
