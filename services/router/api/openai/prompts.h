// What a client asks about: the messages of a chat, or the prompts of completions. Only for the .cc
// files of this folder: it brings in simdjson. Errors as in json_values.h.
// Stateless; safe from any thread.
#pragma once

#include <vector>

#include "services/router/api/openai/json_values.h"
#include "trivium/v1/inference.pb.h"

namespace trivium::router::openai {

// One request with the chat.
absl::Status ReadMessages(Element value, std::vector<v1::GenerateRequest>* out);
// A text, several texts, the ids of one prompt, or of several: a request each.
absl::Status ReadPrompts(Element value, std::vector<v1::GenerateRequest>* out);

}  // namespace trivium::router::openai
