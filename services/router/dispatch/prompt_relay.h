// The logprobs of a prompt's own tokens on their way to the client: each position once and in
// order, however many attempts it takes to have them all. Holds two counts and no tokens: an
// attempt sends from the first position on, and what an earlier one has delivered is passed over.
// Thread-safety: none; belongs to one request's strand.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "trivium/v1/stage.pb.h"

namespace trivium::router {

class PromptRelay {
 public:
  // `alternatives`: as StageSampling.prompt_logprobs, -1 when the client asked for none. The ids
  // outlive this.
  PromptRelay(std::span<const int32_t> prompt_ids, int32_t alternatives)
      : prompt_ids_(prompt_ids), alternatives_(alternatives) {}

  void BeginAttempt() { due_ = 0; }
  // The next tokens of the present attempt. Gives the place in `message` from which on the client
  // lacks them (its size: it lacks none); nullopt when these are not the tokens that are due.
  std::optional<int> Offer(const v1::PromptLogprobs& message);
  // The client has them all, or wants none: the answer's tokens may go out.
  bool is_complete() const { return alternatives_ < 0 || delivered_ == size(); }

 private:
  int32_t size() const { return static_cast<int32_t>(prompt_ids_.size()); }
  bool IsDue(const v1::StageToken& token) const;

  const std::span<const int32_t> prompt_ids_;
  const int32_t alternatives_;
  int32_t due_ = 0;        // position, in the present attempt
  int32_t delivered_ = 0;  // positions, over all attempts
};

}  // namespace trivium::router
