// Answers in OpenAI's form: the objects "chat.completion", "chat.completion.chunk" and
// "text_completion". All of it is valid UTF-8 whatever the tokens are.
// Thread-safety: none; one call at a time.
#pragma once

#include <map>
#include <set>
#include <string>

#include "common/model/tokenizer.h"
#include "services/router/api/openai/question.h"
#include "trivium/v1/inference.pb.h"

namespace trivium::router::openai {

// What every object of one answer says.
struct AnswerHead {
  Endpoint endpoint = Endpoint::kChat;
  std::string id, model, fingerprint;
  int64_t created = 0;  // seconds since 1970
  bool has_logprobs = false;
  bool wants_usage = false;
  const model::Tokenizer* tokenizer = nullptr;  // outlives the answer
  std::set<int32_t> end_ids;                    // end an answer, and are no part of what it shows
};

// Server-sent events, each "data: {…}\n\n".
class StreamJson {
 public:
  explicit StreamJson(AnswerHead head) : head_(std::move(head)) {}
  std::string Add(const v1::Delta& delta);   // possibly empty
  std::string Finish(const v1::Done& done);  // to "data: [DONE]\n\n"

 private:
  std::string Open(int choice);

  const AnswerHead head_;
  std::set<int> open_;            // choices whose role has been said
  std::map<int, size_t> offset_;  // characters of a choice's tokens so far
};

// One object in the end.
class WholeJson {
 public:
  explicit WholeJson(AnswerHead head) : head_(std::move(head)) {}
  void Add(const v1::Delta& delta);
  std::string Finish(const v1::Done& done) const;

 private:
  const AnswerHead head_;
  std::map<int, v1::Delta> choices_;  // all deltas of a choice as one
};

}  // namespace trivium::router::openai
