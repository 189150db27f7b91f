#include "services/router/api/validation.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <utility>

#include "common/kv/answer_room.h"
#include "common/net/text.h"
#include "services/router/api/chat_text.h"
#include "services/router/dispatch/random.h"

namespace trivium::router {
namespace {

constexpr float kTemperatureMax = 100;
constexpr int kStopTokensMax = 16, kStopStringsMax = 16, kLogprobsMax = 20, kBiasesMax = 1024;
constexpr float kBiasMax = 100, kPenaltyMax = 2, kRepetitionPenaltyMax = 10;
constexpr size_t kStopBytesMax = 256, kNameShownMax = 80;

// Comparisons are written so that a NaN fails each of them.
absl::Status CheckRange(std::string_view field, float value, float least, float most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return InvalidArgument("sampling.{}: is {}, must be {} to {}", field, value, least, most);
}

absl::Status CheckAboveZero(std::string_view field, float value, float most) {
  if (value > 0 && value <= most) return absl::OkStatus();
  return InvalidArgument("sampling.{}: is {}, must be above 0 and at most {}", field, value, most);
}

absl::Status CheckNumbers(const v1::Sampling& s) {
  RETURN_IF_ERROR(CheckRange("temperature", s.temperature(), 0, kTemperatureMax));
  if (s.has_top_p()) RETURN_IF_ERROR(CheckAboveZero("top_p", s.top_p(), 1));
  RETURN_IF_ERROR(CheckRange("min_p", s.min_p(), 0, 1));
  if (s.has_typical_p()) RETURN_IF_ERROR(CheckAboveZero("typical_p", s.typical_p(), 1));
  if (s.has_repetition_penalty()) {
    RETURN_IF_ERROR(
        CheckAboveZero("repetition_penalty", s.repetition_penalty(), kRepetitionPenaltyMax));
  }
  RETURN_IF_ERROR(CheckRange("presence_penalty", s.presence_penalty(), -kPenaltyMax, kPenaltyMax));
  return CheckRange("frequency_penalty", s.frequency_penalty(), -kPenaltyMax, kPenaltyMax);
}

absl::Status CheckLogprobs(std::string_view field, int32_t count) {
  if (count >= 0 && count <= kLogprobsMax) return absl::OkStatus();
  return InvalidArgument("sampling.{}: is {}, must be 0 to {}", field, count, kLogprobsMax);
}

// Of several that are wrong, the lowest id is named: a map of the wire has no order.
absl::Status CheckBias(const v1::Sampling& sampling, int32_t vocab) {
  if (sampling.logit_bias_size() > kBiasesMax) {
    return InvalidArgument("sampling.logit_bias: {} are given, at most {} are allowed",
                           sampling.logit_bias_size(), kBiasesMax);
  }
  const std::map<int32_t, float> biases(sampling.logit_bias().begin(), sampling.logit_bias().end());
  for (const auto& [id, bias] : biases) {
    if (id < 0 || id >= vocab) {
      return InvalidArgument("sampling.logit_bias: has token {}, must be 0 to {}", id, vocab - 1);
    }
    RETURN_IF_ERROR(CheckRange(fmt::format("logit_bias[{}]", id), bias, -kBiasMax, kBiasMax));
  }
  return absl::OkStatus();
}

absl::Status CheckStops(const v1::Sampling& sampling) {
  if (sampling.stop_token_ids_size() > kStopTokensMax) {
    return InvalidArgument("sampling.stop_token_ids: {} are given, at most {} are allowed",
                           sampling.stop_token_ids_size(), kStopTokensMax);
  }
  if (sampling.stop_size() > kStopStringsMax) {
    return InvalidArgument("sampling.stop: {} strings are given, at most {} are allowed",
                           sampling.stop_size(), kStopStringsMax);
  }
  for (int i = 0; i < sampling.stop_size(); ++i) {
    const std::string& stop = sampling.stop(i);
    if (stop.empty() || stop.size() > kStopBytesMax) {
      return InvalidArgument("sampling.stop[{}]: has {} bytes, must have 1 to {}", i, stop.size(),
                             kStopBytesMax);
    }
    if (!net::IsUtf8(stop)) return InvalidArgument("sampling.stop[{}]: is not valid UTF-8", i);
  }
  return absl::OkStatus();
}

}  // namespace

std::string Slug(std::string_view name) {
  std::string slug;
  for (const unsigned char c : name) {
    if (std::isalnum(c) || c == '.' || c == '_') {
      slug += static_cast<char>(std::tolower(c));
    } else if (!slug.empty() && slug.back() != '-') {
      slug += '-';
    }
  }
  while (!slug.empty() && slug.back() == '-') slug.pop_back();
  return slug;
}

RequestValidator::RequestValidator(std::shared_ptr<const model::Model> model,
                                   int32_t default_max_tokens, const Pictures* pictures)
    : model_(std::move(model)), default_max_tokens_(default_max_tokens), pictures_(pictures) {
  const std::string stem = std::filesystem::path(model_->path).stem().string();
  const std::string& name = model_->config.name;
  for (const std::string& known : {name, Slug(name), stem, Slug(stem)}) {
    if (!known.empty() && net::IsUtf8(known)) model_names_.push_back(known);
  }
  model_id_ = Slug(name).empty() ? Slug(stem) : Slug(name);
  for (int32_t id = 0; id < model_->tokenizer->vocab_size(); ++id) {
    piece_bytes_max_ = std::max(piece_bytes_max_, model_->tokenizer->Piece(id, true).size());
  }
}

absl::Status RequestValidator::CheckModel(const std::string& name) const {
  if (name.empty() || std::count(model_names_.begin(), model_names_.end(), name) > 0) {
    return absl::OkStatus();
  }
  return MakeStatus(absl::StatusCode::kNotFound, "model \"{}\" is not served here; \"{}\" is",
                    net::Escape(name, kNameShownMax), model_id_);
}

// A token covers at most the longest piece: a text beyond that cannot fit, and is not tokenised to
// find out.
absl::Status RequestValidator::CheckBytes(size_t bytes, std::string_view field) const {
  const size_t bytes_max = static_cast<size_t>(model_->config.context) * piece_bytes_max_;
  if (bytes <= bytes_max) return absl::OkStatus();
  return InvalidArgument("{}: {} bytes cannot fit into the context of {} tokens", field, bytes,
                         model_->config.context);
}

absl::StatusOr<std::vector<int32_t>> RequestValidator::TokensOf(const std::string& text) const {
  if (text.empty()) return InvalidArgument("text: is empty");
  if (!net::IsUtf8(text)) return InvalidArgument("text: is not valid UTF-8");
  RETURN_IF_ERROR(CheckBytes(text.size(), "text"));
  const model::Tokenizer& tokenizer = *model_->tokenizer;
  return tokenizer.Encode(text, {.add_bos = tokenizer.adds_bos(), .add_eos = tokenizer.adds_eos()});
}

absl::StatusOr<Pictures::Prompt> RequestValidator::PromptOf(const v1::Messages& chat) const {
  if (chat.messages().empty()) return InvalidArgument("chat.messages: is empty");
  // An empty message, too, takes some tokens.
  if (chat.messages_size() > model_->config.context) {
    return InvalidArgument("chat.messages: {} messages cannot fit into the context of {} tokens",
                           chat.messages_size(), model_->config.context);
  }
  ChatText text;
  for (int i = 0; i < chat.messages_size(); ++i) {
    const absl::Status status = text.Add(chat.messages(i));
    if (!status.ok()) return InvalidArgument("chat.messages[{}]: {}", i, Message(status));
  }
  if (!text.pictures().empty() && pictures_ == nullptr) {
    return Unavailable("chat.messages: has pictures, and this cluster has no encode stage");
  }
  RETURN_IF_ERROR(CheckBytes(text.bytes(), "chat.messages"));
  ASSIGN_OR_RETURN(const std::string prompt, model_->chat_template.Render(text.messages()));
  ASSIGN_OR_RETURN(const std::vector<std::string> pieces, text.Split(prompt));
  const model::Tokenizer& tokenizer = *model_->tokenizer;
  // Many templates write the BOS themselves; it must not come twice.
  const bool add_bos =
      tokenizer.adds_bos() && !prompt.starts_with(tokenizer.Piece(tokenizer.bos_id(), true));
  const model::Tokenizer::Options options{.add_bos = add_bos, .parse_special = true};
  if (!text.pictures().empty()) return pictures_->Expand(pieces, text.pictures(), options);
  return Pictures::Prompt{.ids = tokenizer.Encode(prompt, options), .pictures = {}, .slices = {}};
}

absl::Status RequestValidator::CheckId(int32_t id, std::string_view field, int index) const {
  if (id >= 0 && id < model_->config.vocab) return absl::OkStatus();
  return InvalidArgument("{}[{}]: is {}, must be 0 to {}", field, index, id,
                         model_->config.vocab - 1);
}

absl::StatusOr<std::vector<int32_t>> RequestValidator::TokensOf(const v1::TokenIds& ids) const {
  if (ids.ids().empty()) return InvalidArgument("token_ids.ids: is empty");
  for (int i = 0; i < ids.ids_size(); ++i) {
    RETURN_IF_ERROR(CheckId(ids.ids(i), "token_ids.ids", i));
  }
  return std::vector<int32_t>(ids.ids().begin(), ids.ids().end());
}

absl::Status RequestValidator::CheckSampling(const v1::Sampling& sampling) const {
  RETURN_IF_ERROR(CheckNumbers(sampling));
  if (sampling.top_k() < 0) {
    return InvalidArgument("sampling.top_k: is {}, must be 0 or more", sampling.top_k());
  }
  if (sampling.has_max_tokens() && sampling.max_tokens() < 1) {
    return InvalidArgument("sampling.max_tokens: is {}, must be 1 or more", sampling.max_tokens());
  }
  const int32_t max_tokens =
      sampling.has_max_tokens() ? sampling.max_tokens() : default_max_tokens_;
  if (sampling.min_tokens() < 0 || sampling.min_tokens() > max_tokens) {
    return InvalidArgument("sampling.min_tokens: is {}, must be 0 to {} (max_tokens)",
                           sampling.min_tokens(), max_tokens);
  }
  if (sampling.has_n() && (sampling.n() < 1 || sampling.n() > kChoicesMax)) {
    return InvalidArgument("sampling.n: is {}, must be 1 to {}", sampling.n(), kChoicesMax);
  }
  RETURN_IF_ERROR(CheckLogprobs("logprobs", sampling.logprobs()));
  RETURN_IF_ERROR(CheckLogprobs("prompt_logprobs", sampling.prompt_logprobs()));
  RETURN_IF_ERROR(CheckBias(sampling, model_->config.vocab));
  RETURN_IF_ERROR(CheckStops(sampling));
  for (int i = 0; i < sampling.stop_token_ids_size(); ++i) {
    RETURN_IF_ERROR(CheckId(sampling.stop_token_ids(i), "sampling.stop_token_ids", i));
  }
  return absl::OkStatus();
}

v1::StageSampling RequestValidator::Complete(const v1::Sampling& sampling,
                                             int32_t prompt_tokens) const {
  v1::StageSampling out;
  out.set_temperature(sampling.temperature());
  out.set_top_k(sampling.top_k());
  out.set_top_p(sampling.has_top_p() ? sampling.top_p() : 1);
  out.set_seed(sampling.has_seed() ? sampling.seed() : DrawSeed());
  const int32_t wanted = sampling.has_max_tokens() ? sampling.max_tokens() : default_max_tokens_;
  out.set_max_tokens(std::min(wanted, model_->config.context - prompt_tokens));
  out.set_min_tokens(std::min(sampling.min_tokens(), out.max_tokens()));
  out.set_ignore_eos(sampling.ignore_eos());
  *out.mutable_stop_token_ids() = sampling.stop_token_ids();
  out.set_logprobs(sampling.has_logprobs() ? sampling.logprobs() : -1);
  out.set_min_p(sampling.min_p());
  out.set_typical_p(sampling.has_typical_p() ? sampling.typical_p() : 1);
  out.set_repetition_penalty(sampling.has_repetition_penalty() ? sampling.repetition_penalty() : 1);
  out.set_presence_penalty(sampling.presence_penalty());
  out.set_frequency_penalty(sampling.frequency_penalty());
  *out.mutable_logit_bias() = sampling.logit_bias();
  out.set_prompt_logprobs(sampling.has_prompt_logprobs() ? sampling.prompt_logprobs() : -1);
  return out;
}

absl::StatusOr<RunRequest> RequestValidator::Prepare(const v1::GenerateRequest& request) const {
  RETURN_IF_ERROR(CheckModel(request.model()));
  if (std::abs(int64_t{request.priority()}) > kv::kPriorityMax) {
    return InvalidArgument("priority: is {}, must be {} to {}", request.priority(),
                           -kv::kPriorityMax, kv::kPriorityMax);
  }
  RETURN_IF_ERROR(CheckSampling(request.sampling()));
  absl::StatusOr<std::vector<int32_t>> ids =
      InvalidArgument("prompt: one of text, chat and token_ids is needed");
  RunRequest run;
  if (request.has_text()) ids = TokensOf(request.text());
  if (request.has_chat()) {
    ASSIGN_OR_RETURN(Pictures::Prompt prompt, PromptOf(request.chat()));
    ids = std::move(prompt.ids);
    run.pictures = std::move(prompt.pictures);
    run.slices = std::move(prompt.slices);
  }
  if (request.has_token_ids()) ids = TokensOf(request.token_ids());
  RETURN_IF_ERROR(ids.status());
  if (ids->empty()) return InvalidArgument("prompt: has nothing that the model has a token for");
  const int32_t context = model_->config.context;
  if (ids->size() >= static_cast<size_t>(context)) {
    return InvalidArgument(
        "prompt: has {} tokens, at most {} fit: the model's context is {}, the answer included",
        ids->size(), context - 1, context);
  }
  if (!run.slices.empty() && request.sampling().has_prompt_logprobs()) {
    return InvalidArgument("sampling.prompt_logprobs: pictures have none");
  }
  run.id = DrawRequestId();
  run.priority = request.priority();
  run.sampling = Complete(request.sampling(), static_cast<int32_t>(ids->size()));
  run.choices = request.sampling().has_n() ? request.sampling().n() : 1;
  run.prompt_ids = *std::move(ids);
  run.stop = {request.sampling().stop().begin(), request.sampling().stop().end()};
  return run;
}

absl::StatusOr<std::vector<int32_t>> RequestValidator::Tokenize(
    const v1::TokenizeRequest& request) const {
  RETURN_IF_ERROR(CheckModel(request.model()));
  if (request.has_text()) return TokensOf(request.text());
  if (request.has_chat()) {
    ASSIGN_OR_RETURN(Pictures::Prompt prompt, PromptOf(request.chat()));
    return std::move(prompt.ids);
  }
  return InvalidArgument("input: one of text and chat is needed");
}

}  // namespace trivium::router
