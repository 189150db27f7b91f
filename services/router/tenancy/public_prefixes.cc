#include "services/router/tenancy/public_prefixes.h"

#include <algorithm>
#include <utility>

#include "common/config/config.h"
#include "common/telemetry/log.h"

namespace trivium::router {
namespace {

using Tokens = std::span<const int32_t>;

size_t InCommon(Tokens a, Tokens b) {
  return static_cast<size_t>(std::ranges::mismatch(a, b).in1 - a.begin());
}

bool IsBefore(Tokens a, Tokens b) { return std::ranges::lexicographical_compare(a, b); }

// A chat that begins with `text` in `role`, and goes on by `next`.
absl::StatusOr<std::vector<int32_t>> ChatTokens(const Tokenize& tokenize, const std::string& role,
                                                const std::string& text, const char* next) {
  v1::TokenizeRequest request;
  v1::Message* first = request.mutable_chat()->add_messages();
  first->set_role(role);
  first->set_content(text);
  v1::Message* second = request.mutable_chat()->add_messages();
  second->set_role(role == "user" ? "assistant" : "user");
  second->set_content(next);
  return tokenize(request);
}

// Of a chat, what any two that begin with this message have in common: templates write a system
// message in front of the first turn, or into it, and some refuse it alone.
absl::StatusOr<std::vector<int32_t>> TokensOf(const v1::PublicPrefixConfig& prefix,
                                              const Tokenize& tokenize) {
  ASSIGN_OR_RETURN(const std::string text, config::ReadPublicText(prefix));
  if (prefix.chat_role().empty()) {
    v1::TokenizeRequest request;
    request.set_text(text);
    return tokenize(request);
  }
  ASSIGN_OR_RETURN(std::vector<int32_t> tokens,
                   ChatTokens(tokenize, prefix.chat_role(), text, "a"));
  ASSIGN_OR_RETURN(const std::vector<int32_t> other,
                   ChatTokens(tokenize, prefix.chat_role(), text, "b"));
  tokens.resize(InCommon(tokens, other));
  return tokens;
}

}  // namespace

absl::StatusOr<PublicPrefixes> PublicPrefixes::Create(const v1::TenancyConfig& config,
                                                      const Tokenize& tokenize,
                                                      int32_t block_tokens) {
  PublicPrefixes all;
  all.block_tokens_ = block_tokens;
  for (int32_t i = 0; i < config.public_prefixes_size(); ++i) {
    const v1::PublicPrefixConfig& prefix = config.public_prefixes(i);
    absl::StatusOr<std::vector<int32_t>> tokens = TokensOf(prefix, tokenize);
    if (!tokens.ok()) {
      return MakeStatus(tokens.status().code(), "tenancy.public_prefixes[{}] ({}): {}", i,
                        prefix.id(), Message(tokens.status()));
    }
    const size_t whole = tokens->size() - tokens->size() % static_cast<size_t>(block_tokens);
    telemetry::Log(whole == 0 ? telemetry::Level::kWarning : telemetry::Level::kInfo,
                   "public_prefix",
                   {{"id", prefix.id()}, {"tokens", tokens->size()}, {"shared_tokens", whole}});
    tokens->resize(whole);
    if (whole > 0) all.sorted_.push_back({*std::move(tokens), i});
  }
  std::ranges::sort(all.sorted_, IsBefore, &Declared::tokens);
  return all;
}

PublicPrefixes::Match PublicPrefixes::Longest(std::span<const int32_t> prompt) const {
  // In this order the texts that have most in common with the prompt stand next to its place.
  const auto place = std::ranges::lower_bound(sorted_, prompt, IsBefore, &Declared::tokens);
  size_t longest = 0;
  if (place != sorted_.end()) longest = InCommon(place->tokens, prompt);
  if (place != sorted_.begin()) {
    longest = std::max(longest, InCommon(std::prev(place)->tokens, prompt));
  }
  longest -= longest % static_cast<size_t>(block_tokens_);
  if (longest == 0) return {};
  const auto same = std::ranges::equal_range(
      sorted_, prompt.first(longest), IsBefore, [longest](const Declared& one) {
        return Tokens(one.tokens).first(std::min(longest, one.tokens.size()));
      });
  return {std::ranges::min(same, {}, &Declared::index).index, static_cast<int32_t>(longest)};
}

}  // namespace trivium::router
