#include "services/router/api/openai/question.h"

#include <simdjson.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "common/net/text.h"

namespace trivium::router::openai {
namespace {

using Element = simdjson::dom::element;
using Type = simdjson::dom::element_type;

constexpr size_t kPromptsMax = 64;
constexpr size_t kDepthMax = 64;
constexpr size_t kShownMax = 40;

// A question while its fields are read in whatever order they come.
struct Draft {
  Question question;
  v1::GenerateRequest shared;                // everything but the prompt
  std::vector<v1::GenerateRequest> prompts;  // nothing but the prompt
  std::optional<int32_t> best_of;
  bool has_logprobs = false, has_tools = false, has_stream_options = false;
  std::string tool_choice = "auto";

  v1::Sampling& sampling() { return *shared.mutable_sampling(); }
};

// Errors of a reader do not name the field; those of a part of it begin with [3] or .name.
absl::Status At(std::string_view field, const absl::Status& status) {
  if (status.ok()) return status;
  const std::string what = Message(status);
  const bool goes_on = !what.empty() && (what[0] == '[' || what[0] == '.');
  return InvalidArgument("{}{}{}", field, goes_on ? "" : ": ", what);
}

std::string_view KindOf(Element value) {
  switch (value.type()) {
    case Type::ARRAY:
      return "an array";
    case Type::OBJECT:
      return "an object";
    case Type::STRING:
      return "a string";
    case Type::BOOL:
      return "a truth value";
    case Type::NULL_VALUE:
      return "null";
    default:
      return "a number";
  }
}

absl::Status WrongType(Element value, std::string_view wanted) {
  return InvalidArgument("must be {}, is {}", wanted, KindOf(value));
}

// ---- Plain values ----

absl::StatusOr<bool> Bool(Element value) {
  bool out = false;
  if (value.get(out) != simdjson::SUCCESS) return WrongType(value, "true or false");
  return out;
}

absl::StatusOr<std::string> String(Element value) {
  std::string_view out;
  if (value.get(out) != simdjson::SUCCESS) return WrongType(value, "a string");
  return std::string(out);
}

absl::StatusOr<float> Number(Element value) {
  double out = 0;
  if (value.get(out) != simdjson::SUCCESS) return WrongType(value, "a number");
  constexpr double kMax = std::numeric_limits<float>::max();
  return static_cast<float>(std::clamp(out, -kMax, kMax));
}

absl::StatusOr<int32_t> Integer(Element value) {
  int64_t out = 0;
  if (value.is<double>() && !value.is<int64_t>() && !value.is<uint64_t>()) {
    return InvalidArgument("must be a whole number");
  }
  const auto error = value.get(out);
  if (error == simdjson::INCORRECT_TYPE) return WrongType(value, "a whole number");
  if (error != simdjson::SUCCESS || out != static_cast<int32_t>(out)) {
    return InvalidArgument("does not fit in 32 bits");
  }
  return static_cast<int32_t>(out);
}

absl::StatusOr<simdjson::dom::array> Array(Element value, std::string_view wanted) {
  simdjson::dom::array out;
  if (value.get(out) != simdjson::SUCCESS) return WrongType(value, wanted);
  return out;
}

absl::StatusOr<simdjson::dom::object> Object(Element value) {
  simdjson::dom::object out;
  if (value.get(out) != simdjson::SUCCESS) return WrongType(value, "an object");
  return out;
}

template <auto kSet>
absl::Status SetFloat(Element value, Draft* draft) {
  ASSIGN_OR_RETURN(const float number, Number(value));
  (draft->sampling().*kSet)(number);
  return absl::OkStatus();
}

template <auto kSet>
absl::Status SetInteger(Element value, Draft* draft) {
  ASSIGN_OR_RETURN(const int32_t number, Integer(value));
  (draft->sampling().*kSet)(number);
  return absl::OkStatus();
}

template <bool Question::*kField>
absl::Status SetQuestion(Element value, Draft* draft) {
  ASSIGN_OR_RETURN(draft->question.*kField, Bool(value));
  return absl::OkStatus();
}

// ---- Fields of both endpoints ----

absl::Status SetModel(Element value, Draft* draft) {
  ASSIGN_OR_RETURN(*draft->shared.mutable_model(), String(value));
  return absl::OkStatus();
}

absl::Status SetPriority(Element value, Draft* draft) {
  ASSIGN_OR_RETURN(const int32_t priority, Integer(value));
  draft->shared.set_priority(priority);
  return absl::OkStatus();
}

absl::Status SetSeed(Element value, Draft* draft) {
  int64_t is_signed = 0;
  uint64_t seed = 0;
  if (value.get(is_signed) == simdjson::SUCCESS) {
    seed = static_cast<uint64_t>(is_signed);
  } else if (value.get(seed) != simdjson::SUCCESS) {
    return WrongType(value, "a whole number");
  }
  draft->sampling().set_seed(seed);
  return absl::OkStatus();
}

// -1 is what others write for "off".
absl::Status SetTopK(Element value, Draft* draft) {
  ASSIGN_OR_RETURN(const int32_t top_k, Integer(value));
  draft->sampling().set_top_k(top_k == -1 ? 0 : top_k);
  return absl::OkStatus();
}

absl::Status SetStop(Element value, Draft* draft) {
  draft->sampling().clear_stop();
  if (value.is_string()) {
    ASSIGN_OR_RETURN(*draft->sampling().add_stop(), String(value));
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const auto items, Array(value, "a string or an array of strings"));
  size_t index = 0;
  for (const Element item : items) {
    const absl::StatusOr<std::string> text = String(item);
    if (!text.ok()) return At(fmt::format("[{}]", index), text.status());
    draft->sampling().add_stop(*text);
    ++index;
  }
  return absl::OkStatus();
}

absl::Status SetStopTokens(Element value, Draft* draft) {
  draft->sampling().clear_stop_token_ids();
  ASSIGN_OR_RETURN(const auto items, Array(value, "an array of token ids"));
  size_t index = 0;
  for (const Element item : items) {
    const absl::StatusOr<int32_t> id = Integer(item);
    if (!id.ok()) return At(fmt::format("[{}]", index), id.status());
    draft->sampling().add_stop_token_ids(*id);
    ++index;
  }
  return absl::OkStatus();
}

absl::Status SetIgnoreEos(Element value, Draft* draft) {
  ASSIGN_OR_RETURN(const bool ignores, Bool(value));
  draft->sampling().set_ignore_eos(ignores);
  return absl::OkStatus();
}

absl::Status SetLogitBias(Element value, Draft* draft) {
  draft->sampling().clear_logit_bias();
  ASSIGN_OR_RETURN(const auto biases, Object(value));
  for (const auto& [key, bias] : biases) {
    int32_t id = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size()) {
      return InvalidArgument("\"{}\" is no token id", net::Escape(key, kShownMax));
    }
    const absl::StatusOr<float> number = Number(bias);
    if (!number.ok()) return At(fmt::format("[{}]", id), number.status());
    (*draft->sampling().mutable_logit_bias())[id] = *number;
  }
  return absl::OkStatus();
}

absl::Status SetStreamOptions(Element value, Draft* draft) {
  ASSIGN_OR_RETURN(const auto options, Object(value));
  draft->has_stream_options = true;
  for (const auto& [key, option] : options) {
    if (key != "include_usage" || option.is_null()) continue;
    const absl::Status status = SetQuestion<&Question::wants_usage>(option, draft);
    if (!status.ok()) return At(".include_usage", status);
  }
  return absl::OkStatus();
}

// ---- Fields of chat ----

absl::Status AppendPart(Element value, std::string* content) {
  ASSIGN_OR_RETURN(const auto part, Object(value));
  std::optional<std::string> text;
  std::string type;
  for (const auto& [key, field] : part) {
    if (key != "type" && key != "text") continue;
    const absl::StatusOr<std::string> string = String(field);
    if (!string.ok()) return At(fmt::format(".{}", key), string.status());
    (key == "type" ? type : text.emplace()) = *string;
  }
  if (type != "text") {
    return InvalidArgument(".type: is \"{}\"; \"text\" alone is supported",
                           net::Escape(type, kShownMax));
  }
  if (!text.has_value()) return InvalidArgument(".text: is required");
  *content += *text;
  return absl::OkStatus();
}

absl::StatusOr<std::string> Content(Element value) {
  if (value.is_string()) return String(value);
  ASSIGN_OR_RETURN(const auto parts, Array(value, "a string or an array of parts"));
  std::string content;
  size_t index = 0;
  for (const Element part : parts) {
    const absl::Status status = AppendPart(part, &content);
    if (!status.ok()) return At(fmt::format("[{}]", index), status);
    ++index;
  }
  return content;
}

absl::Status SetMessageField(std::string_view key, Element field, v1::Message* out) {
  if (key == "role") {
    ASSIGN_OR_RETURN(const std::string role, String(field));
    // The newer name of the same thing, which templates do not know.
    out->set_role(role == "developer" ? "system" : role);
  } else if (key == "content") {
    ASSIGN_OR_RETURN(*out->mutable_content(), Content(field));
  } else if (key == "tool_calls" || key == "function_call") {
    return InvalidArgument("calls of tools are not supported");
  }
  return absl::OkStatus();
}

absl::Status AddMessage(Element value, v1::Message* out) {
  ASSIGN_OR_RETURN(const auto message, Object(value));
  bool has_role = false, has_content = false;
  for (const auto& [key, field] : message) {
    if (field.is_null()) continue;
    has_role |= key == "role";
    has_content |= key == "content";
    const absl::Status status = SetMessageField(key, field, out);
    if (!status.ok()) return At(fmt::format(".{}", key), status);
  }
  if (!has_role) return InvalidArgument(".role: is required");
  if (!has_content) return InvalidArgument(".content: is required");
  return absl::OkStatus();
}

absl::Status SetMessages(Element value, Draft* draft) {
  ASSIGN_OR_RETURN(const auto items, Array(value, "an array of messages"));
  draft->prompts.assign(1, {});
  v1::Messages* messages = draft->prompts[0].mutable_chat();
  for (const Element item : items) {
    const absl::Status status = AddMessage(item, messages->add_messages());
    if (!status.ok()) return At(fmt::format("[{}]", messages->messages_size() - 1), status);
  }
  return absl::OkStatus();
}

absl::Status SetChatLogprobs(Element value, Draft* draft) {
  ASSIGN_OR_RETURN(draft->has_logprobs, Bool(value));
  return absl::OkStatus();
}

absl::Status SetMaxCompletionTokens(Element value, Draft* draft) {
  draft->question.names_completion_tokens = true;
  return SetInteger<&v1::Sampling::set_max_tokens>(value, draft);
}

absl::Status SetTools(Element value, Draft* draft) {
  ASSIGN_OR_RETURN(const auto tools, Array(value, "an array"));
  draft->has_tools = tools.begin() != tools.end();
  return absl::OkStatus();
}

absl::Status SetToolChoice(Element value, Draft* draft) {
  const absl::StatusOr<std::string> choice = String(value);
  draft->tool_choice = choice.ok() ? *choice : "a named tool";
  return absl::OkStatus();
}

absl::Status CheckResponseFormat(Element value, Draft*) {
  ASSIGN_OR_RETURN(const auto format, Object(value));
  std::string_view type;
  if (format["type"].get(type) != simdjson::SUCCESS) {
    return InvalidArgument(".type: must be a string");
  }
  if (type == "text") return absl::OkStatus();
  return InvalidArgument("\"{}\" is not supported; \"text\" is", net::Escape(type, kShownMax));
}

absl::Status CheckModalities(Element value, Draft*) {
  ASSIGN_OR_RETURN(const auto items, Array(value, "an array of strings"));
  for (const Element item : items) {
    ASSIGN_OR_RETURN(const std::string name, String(item));
    if (name != "text") return InvalidArgument("\"text\" alone is supported");
  }
  return absl::OkStatus();
}

// ---- Fields of completions ----

absl::Status SetIds(simdjson::dom::array items, v1::GenerateRequest* out) {
  v1::TokenIds* ids = out->mutable_token_ids();
  for (const Element item : items) {
    const absl::StatusOr<int32_t> id = Integer(item);
    if (!id.ok()) return At(fmt::format("[{}]", ids->ids_size()), id.status());
    ids->add_ids(*id);
  }
  return absl::OkStatus();
}

absl::Status SetOnePrompt(Element value, v1::GenerateRequest* out) {
  if (value.is_array()) return SetIds(simdjson::dom::array(value), out);
  if (!value.is_string()) return WrongType(value, "a string or an array of token ids");
  ASSIGN_OR_RETURN(*out->mutable_text(), String(value));
  return absl::OkStatus();
}

// A text, several texts, the ids of a prompt, or of several.
absl::Status SetPrompt(Element value, Draft* draft) {
  draft->prompts.clear();
  const bool is_list = value.is_array();
  if (!is_list) return SetOnePrompt(value, &draft->prompts.emplace_back());
  ASSIGN_OR_RETURN(const auto items, Array(value, ""));
  if (items.begin() == items.end()) return InvalidArgument("is empty");
  if ((*items.begin()).is_number()) return SetIds(items, &draft->prompts.emplace_back());
  for (const Element item : items) {
    if (draft->prompts.size() == kPromptsMax) {
      return InvalidArgument("at most {} prompts are allowed in one request", kPromptsMax);
    }
    const absl::Status status = SetOnePrompt(item, &draft->prompts.emplace_back());
    if (!status.ok()) return At(fmt::format("[{}]", draft->prompts.size() - 1), status);
  }
  return absl::OkStatus();
}

absl::Status SetBestOf(Element value, Draft* draft) {
  ASSIGN_OR_RETURN(draft->best_of, Integer(value));
  return absl::OkStatus();
}

absl::Status CheckEcho(Element value, Draft*) {
  ASSIGN_OR_RETURN(const bool echoes, Bool(value));
  return echoes ? InvalidArgument("is not supported") : absl::OkStatus();
}

absl::Status CheckSuffix(Element value, Draft*) {
  ASSIGN_OR_RETURN(const std::string suffix, String(value));
  return suffix.empty() ? absl::OkStatus() : InvalidArgument("is not supported");
}

// ---- The whole ----

using Setter = absl::Status (*)(Element, Draft*);
using Fields = std::map<std::string_view, Setter>;

const Fields& SharedFields() {
  using S = v1::Sampling;
  static const auto* fields = new Fields{
      {"model", SetModel},
      {"temperature", SetFloat<&S::set_temperature>},
      {"top_p", SetFloat<&S::set_top_p>},
      {"top_k", SetTopK},
      {"min_p", SetFloat<&S::set_min_p>},
      {"typical_p", SetFloat<&S::set_typical_p>},
      {"repetition_penalty", SetFloat<&S::set_repetition_penalty>},
      {"presence_penalty", SetFloat<&S::set_presence_penalty>},
      {"frequency_penalty", SetFloat<&S::set_frequency_penalty>},
      {"logit_bias", SetLogitBias},
      {"seed", SetSeed},
      {"n", SetInteger<&S::set_n>},
      {"max_tokens", SetInteger<&S::set_max_tokens>},
      {"min_tokens", SetInteger<&S::set_min_tokens>},
      {"ignore_eos", SetIgnoreEos},
      {"stop", SetStop},
      {"stop_token_ids", SetStopTokens},
      {"stream", SetQuestion<&Question::is_stream>},
      {"stream_options", SetStreamOptions},
      {"priority", SetPriority},
  };
  return *fields;
}

const Fields& OwnFields(Endpoint endpoint) {
  using S = v1::Sampling;
  static const auto* chat = new Fields{
      {"messages", SetMessages},
      {"max_completion_tokens", SetMaxCompletionTokens},
      {"logprobs", SetChatLogprobs},
      {"top_logprobs", SetInteger<&S::set_logprobs>},
      {"tools", SetTools},
      {"functions", SetTools},
      {"tool_choice", SetToolChoice},
      {"response_format", CheckResponseFormat},
      {"modalities", CheckModalities},
  };
  static const auto* completions = new Fields{
      {"prompt", SetPrompt},   {"logprobs", SetInteger<&S::set_logprobs>},
      {"best_of", SetBestOf},  {"echo", CheckEcho},
      {"suffix", CheckSuffix},
  };
  return endpoint == Endpoint::kChat ? *chat : *completions;
}

// Null: the field is not known.
Setter SetterOf(Endpoint endpoint, std::string_view key) {
  for (const Fields* fields : {&OwnFields(endpoint), &SharedFields()}) {
    const auto field = fields->find(key);
    if (field != fields->end()) return field->second;
  }
  return nullptr;
}

absl::Status ReadFields(Element root, Draft* draft) {
  const absl::StatusOr<simdjson::dom::object> object = Object(root);
  if (!object.ok()) return InvalidArgument("the body must be a JSON object");
  for (const auto& [key, value] : *object) {
    const Setter set = SetterOf(draft->question.endpoint, key);
    if (set == nullptr || value.is_null()) continue;
    const absl::Status status = set(value, draft);
    if (!status.ok()) return At(key, status);
  }
  return absl::OkStatus();
}

// What one field cannot know of another.
absl::Status CheckTogether(Draft* draft) {
  const bool is_chat = draft->question.endpoint == Endpoint::kChat;
  if (draft->prompts.empty()) {
    return InvalidArgument("{}: is required", is_chat ? "messages" : "prompt");
  }
  if (draft->has_stream_options && !draft->question.is_stream) {
    return InvalidArgument("stream_options: needs stream to be true");
  }
  if (draft->has_tools && draft->tool_choice != "none") {
    return InvalidArgument("tools: are not supported; \"tool_choice\": \"none\" lets them be");
  }
  if (draft->tool_choice != "none" && draft->tool_choice != "auto") {
    return InvalidArgument("tool_choice: \"{}\" is not supported; \"none\" and \"auto\" are",
                           net::Escape(draft->tool_choice, kShownMax));
  }
  const int32_t choices = draft->sampling().has_n() ? draft->sampling().n() : 1;
  if (draft->best_of.value_or(choices) != choices) {
    return InvalidArgument("best_of: is {}, must be n, which is {}", *draft->best_of, choices);
  }
  if (is_chat && !draft->has_logprobs && draft->sampling().has_logprobs()) {
    return InvalidArgument("top_logprobs: needs logprobs to be true");
  }
  return absl::OkStatus();
}

void Complete(Draft* draft) {
  v1::Sampling& sampling = draft->sampling();
  if (draft->has_logprobs && !sampling.has_logprobs()) sampling.set_logprobs(0);
  // The default of this API, which is not that of ours.
  if (!sampling.has_temperature()) sampling.set_temperature(1);
  for (v1::GenerateRequest& request : draft->prompts) request.MergeFrom(draft->shared);
  draft->question.requests = std::move(draft->prompts);
}

std::string ClientName(std::string_view field, const Question& question, size_t prompt) {
  const bool is_chat = question.endpoint == Endpoint::kChat;
  const auto cut = [&](std::string_view prefix) {
    if (field.substr(0, prefix.size()) != prefix) return false;
    field.remove_prefix(prefix.size());
    return true;
  };
  if (cut("chat.")) return std::string(field);
  if (cut("sampling.")) {
    if (is_chat && field == "logprobs") return "top_logprobs";
    if (field == "max_tokens" && question.names_completion_tokens) return "max_completion_tokens";
    return std::string(field);
  }
  if (is_chat && field == "prompt") return "messages";
  if (is_chat || !(cut("text") || cut("token_ids.ids") || cut("prompt"))) return std::string(field);
  const std::string index = question.requests.size() > 1 ? fmt::format("[{}]", prompt) : "";
  return "prompt" + index + std::string(field);
}

}  // namespace

absl::StatusOr<Question> ParseQuestion(Endpoint endpoint, std::string_view body) {
  simdjson::dom::parser parser;
  Element root;
  auto error = parser.allocate(std::max<size_t>(body.size(), 64), kDepthMax);
  if (error == simdjson::SUCCESS) error = parser.parse(body.data(), body.size()).get(root);
  if (error != simdjson::SUCCESS) {
    return InvalidArgument("the body is not valid JSON: {}", simdjson::error_message(error));
  }
  Draft draft;
  draft.question.endpoint = endpoint;
  RETURN_IF_ERROR(ReadFields(root, &draft));
  RETURN_IF_ERROR(CheckTogether(&draft));
  Complete(&draft);
  return std::move(draft.question);
}

absl::Status InClientTerms(const absl::Status& status, const Question& question, size_t prompt) {
  const std::string what = Message(status);
  const size_t colon = what.find(": ");
  if (colon == std::string::npos) return status;
  const std::string name = ClientName(std::string_view(what).substr(0, colon), question, prompt);
  return absl::Status(status.code(), name + what.substr(colon));
}

}  // namespace trivium::router::openai
