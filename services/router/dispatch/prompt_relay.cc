#include "services/router/dispatch/prompt_relay.h"

#include <algorithm>

namespace trivium::router {

bool PromptRelay::IsDue(const v1::StageToken& token) const {
  return due_ < size() && token.index() == due_ &&
         token.id() == prompt_ids_[static_cast<size_t>(due_)] &&
         token.has_logprob() == (due_ > 0) && token.top_size() <= alternatives_;
}

std::optional<int> PromptRelay::Offer(const v1::PromptLogprobs& message) {
  const int known = std::clamp(delivered_ - due_, 0, message.tokens_size());
  for (const v1::StageToken& token : message.tokens()) {
    if (!IsDue(token)) return std::nullopt;
    ++due_;
  }
  delivered_ = std::max(delivered_, due_);
  return known;
}

}  // namespace trivium::router
