#include "services/router/api/openai/question.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "common/net/text.h"
#include "services/router/api/openai/json_values.h"
#include "services/router/api/openai/prompts.h"

namespace trivium::router::openai {
namespace {

constexpr size_t kDepthMax = 64;

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

absl::Status SetKvSharing(Element value, Draft* draft) {
  ASSIGN_OR_RETURN(*draft->shared.mutable_kv_sharing(), String(value));
  return absl::OkStatus();
}

absl::Status SetCache(Element value, Draft* draft) {
  ASSIGN_OR_RETURN(const auto hints, Object(value));
  v1::CacheHints& out = *draft->shared.mutable_cache();
  for (const auto& [key, hint] : hints) {
    absl::Status status;
    if (hint.is_null()) continue;
    if (key == "category") {
      absl::StatusOr<std::string> category = String(hint);
      status = category.status();
      if (status.ok()) out.set_category(*std::move(category));
    } else if (key == "no_store") {
      const absl::StatusOr<bool> no_store = Bool(hint);
      status = no_store.status();
      if (status.ok()) out.set_no_store(*no_store);
    } else if (key == "max_age_s") {
      const absl::StatusOr<int32_t> max_age_s = Integer(hint);
      status = max_age_s.status();
      if (status.ok()) out.set_max_age_s(*max_age_s);
    }
    if (!status.ok()) return At("." + std::string(key), status);
  }
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

absl::Status SetMessages(Element value, Draft* draft) {
  return ReadMessages(value, &draft->prompts);
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

absl::Status SetPrompt(Element value, Draft* draft) { return ReadPrompts(value, &draft->prompts); }

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
      {"kv_sharing", SetKvSharing},
      {"cache", SetCache},
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
