#include "services/router/api/openai/answer_json.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

namespace trivium::router::openai {
namespace {

using Json = nlohmann::ordered_json;
using Tokens = google::protobuf::RepeatedPtrField<v1::OutputToken>;

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}
std::string Event(const Json& json) { return "data: " + Dump(json) + "\n\n"; }

// JSON has no infinity; this is what clients of the API know for "impossible".
double Finite(float logprob) { return std::isfinite(logprob) ? logprob : -9999.0; }

// The token's bytes as text: what is no UTF-8 becomes U+FFFD here, and is exact in `bytes`.
std::string TokenText(const AnswerHead& head, int32_t id) {
  const std::string_view piece = head.tokenizer->Piece(id, true);
  return Json::parse(Dump(Json(piece))).get<std::string>();
}

Json ChatToken(const AnswerHead& head, int32_t id, float logprob) {
  Json bytes = Json::array();
  for (const unsigned char byte : head.tokenizer->Piece(id, true)) bytes.push_back(byte);
  return {{"token", TokenText(head, id)}, {"logprob", Finite(logprob)}, {"bytes", bytes}};
}

Json ChatLogprobs(const AnswerHead& head, const Tokens& tokens) {
  Json content = Json::array();
  for (const v1::OutputToken& token : tokens) {
    if (head.end_ids.count(token.id()) > 0) continue;
    Json one = ChatToken(head, token.id(), token.logprob());
    one["top_logprobs"] = Json::array();
    for (const v1::TokenLogprob& top : token.top()) {
      one["top_logprobs"].push_back(ChatToken(head, top.id(), top.logprob()));
    }
    content.push_back(std::move(one));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

size_t Characters(std::string_view text) {
  size_t count = 0;
  for (const unsigned char byte : text) count += (byte & 0xc0) != 0x80;
  return count;
}

Json TextLogprobs(const AnswerHead& head, const Tokens& tokens, size_t* offset) {
  Json texts = Json::array(), logprobs = Json::array(), tops = Json::array(),
       offsets = Json::array();
  for (const v1::OutputToken& token : tokens) {
    if (head.end_ids.count(token.id()) > 0) continue;
    const std::string text = TokenText(head, token.id());
    Json top = Json::object();
    for (const v1::TokenLogprob& one : token.top()) {
      top[TokenText(head, one.id())] = Finite(one.logprob());
    }
    offsets.push_back(*offset);
    *offset += Characters(text);
    texts.push_back(text);
    logprobs.push_back(Finite(token.logprob()));
    tops.push_back(std::move(top));
  }
  return {{"tokens", std::move(texts)},
          {"token_logprobs", std::move(logprobs)},
          {"top_logprobs", std::move(tops)},
          {"text_offset", std::move(offsets)}};
}

Json Logprobs(const AnswerHead& head, const Tokens& tokens, size_t* offset) {
  if (!head.has_logprobs) return nullptr;
  return head.endpoint == Endpoint::kChat ? ChatLogprobs(head, tokens)
                                          : TextLogprobs(head, tokens, offset);
}

Json UsageOf(const v1::Done& done) {
  const v1::Usage& usage = done.usage();
  return {{"prompt_tokens", usage.prompt_tokens()},
          {"completion_tokens", usage.completion_tokens()},
          {"total_tokens", int64_t{usage.prompt_tokens()} + usage.completion_tokens()},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_prompt_tokens()}}}};
}

// Beside OpenAI's fields: that nothing was computed for this answer.
void Mark(const v1::Done& done, Json* frame) {
  if (!done.has_cached()) return;
  const v1::CacheMark& mark = done.cached();
  (*frame)["cached"] = {{"category", mark.category()},
                        {"age_s", mark.age_s()},
                        {"same_words", mark.same_words()},
                        {"relaxed", mark.relaxed()}};
}

Json Frame(const AnswerHead& head, std::string_view object, Json choices) {
  return {{"id", head.id},
          {"object", object},
          {"created", head.created},
          {"model", head.model},
          {"system_fingerprint", head.fingerprint},
          {"choices", std::move(choices)}};
}

// A chunk with one choice. `content` is the delta of a chat, or the text of a completion.
Json Chunk(const AnswerHead& head, int choice, Json content, Json logprobs, Json finish_reason) {
  const bool is_chat = head.endpoint == Endpoint::kChat;
  Json one = {{"index", choice},
              {is_chat ? "delta" : "text", std::move(content)},
              {"logprobs", std::move(logprobs)},
              {"finish_reason", std::move(finish_reason)}};
  Json frame = Frame(head, is_chat ? "chat.completion.chunk" : "text_completion",
                     Json::array({std::move(one)}));
  if (head.wants_usage) frame["usage"] = nullptr;
  return frame;
}

}  // namespace

std::string StreamJson::Open(int choice) {
  if (head_.endpoint != Endpoint::kChat || !open_.insert(choice).second) return "";
  return Event(Chunk(head_, choice, {{"role", "assistant"}, {"content", ""}}, nullptr, nullptr));
}

std::string StreamJson::Add(const v1::Delta& delta) {
  const bool is_chat = head_.endpoint == Endpoint::kChat;
  std::string events = Open(delta.choice());
  if (delta.text().empty() && !head_.has_logprobs) return events;
  Json content = delta.text();
  if (is_chat) content = Json{{"content", delta.text()}};
  Json logprobs = Logprobs(head_, delta.tokens(), &offset_[delta.choice()]);
  return events +
         Event(Chunk(head_, delta.choice(), std::move(content), std::move(logprobs), nullptr));
}

std::string StreamJson::Finish(const v1::Done& done) {
  const bool is_chat = head_.endpoint == Endpoint::kChat;
  std::string events;
  for (int i = 0; i < done.choices_size(); ++i) {
    Json last = Chunk(head_, i, is_chat ? Json::object() : Json(""), nullptr,
                      done.choices(i).finish_reason());
    Mark(done, &last);
    events += Open(i) + Event(last);
  }
  if (head_.wants_usage) {
    Json last = Frame(head_, is_chat ? "chat.completion.chunk" : "text_completion", Json::array());
    last["usage"] = UsageOf(done);
    events += Event(last);
  }
  return events + "data: [DONE]\n\n";
}

void WholeJson::Add(const v1::Delta& delta) {
  v1::Delta& all = choices_[delta.choice()];
  all.mutable_text()->append(delta.text());
  if (head_.has_logprobs) all.mutable_tokens()->MergeFrom(delta.tokens());
}

std::string WholeJson::Finish(const v1::Done& done) const {
  const bool is_chat = head_.endpoint == Endpoint::kChat;
  Json choices = Json::array();
  for (int i = 0; i < done.choices_size(); ++i) {
    const auto found = choices_.find(i);
    const v1::Delta all = found == choices_.end() ? v1::Delta() : found->second;
    size_t offset = 0;
    Json choice = {{"index", i}};
    if (is_chat) {
      choice["message"] = {{"role", "assistant"}, {"content", all.text()}, {"refusal", nullptr}};
    } else {
      choice["text"] = all.text();
    }
    choice["logprobs"] = Logprobs(head_, all.tokens(), &offset);
    choice["finish_reason"] = done.choices(i).finish_reason();
    choices.push_back(std::move(choice));
  }
  Json frame = Frame(head_, is_chat ? "chat.completion" : "text_completion", std::move(choices));
  frame["usage"] = UsageOf(done);
  Mark(done, &frame);
  return Dump(frame);
}

}  // namespace trivium::router::openai
