// The output tokens of one request in order: each index once, whoever sent it and however often.
//
// Prefill and decode both report the first token of an attempt, and a later attempt continues where
// the emitted tokens end; what comes twice must be the same token. Invariant: the emitted indices
// are 0 … size() - 1.
// Thread-safety: none; belongs to one request's strand.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "trivium/v1/stage.pb.h"

namespace trivium::router {

class TokenSequencer {
 public:
  // `max_tokens` >= 1 bounds the indices, `vocab` the ids.
  TokenSequencer(int32_t max_tokens, int32_t vocab) : max_tokens_(max_tokens), vocab_(vocab) {}

  enum class Verdict : uint8_t {
    kNew,        // the next one: it has been taken
    kDuplicate,  // known already, and equal
    kMismatch,   // known already as another token: the first one stands
    kGap,        // one or more indices are missing before it
    kMalformed,  // id, index or finish reason that no worker may send
  };
  Verdict Offer(const v1::StageToken& token);

  std::span<const int32_t> ids() const { return ids_; }
  int32_t size() const { return static_cast<int32_t>(ids_.size()); }
  bool is_finished() const { return is_finished_; }  // the last token has been taken

 private:
  const int32_t max_tokens_, vocab_;
  std::vector<int32_t> ids_;
  bool is_finished_ = false;
};

}  // namespace trivium::router
