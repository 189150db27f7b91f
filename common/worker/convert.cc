#include "common/worker/convert.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "trivium/v1/stage.pb.h"

namespace trivium::worker {
namespace {

constexpr size_t kRequestIdBytesMax = 64;
constexpr size_t kAddressBytesMax = 4096;
constexpr int kDomainsMax = 4;
constexpr int32_t kPinMax_s = 86400;
constexpr double kWeightMin = 0.01, kWeightMax = 100;
constexpr double kPullMax_ms = 60000;

bool IsIdCharacter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
         c == '_' || c == '-';
}

// In the order of the ids: a map of the wire has none.
std::vector<std::pair<int32_t, float>> ToBias(
    const google::protobuf::Map<int32_t, float>& message) {
  std::vector<std::pair<int32_t, float>> bias(message.begin(), message.end());
  std::sort(bias.begin(), bias.end());
  return bias;
}

engine::SamplingParams ToParams(const v1::StageSampling& message) {
  return {.temperature = message.temperature(),
          .top_k = message.top_k(),
          .top_p = message.top_p(),
          .min_p = message.min_p(),
          .typical_p = message.typical_p(),
          .seed = message.seed(),
          .max_tokens = message.max_tokens(),
          .min_tokens = message.min_tokens(),
          .ignore_eos = message.ignore_eos(),
          .stop_token_ids = {message.stop_token_ids().begin(), message.stop_token_ids().end()},
          .logprobs = message.logprobs(),
          .repetition_penalty = message.repetition_penalty(),
          .presence_penalty = message.presence_penalty(),
          .frequency_penalty = message.frequency_penalty(),
          .logit_bias = ToBias(message.logit_bias()),
          .prompt_logprobs = message.prompt_logprobs()};
}

absl::Status CheckTokens(const google::protobuf::RepeatedField<int32_t>& ids,
                         const StageLimits& limits) {
  if (ids.empty()) return InvalidArgument("token_ids is empty");
  if (ids.size() > limits.context) {
    return InvalidArgument("token_ids has {} tokens, the context is {}", ids.size(),
                           limits.context);
  }
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < limits.vocab) continue;
    return InvalidArgument("token_ids[{}] is {}, must be 0 … {}", i, ids[i], limits.vocab - 1);
  }
  return absl::OkStatus();
}

absl::Status CheckLengths(const StageRequest& request, const StageLimits& limits) {
  const int32_t max_tokens = request.sampling.max_tokens;
  if (request.output_index < 0 || request.output_index >= max_tokens) {
    return InvalidArgument("output_index is {}, must be 0 … {} (sampling.max_tokens - 1)",
                           request.output_index, max_tokens - 1);
  }
  if (request.output_index >= request.prompt_tokens()) {
    return InvalidArgument("output_index is {}, but token_ids holds only {} tokens",
                           request.output_index, request.prompt_tokens());
  }
  if (request.remaining_tokens() > limits.context - request.prompt_tokens()) {
    return InvalidArgument("sampling.max_tokens leaves {} tokens after {} of a context of {}",
                           request.remaining_tokens(), request.prompt_tokens(), limits.context);
  }
  return absl::OkStatus();
}

absl::StatusOr<int32_t> ToChoices(int32_t choices, int32_t output_index) {
  if (choices < 0 || choices > kChoicesMax) {
    return InvalidArgument("choices is {}, must be 1 … {}", choices, kChoicesMax);
  }
  if (choices > 1 && output_index > 0) {
    return InvalidArgument("choices is {}, but output_index is {}: they differ by then", choices,
                           output_index);
  }
  return std::max(1, choices);
}

absl::Status CheckPriority(int32_t priority) {
  if (std::abs(int64_t{priority}) <= kv::kPriorityMax) return absl::OkStatus();
  return InvalidArgument("priority is {}, must be {} … {}", priority, -kv::kPriorityMax,
                         kv::kPriorityMax);
}

// Slices that end at `end` at the latest.
absl::StatusOr<std::vector<kv::MediaSpan>> ToSlices(
    const google::protobuf::RepeatedPtrField<v1::PictureSlice>& messages, int32_t end) {
  std::vector<kv::MediaSpan> slices;
  int32_t begin = 0;
  for (const v1::PictureSlice& message : messages) {
    kv::MediaSpan slice{.position = message.position(), .tokens = message.tokens()};
    if (slice.position < begin || slice.tokens < 1 || slice.position >= end ||
        slice.tokens > end - slice.position) {
      return InvalidArgument("slices[{}] has {} tokens at {}, must lie in {} … {}", slices.size(),
                             slice.tokens, slice.position, begin, end);
    }
    if (message.digest().size() != slice.digest.size()) {
      return InvalidArgument("slices[{}].digest has {} bytes, must have {}", slices.size(),
                             message.digest().size(), slice.digest.size());
    }
    std::copy(message.digest().begin(), message.digest().end(), slice.digest.begin());
    begin = slice.position + slice.tokens;
    slices.push_back(slice);
  }
  return slices;
}

absl::StatusOr<kv::BlockChain> ToChain(
    const google::protobuf::RepeatedPtrField<v1::KvDomain>& messages,
    std::span<const int32_t> token_ids, std::vector<kv::MediaSpan> slices,
    const StageLimits& limits) {
  if (messages.empty()) return kv::BlockChain();
  if (messages.size() > kDomainsMax) {
    return InvalidArgument("kv_domains has {} entries, at most {} are taken", messages.size(),
                           kDomainsMax);
  }
  std::vector<kv::Domain> domains;
  for (const v1::KvDomain& message : messages) {
    ASSIGN_OR_RETURN(kv::Domain domain, ToDomain(message));
    domains.push_back(domain);
  }
  const kv::KeySpace space{.model = std::string(limits.fingerprint),
                           .numerics_class = std::string(limits.numerics_class),
                           .kv_format = static_cast<uint32_t>(limits.kv_format),
                           .block_tokens = limits.block_tokens};
  ASSIGN_OR_RETURN(kv::BlockChain chain,
                   kv::BlockChain::Create(space, std::move(domains), std::move(slices)));
  chain.Append(token_ids);
  return chain;
}

absl::Status CheckFingerprint(std::string_view theirs, const StageLimits& limits) {
  if (theirs == limits.fingerprint) return absl::OkStatus();
  return FailedPrecondition("fingerprint is not that of this worker's model");
}

absl::Status TakePull(const v1::PrefillRequest& message, int32_t block_tokens,
                      StageRequest* request) {
  const int32_t tokens = message.pull_tokens();
  if (tokens == 0) return absl::OkStatus();
  if (tokens < 0 || tokens >= request->prompt_tokens() || tokens % block_tokens != 0) {
    return InvalidArgument("pull_tokens is {}, must be whole blocks of {} and less than {}", tokens,
                           block_tokens, request->prompt_tokens());
  }
  // Written so that NaN is refused too.
  if (!(message.pull_ms() > 0 && message.pull_ms() <= kPullMax_ms)) {
    return InvalidArgument("pull_ms is {}, must be in (0, {}]", message.pull_ms(), kPullMax_ms);
  }
  request->pull_tokens = tokens;
  request->pull_for = std::chrono::duration_cast<Duration>(
      std::chrono::duration<double, std::milli>(message.pull_ms()));
  return absl::OkStatus();
}

// Both messages share these fields by name.
template <typename Message>
absl::StatusOr<StageRequest> ToRequest(const Message& message, const StageLimits& limits) {
  RETURN_IF_ERROR(CheckFingerprint(message.fingerprint(), limits));
  ASSIGN_OR_RETURN(transfer::Credentials key, ToCredentials(message.key()));
  RETURN_IF_ERROR(CheckTokens(message.token_ids(), limits));
  StageRequest request{.key = std::move(key),
                       .token_ids = {message.token_ids().begin(), message.token_ids().end()},
                       .output_index = message.output_index(),
                       .sampling = ToParams(message.sampling())};
  RETURN_IF_ERROR(engine::Validate(request.sampling, limits.vocab));
  RETURN_IF_ERROR(CheckLengths(request, limits));
  ASSIGN_OR_RETURN(request.choices, ToChoices(message.choices(), request.output_index));
  ASSIGN_OR_RETURN(request.slices, ToSlices(message.slices(), request.prompt_tokens()));
  ASSIGN_OR_RETURN(request.chain,
                   ToChain(message.kv_domains(), request.token_ids, request.slices, limits));
  return request;
}

const char* FinishName(engine::FinishReason finish) {
  switch (finish) {
    case engine::FinishReason::kNone:
      return "";
    case engine::FinishReason::kStop:
      return "stop";
    case engine::FinishReason::kLength:
      return "length";
  }
  return "";
}

bool ParseFinish(const std::string& name, engine::FinishReason* finish) {
  for (auto reason :
       {engine::FinishReason::kNone, engine::FinishReason::kStop, engine::FinishReason::kLength}) {
    if (name != FinishName(reason)) continue;
    *finish = reason;
    return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<scheduling::TenantShare> ToShare(const v1::TenantShare& message) {
  // Written so that NaN is refused too.
  if (!(message.weight() >= kWeightMin && message.weight() <= kWeightMax)) {
    return InvalidArgument("share.weight is {}, must be {} … {}", message.weight(), kWeightMin,
                           kWeightMax);
  }
  return scheduling::TenantShare{message.tenant(), message.weight()};
}

absl::StatusOr<kv::Domain> ToDomain(const v1::KvDomain& message) {
  kv::Domain domain{.key = {},
                    .token_end = message.token_end() == 0 ? INT32_MAX : message.token_end(),
                    .quota = message.quota(),
                    .floor = message.floor(),
                    .pin_s = message.pin_s()};
  if (message.key().size() != domain.key.bytes.size()) {
    return InvalidArgument("kv_domains.key has {} bytes, must have {}", message.key().size(),
                           domain.key.bytes.size());
  }
  std::copy(message.key().begin(), message.key().end(), domain.key.bytes.begin());
  // Written so that NaN is refused too.
  if (!(domain.quota > 0 && domain.quota <= 1)) {
    return InvalidArgument("kv_domains.quota is {}, must be in (0, 1]", domain.quota);
  }
  if (!(domain.floor >= 0 && domain.floor < 1)) {
    return InvalidArgument("kv_domains.floor is {}, must be in [0, 1)", domain.floor);
  }
  if (domain.pin_s < 0 || domain.pin_s > kPinMax_s) {
    return InvalidArgument("kv_domains.pin_s is {}, must be 0 … {}", domain.pin_s, kPinMax_s);
  }
  return domain;
}

absl::StatusOr<transfer::Credentials> ToCredentials(const v1::RequestKey& key) {
  const std::string& id = key.request_id();
  if (id.empty() || id.size() > kRequestIdBytesMax ||
      !std::all_of(id.begin(), id.end(), IsIdCharacter)) {
    return InvalidArgument("key.request_id must be 1 … {} characters of [A-Za-z0-9._-]",
                           kRequestIdBytesMax);
  }
  if (key.attempt() == 0) return InvalidArgument("key.attempt is 0, counts from 1");
  transfer::Credentials credentials{.request = {id}, .attempt = {key.attempt()}};
  if (key.secret().size() != credentials.secret.size()) {
    return InvalidArgument("key.secret has {} bytes, must have {}", key.secret().size(),
                           credentials.secret.size());
  }
  std::copy(key.secret().begin(), key.secret().end(), credentials.secret.begin());
  return credentials;
}

absl::Status CheckNumerics(std::string_view ours, std::string_view theirs) {
  constexpr std::string_view kFast = "fast/";
  if (theirs.empty() || ours == theirs) return absl::OkStatus();
  if (ours.starts_with(kFast) && theirs.starts_with(kFast)) return absl::OkStatus();
  return FailedPrecondition("numerics_class \"{}\" cannot be served by \"{}\"", theirs, ours);
}

absl::StatusOr<StageRequest> ToStageRequest(const v1::PrefillRequest& message,
                                            const StageLimits& limits) {
  ASSIGN_OR_RETURN(StageRequest request, ToRequest(message, limits));
  RETURN_IF_ERROR(CheckPriority(message.priority()));
  request.priority = message.priority();
  if (message.has_share()) {
    ASSIGN_OR_RETURN(request.share, ToShare(message.share()));
  }
  if (!request.slices.empty() && request.sampling.prompt_logprobs >= 0) {
    return InvalidArgument(
        "sampling.prompt_logprobs is {}, but there are slices of pictures: they have none",
        request.sampling.prompt_logprobs);
  }
  RETURN_IF_ERROR(TakePull(message, limits.block_tokens, &request));
  return request;
}

absl::StatusOr<PrefixRequest> ToPrefixRequest(const v1::SendPrefixRequest& message,
                                              const StageLimits& limits) {
  RETURN_IF_ERROR(CheckFingerprint(message.fingerprint(), limits));
  if (message.numerics_class() != limits.numerics_class) {
    return FailedPrecondition("numerics_class is \"{}\", this worker's KV is \"{}\"",
                              message.numerics_class(), limits.numerics_class);
  }
  ASSIGN_OR_RETURN(transfer::Credentials key, ToCredentials(message.key()));
  RETURN_IF_ERROR(CheckTokens(message.token_ids(), limits));
  if (message.token_ids_size() % limits.block_tokens != 0) {
    return InvalidArgument("token_ids has {} tokens, no whole blocks of {}",
                           message.token_ids_size(), limits.block_tokens);
  }
  const std::vector<int32_t> token_ids(message.token_ids().begin(), message.token_ids().end());
  // The prefix may end inside a slice.
  ASSIGN_OR_RETURN(std::vector<kv::MediaSpan> slices, ToSlices(message.slices(), limits.context));
  ASSIGN_OR_RETURN(kv::BlockChain chain,
                   ToChain(message.kv_domains(), token_ids, std::move(slices), limits));
  ASSIGN_OR_RETURN(transfer::Ticket ticket, ToTicket(message.ticket(), message.token_ids_size()));
  return PrefixRequest{std::move(key), std::move(chain), std::move(ticket)};
}

absl::StatusOr<StageRequest> ToStageRequest(const v1::DecodeRequest& message,
                                            const StageLimits& limits) {
  RETURN_IF_ERROR(CheckNumerics(limits.numerics_class, message.numerics_class()));
  ASSIGN_OR_RETURN(StageRequest request, ToRequest(message, limits));
  RETURN_IF_ERROR(CheckPriority(message.priority()));
  if (message.preemptions() < 0 || message.preemptions() > kv::kPreemptionsMax) {
    return InvalidArgument("preemptions is {}, must be 0 … {}", message.preemptions(),
                           kv::kPreemptionsMax);
  }
  if (message.prefills() && request.sampling.prompt_logprobs >= 0) {
    return InvalidArgument(
        "sampling.prompt_logprobs is {}, but prefills is set: no decode worker "
        "scores a prompt",
        request.sampling.prompt_logprobs);
  }
  request.priority = message.priority();
  request.preemptions = message.preemptions();
  request.prefills = message.prefills();
  // What another class computed is not what this one would have.
  if (!request.prefills && message.numerics_class() != limits.numerics_class) {
    request.chain = kv::BlockChain();
  }
  return request;
}

absl::StatusOr<transfer::Ticket> ToTicket(const v1::LandingTicket& message, int32_t prompt_tokens) {
  if (message.address().empty() || message.address().size() > kAddressBytesMax) {
    return InvalidArgument("ticket.address has {} bytes, must have 1 … {}",
                           message.address().size(), kAddressBytesMax);
  }
  if (!transfer::IsWireFormat(message.wire_format())) {
    return InvalidArgument("ticket.wire_format {} is not known", message.wire_format());
  }
  if (message.token_end() != prompt_tokens) {
    return InvalidArgument("ticket.token_end is {}, there are {} tokens", message.token_end(),
                           prompt_tokens);
  }
  if (message.token_begin() < 0 || message.token_begin() >= prompt_tokens) {
    return InvalidArgument("ticket.token_begin is {}, must be 0 … {}", message.token_begin(),
                           prompt_tokens - 1);
  }
  for (const auto& [name, value] :
       {std::pair{"layers", message.layers()}, std::pair{"row_elems", message.row_elems()},
        std::pair{"block_tokens", message.block_tokens()}}) {
    if (value < 1) return InvalidArgument("ticket.{} is {}, must be at least 1", name, value);
  }
  return transfer::Ticket{.address = message.address(),
                          .epoch = {message.epoch()},
                          .landing_id = message.landing_id(),
                          .generation = message.generation(),
                          .wire_format = static_cast<transfer::WireFormat>(message.wire_format()),
                          .layers = message.layers(),
                          .token_begin = message.token_begin(),
                          .token_end = message.token_end(),
                          .row_elems = message.row_elems(),
                          .block_tokens = message.block_tokens()};
}

void ToMessage(const transfer::Ticket& ticket, v1::LandingTicket* message) {
  message->set_address(ticket.address);
  message->set_epoch(ticket.epoch.value);
  message->set_landing_id(ticket.landing_id);
  message->set_generation(ticket.generation);
  message->set_wire_format(static_cast<uint32_t>(ticket.wire_format));
  message->set_layers(ticket.layers);
  message->set_token_begin(ticket.token_begin);
  message->set_token_end(ticket.token_end);
  message->set_row_elems(ticket.row_elems);
  message->set_block_tokens(ticket.block_tokens);
}

void ToMessage(const engine::SamplingParams& params, v1::StageSampling* message) {
  message->set_temperature(params.temperature);
  message->set_top_k(params.top_k);
  message->set_top_p(params.top_p);
  message->set_min_p(params.min_p);
  message->set_typical_p(params.typical_p);
  message->set_seed(params.seed);
  message->set_max_tokens(params.max_tokens);
  message->set_min_tokens(params.min_tokens);
  message->set_ignore_eos(params.ignore_eos);
  message->mutable_stop_token_ids()->Assign(params.stop_token_ids.begin(),
                                            params.stop_token_ids.end());
  message->set_logprobs(params.logprobs);
  message->set_repetition_penalty(params.repetition_penalty);
  message->set_presence_penalty(params.presence_penalty);
  message->set_frequency_penalty(params.frequency_penalty);
  message->mutable_logit_bias()->insert(params.logit_bias.begin(), params.logit_bias.end());
  message->set_prompt_logprobs(params.prompt_logprobs);
}

void ToMessage(const OutputToken& token, v1::StageToken* message) {
  message->set_index(token.index);
  message->set_id(token.token.id);
  if (token.has_logprob) message->set_logprob(token.token.logprob);
  for (const auto& [id, logprob] : token.token.top) {
    v1::StageTokenLogprob* top = message->add_top();
    top->set_id(id);
    top->set_logprob(logprob);
  }
  message->set_finish_reason(FinishName(token.finish));
  message->set_choice(token.choice);
}

absl::StatusOr<OutputToken> ToToken(const v1::StageToken& message, int32_t vocab) {
  OutputToken token;
  token.index = message.index();
  token.choice = message.choice();
  const auto is_id = [vocab](int32_t id) { return id >= 0 && id < vocab; };
  if (message.index() < 0) return InvalidArgument("token.index is {}", message.index());
  if (message.choice() < 0 || message.choice() >= kChoicesMax) {
    return InvalidArgument("token.choice is {}", message.choice());
  }
  if (!is_id(message.id())) return InvalidArgument("token.id is {}", message.id());
  if (!ParseFinish(message.finish_reason(), &token.finish)) {
    return InvalidArgument("token.finish_reason is none of \"\", stop, length");
  }
  if (message.top_size() > engine::kMaxLogprobs) {
    return InvalidArgument("token.top has {} entries, at most {}", message.top_size(),
                           engine::kMaxLogprobs);
  }
  token.token.id = message.id();
  token.has_logprob = message.has_logprob();
  token.token.logprob = message.logprob();
  for (const v1::StageTokenLogprob& top : message.top()) {
    if (!is_id(top.id())) return InvalidArgument("token.top.id is {}", top.id());
    token.token.top.emplace_back(top.id(), top.logprob());
  }
  return token;
}

std::string SerializeTail(std::span<const OutputToken> tokens) {
  v1::FirstTokens message;
  for (const OutputToken& token : tokens) ToMessage(token, message.add_tokens());
  return message.SerializeAsString();
}

absl::StatusOr<std::vector<OutputToken>> ParseTail(const std::string& tail, int32_t vocab,
                                                   const StageRequest& request) {
  v1::FirstTokens message;
  if (!message.ParseFromString(tail)) return absl::DataLossError("the tail holds no tokens");
  if (message.tokens_size() != request.choices) {
    return absl::DataLossError(fmt::format("the tail holds {} tokens, {} were due",
                                           message.tokens_size(), request.choices));
  }
  std::vector<OutputToken> tokens;
  for (const v1::StageToken& one : message.tokens()) {
    absl::StatusOr<OutputToken> token = ToToken(one, vocab);
    if (!token.ok()) return absl::DataLossError("the tail is no token: " + Message(token.status()));
    const auto choice = static_cast<int32_t>(tokens.size());
    if (token->index != request.output_index || token->choice != choice) {
      return absl::DataLossError(fmt::format("the tail has token {} of choice {}, {} of {} was due",
                                             token->index, token->choice, request.output_index,
                                             choice));
    }
    tokens.push_back(*std::move(token));
  }
  return tokens;
}

}  // namespace trivium::worker
