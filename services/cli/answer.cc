#include "services/cli/answer.h"

#include <nlohmann/json.hpp>

#include "common/net/text.h"

namespace trivium::cli {
namespace {

using Json = nlohmann::ordered_json;

Json LogprobJson(const v1::OutputToken& token) {
  Json top = Json::array();
  for (const v1::TokenLogprob& one : token.top()) {
    top.push_back({{"id", one.id()}, {"logprob", one.logprob()}});
  }
  const Json logprob = token.has_logprob() ? Json(token.logprob()) : Json(nullptr);
  return {{"id", token.id()}, {"logprob", logprob}, {"top", std::move(top)}};
}

Json LogprobsJson(const std::vector<v1::OutputToken>& tokens) {
  Json all = Json::array();
  for (const v1::OutputToken& token : tokens) {
    if (!token.has_logprob()) return nullptr;
    all.push_back(LogprobJson(token));
  }
  return all;
}

// The first token of a prompt follows nothing: it has no logprob.
Json PromptLogprobsJson(const std::vector<v1::OutputToken>& tokens) {
  if (tokens.empty()) return nullptr;
  Json all = Json::array();
  for (const v1::OutputToken& token : tokens) all.push_back(LogprobJson(token));
  return all;
}

Json TimingsJson(const v1::Timings& timings) {
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
  text_ += response.delta().text();
  for (const v1::OutputToken& token : response.delta().prompt_tokens()) {
    if (token.index() != static_cast<int>(prompt_tokens_.size()) || !tokens_.empty()) {
      return BadStream(fmt::format("token {} of the prompt is out of order", token.index()));
    }
    prompt_tokens_.push_back(token);
  }
  for (const v1::OutputToken& token : response.delta().tokens()) {
    if (token.index() != static_cast<int>(tokens_.size())) {
      return BadStream(
          fmt::format("token {} came where {} was due", token.index(), tokens_.size()));
    }
    tokens_.push_back(token);
  }
  return absl::OkStatus();
}

absl::Status Answer::CheckComplete() const {
  if (!complete_) return BadStream("it ended without a result");
  const int said = done_.usage().completion_tokens();
  if (said == static_cast<int>(tokens_.size())) return absl::OkStatus();
  return BadStream(fmt::format("{} tokens came of {}", tokens_.size(), said));
}

std::string Answer::Json() const {
  nlohmann::ordered_json ids = nlohmann::ordered_json::array();
  for (const v1::OutputToken& token : tokens_) ids.push_back(token.id());
  const v1::ServedBy& by = done_.served_by();
  const nlohmann::ordered_json object = {
      {"request_id", done_.request_id()},
      {"text", text_},
      {"finish_reason", done_.finish_reason()},
      {"seed", done_.seed()},
      {"token_ids", std::move(ids)},
      {"logprobs", LogprobsJson(tokens_)},
      {"prompt_logprobs", PromptLogprobsJson(prompt_tokens_)},
      {"usage",
       {{"prompt_tokens", done_.usage().prompt_tokens()},
        {"completion_tokens", done_.usage().completion_tokens()}}},
      {"timings", TimingsJson(done_.timings())},
      {"workers",
       {{"prefill", by.prefill_worker()},
        {"decode", by.decode_worker()},
        {"attempts", by.attempts()},
        {"preemptions", by.preemptions()}}},
      {"kv", {{"bytes_moved", by.kv_bytes_moved()}, {"header_bytes", by.kv_header_bytes()}}}};
  return object.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
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
