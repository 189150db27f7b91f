// Errors in OpenAI's form: {"error": {"message", "type", "param", "code"}}.
//
// A message that begins with a field's name and a colon gives `param`. 503 with Retry-After stands
// for a cluster without room or without a stage, which clients try again; 429 is left for a caller
// who is over a limit of their own. Stateless; safe from any thread.
#pragma once

#include <string>
#include <string_view>

#include "common/base/status.h"
#include "services/router/http/message.h"

namespace trivium::router::openai {

http::Response ErrorResponse(const absl::Status& status);
// `code` may be empty: null.
http::Response ErrorResponse(int http_status, std::string_view message, std::string_view code);
// The body alone, for an error in the middle of a stream.
std::string ErrorJson(const absl::Status& status);

}  // namespace trivium::router::openai
