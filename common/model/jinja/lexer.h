// Cuts a template's source into tokens, with the white space rules that Hugging Face sets:
// trim_blocks, lstrip_blocks, no trailing newline. Stateless; safe from any thread.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "common/model/jinja/text.h"

namespace trivium::model::jinja {

enum class TokenKind : uint8_t {
  kData,  // text between the tags
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  int line = 0;
  Text text;  // of a string: what it stands for
  int64_t integer = 0;
  double number = 0;
};

// Texts that tokens point to are added to `texts`. INVALID_ARGUMENT names the line. The last token
// is kEnd.
absl::StatusOr<std::vector<Token>> Tokenise(std::string_view source,
                                            std::deque<std::u32string>& texts);

}  // namespace trivium::model::jinja
