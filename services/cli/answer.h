// One answer, collected from the messages of a Generate stream, and its forms for people and
// programs. One thread at a time.
#pragma once

#include <string>
#include <vector>

#include "common/base/status.h"
#include "trivium/v1/inference.pb.h"

namespace trivium::cli {

// What a stream must keep to: indices from 0 without gap or repetition in each choice, of the
// prompt's tokens before the first of the answer, nothing after `done`, `done` at the end. Anything
// else is DATA_LOSS.
class Answer {
 public:
  struct Choice {
    std::string text;
    std::vector<v1::OutputToken> tokens;
  };

  absl::Status Add(const v1::GenerateResponse& response);
  // At the end of a stream that the router called good.
  absl::Status CheckComplete() const;

  // Of the first choice: of most requests, the only one.
  const std::string& text() const { return choices_[0].text; }
  const std::vector<v1::OutputToken>& tokens() const { return choices_[0].tokens; }
  const std::vector<Choice>& choices() const { return choices_; }  // at least one
  // Of the prompt, where their logprobs were asked for.
  const std::vector<v1::OutputToken>& prompt_tokens() const { return prompt_tokens_; }
  const v1::Done& done() const { return done_; }
  bool complete() const { return complete_; }

  // One JSON object: text, token ids, logprobs of answer and prompt (null where none were asked
  // for), usage, timings, workers. Where there are several choices, what each has of its own stands
  // in the array "choices".
  std::string Json() const;
  // "40 tokens, first after 120 ms, 35.1 tokens/s; prefill-0 to decode-0; KV …".
  std::string Figures() const;

 private:
  bool has_tokens() const;

  std::vector<Choice> choices_{1};
  std::vector<v1::OutputToken> prompt_tokens_;
  v1::Done done_;
  bool complete_ = false;
};

// Text without the control characters that a terminal would obey, newline and tab excepted.
std::string ForTerminal(std::string_view text);

// "1,234,567".
std::string Grouped(int64_t number);

}  // namespace trivium::cli
