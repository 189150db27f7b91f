// A request in OpenAI's JSON turned into requests of ours.
//
// Fields that are not known are ignored, as is null; a known field of a wrong type is an error.
// Errors are INVALID_ARGUMENT and begin with the field's name as the client wrote it:
// "messages[0].content: must be a string, is a number". Stateless; safe from any thread. Not for a
// thread that must not wait: a body may have megabytes.
#pragma once

#include <string_view>
#include <vector>

#include "common/base/status.h"
#include "trivium/v1/inference.pb.h"

namespace trivium::router::openai {

enum class Endpoint { kChat, kCompletions };

struct Question {
  Endpoint endpoint = Endpoint::kChat;
  std::vector<v1::GenerateRequest>
      requests;  // one a prompt; at least one, equal but for the prompt
  bool is_stream = false;
  bool wants_usage = false;              // a chunk of its own at the end of a stream
  bool names_completion_tokens = false;  // max_completion_tokens, not max_tokens
};

// `body` is the whole of a request's body, of any bytes.
absl::StatusOr<Question> ParseQuestion(Endpoint endpoint, std::string_view body);

// An error about a field of `question.requests[prompt]` ("sampling.top_p: …") in the client's terms
// ("top_p: …").
absl::Status InClientTerms(const absl::Status& status, const Question& question, size_t prompt);

}  // namespace trivium::router::openai
