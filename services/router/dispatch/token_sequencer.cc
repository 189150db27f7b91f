#include "services/router/dispatch/token_sequencer.h"

namespace trivium::router {

TokenSequencer::Verdict TokenSequencer::Offer(const v1::StageToken& token) {
  if (token.index() < 0 || token.index() >= max_tokens_) return Verdict::kMalformed;
  if (token.id() < 0 || token.id() >= vocab_) return Verdict::kMalformed;
  const std::string& reason = token.finish_reason();
  if (!reason.empty() && reason != "stop" && reason != "length") return Verdict::kMalformed;
  if (token.index() < size()) {
    return ids_[token.index()] == token.id() ? Verdict::kDuplicate : Verdict::kMismatch;
  }
  if (is_finished_) return Verdict::kMalformed;
  if (token.index() > size()) return Verdict::kGap;
  // A worker that goes on past the last place would be waited for in vain.
  if (token.index() + 1 == max_tokens_ && reason.empty()) return Verdict::kMalformed;
  ids_.push_back(token.id());
  is_finished_ = !reason.empty();
  return Verdict::kNew;
}

}  // namespace trivium::router
