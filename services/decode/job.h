// What the decode stage's step loop keeps of a request: one member for each of its choices, each a
// sequence of its own in the batch. Thread-safety: none; Submit makes it, then the engine's thread
// owns it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "common/base/clock.h"
#include "common/engine/token_history.h"
#include "common/worker/types.h"

namespace trivium::decode {

class DecodeSink;

struct Member {
  engine::SamplingParams sampling;
  kv::Reservation blocks;  // none: it has ended
  kv::BlockChain chain;    // of the tokens whose KV its blocks hold
  int32_t tokens = 0;      // emitted here
  int32_t last_id = 0;     // of the newest token, whose KV the next step computes
  engine::TokenHistory history{};
  TimePoint newest_at{};  // when its newest token was there
  bool is_cut = false;    // nobody wants its next tokens: it ends with the one that comes next
};

struct Job {
  // kLanding: its KV comes from a prefill worker. kFetching: some of it from a tier, and then it is
  // kPrefilling: computed here.
  enum class State : uint8_t { kLanding, kFetching, kPrefilling, kRunning };

  uint64_t number = 0;
  worker::StageRequest request;
  DecodeSink* sink = nullptr;
  TimePoint submitted, first_step, joined;

  State state = State::kLanding;
  std::vector<Member> members;  // by choice
  int32_t members_left = 0;     // that have not ended
  std::optional<uint64_t> landing_id;
  int32_t cached = 0;                   // tokens of the prompt whose KV need not be computed
  int32_t loaded = 0;                   // of these, from a tier
  int32_t computed = 0;                 // kPrefilling: tokens of the prompt whose KV is there
  int64_t kv_bytes = 0;                 // that landed
  std::shared_ptr<const bool> growing;  // counts it while its blocks may not be all it needs
  // Late callbacks of a request that has ended find this gone and post nothing.
  std::shared_ptr<const uint64_t> alive;

  // Of a member's newest token.
  int32_t index(const Member& of) const { return request.output_index + of.tokens - 1; }
  int32_t position(const Member& of) const { return request.prompt_tokens() + of.tokens - 1; }
};

// What one sequence does in a step: a member's newest token, or, while the job is prefilling, a
// chunk of the prompt.
struct StepPart {
  Job* job = nullptr;
  Member* member = nullptr;
  int32_t prompt_end = 0;  // of the chunk; 0: it runs
};

}  // namespace trivium::decode
