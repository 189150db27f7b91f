#include "services/cli/answer.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "common/net/text.h"

namespace trivium::cli {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr int32_t kChoicesMax = 16;

OrderedJson LogprobJson(const v1::OutputToken& token) {
  OrderedJson top = OrderedJson::array();
  for (const v1::TokenLogprob& one : token.top()) {
    top.push_back({{"id", one.id()}, {"logprob", one.logprob()}});
  }
  const OrderedJson logprob =
      token.has_logprob() ? OrderedJson(token.logprob()) : OrderedJson(nullptr);
  return {{"id", token.id()}, {"logprob", logprob}, {"top", std::move(top)}};
}

OrderedJson LogprobsJson(const std::vector<v1::OutputToken>& tokens) {
  OrderedJson all = OrderedJson::array();
  for (const v1::OutputToken& token : tokens) {
    if (!token.has_logprob()) return nullptr;
    all.push_back(LogprobJson(token));
  }
  return all;
}

// The first token of a prompt follows nothing: it has no logprob.
OrderedJson PromptLogprobsJson(const std::vector<v1::OutputToken>& tokens) {
  if (tokens.empty()) return nullptr;
  OrderedJson all = OrderedJson::array();
  for (const v1::OutputToken& token : tokens) all.push_back(LogprobJson(token));
  return all;
}

OrderedJson ChoiceJson(const Answer::Choice& choice, const std::string& finish_reason,
                       uint64_t seed) {
  OrderedJson ids = OrderedJson::array();
  for (const v1::OutputToken& token : choice.tokens) ids.push_back(token.id());
  return {{"text", choice.text},
          {"finish_reason", finish_reason},
          {"seed", seed},
          {"token_ids", std::move(ids)},
          {"logprobs", LogprobsJson(choice.tokens)}};
}

OrderedJson TimingsJson(const v1::Timings& timings) {
  return {{"queue_ms", timings.queue_ms()},
          {"reserve_ms", timings.reserve_ms()},
          {"prefill_ms", timings.prefill_ms()},
          {"transfer_ms", timings.transfer_ms()},
          {"time_to_first_token_ms", timings.time_to_first_token_ms()},
          {"decode_ms", timings.decode_ms()},
          {"tokens_per_second", timings.tokens_per_second()}};
}

absl::Status BadStream(const std::string& what) {
  return absl::DataLossError("the router's stream is broken: " + what);
}

}  // namespace

absl::Status Answer::Add(const v1::GenerateResponse& response) {
  if (complete_) return BadStream("a message after the result");
  if (response.has_done()) {
    done_ = response.done();
    complete_ = true;
    return absl::OkStatus();
  }
  const v1::Delta& delta = response.delta();
  for (const v1::OutputToken& token : delta.prompt_tokens()) {
    if (token.index() != static_cast<int>(prompt_tokens_.size()) || has_tokens()) {
      return BadStream(fmt::format("token {} of the prompt is out of order", token.index()));
    }
    prompt_tokens_.push_back(token);
  }
  if (delta.choice() < 0 || delta.choice() >= kChoicesMax) {
    return BadStream(fmt::format("there is a choice {}", delta.choice()));
  }
  const auto number = static_cast<size_t>(delta.choice());
  if (number >= choices_.size()) choices_.resize(number + 1);
  Choice& choice = choices_[number];
  for (const v1::OutputToken& token : delta.tokens()) {
    if (token.index() != static_cast<int>(choice.tokens.size())) {
      return BadStream(
          fmt::format("token {} came where {} was due", token.index(), choice.tokens.size()));
    }
    choice.tokens.push_back(token);
  }
  choice.text += delta.text();
  return absl::OkStatus();
}

bool Answer::has_tokens() const {
  return std::any_of(choices_.begin(), choices_.end(),
                     [](const Choice& choice) { return !choice.tokens.empty(); });
}

absl::Status Answer::CheckComplete() const {
  if (!complete_) return BadStream("it ended without a result");
  size_t came = 0;
  for (const Choice& choice : choices_) came += choice.tokens.size();
  const int said = done_.usage().completion_tokens();
  if (said != static_cast<int>(came)) {
    return BadStream(fmt::format("{} tokens came of {}", came, said));
  }
  for (int i = 0; i < done_.choices_size(); ++i) {
    const auto at = static_cast<size_t>(i);
    const size_t tokens = at < choices_.size() ? choices_[at].tokens.size() : 0;
    if (done_.choices(i).completion_tokens() == static_cast<int>(tokens)) continue;
    return BadStream(fmt::format("{} tokens of choice {} came of {}", tokens, i,
                                 done_.choices(i).completion_tokens()));
  }
  return absl::OkStatus();
}

std::string Answer::Json() const {
  const v1::ServedBy& by = done_.served_by();
  OrderedJson object = {{"request_id", done_.request_id()}};
  object.update(ChoiceJson(choices_[0], done_.finish_reason(), done_.seed()));
  object.update(OrderedJson{
      {"prompt_logprobs", PromptLogprobsJson(prompt_tokens_)},
      {"usage",
       {{"prompt_tokens", done_.usage().prompt_tokens()},
        {"completion_tokens", done_.usage().completion_tokens()},
        {"cached_prompt_tokens", done_.usage().cached_prompt_tokens()}}},
      {"timings", TimingsJson(done_.timings())},
      {"workers",
       {{"prefill", by.prefill_worker()},
        {"decode", by.decode_worker()},
        {"attempts", by.attempts()},
        {"preemptions", by.preemptions()}}},
      {"kv", {{"bytes_moved", by.kv_bytes_moved()}, {"header_bytes", by.kv_header_bytes()}}}});
  for (size_t i = 0; choices_.size() > 1 && i < choices_.size(); ++i) {
    const v1::ChoiceEnd end = static_cast<int>(i) < done_.choices_size()
                                  ? done_.choices(static_cast<int>(i))
                                  : v1::ChoiceEnd();
    object["choices"].push_back(ChoiceJson(choices_[i], end.finish_reason(), end.seed()));
  }
  return object.dump(2, ' ', false, OrderedJson::error_handler_t::replace);
}

std::string Answer::Figures() const {
  const v1::Timings& timings = done_.timings();
  const v1::ServedBy& by = done_.served_by();
  std::string figures = fmt::format(
      "{} prompt tokens, {} tokens, first after {:.0f} ms, {:.1f} tokens/s; {} to {}; KV {} bytes "
      "moved, {} "
      "of headers",
      done_.usage().prompt_tokens(), done_.usage().completion_tokens(),
      timings.time_to_first_token_ms(), timings.tokens_per_second(), by.prefill_worker(),
      by.decode_worker(), Grouped(by.kv_bytes_moved()), Grouped(by.kv_header_bytes()));
  if (by.attempts() > 1) figures += fmt::format("; {} attempts", by.attempts());
  return net::Escape(figures, 1000);
}

std::string ForTerminal(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t bytes = std::max<size_t>(1, net::Utf8CharBytes(text));
    const std::string_view character = text.substr(0, bytes);
    const bool kept =
        character == "\n" || character == "\t" || character == "\"" || character == "\\";
    if (kept || net::Escape(character, 8) == character) out += character;
    text.remove_prefix(bytes);
  }
  return out;
}

std::string Grouped(int64_t number) {
  std::string digits = std::to_string(number);
  const size_t sign = number < 0 ? 1 : 0;
  for (size_t at = digits.size(); at > sign + 3;) digits.insert(at -= 3, 1, ',');
  return digits;
}

}  // namespace trivium::cli
