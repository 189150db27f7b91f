// What the prefill and the decode stage share about one request, checked and free of any wire
// format. Plain values.
#pragma once

#include <cstdint>
#include <vector>

#include "common/base/clock.h"
#include "common/engine/sampler.h"
#include "common/kv/answer_room.h"
#include "common/kv/block_key.h"
#include "common/kv/block_pool.h"
#include "common/scheduling/fair_queue.h"
#include "common/transfer/transport.h"

namespace trivium::worker {

inline constexpr int32_t kChoicesMax = 16;

// A request at one stage. Invariants (kept by convert.h): at least one token, every id below the
// vocabulary, valid sampling, output_index < sampling.max_tokens, prompt plus remaining output
// within the model's context, 1 … kChoicesMax choices, and only one where tokens were emitted
// before; slices inside the prompt, none over another.
struct StageRequest {
  transfer::Credentials key;
  std::vector<int32_t> token_ids;  // the prompt and what earlier attempts have emitted
  int32_t output_index = 0;        // of the next token: the number emitted already
  engine::SamplingParams sampling;
  int32_t choices = 1;      // sequences that go on from the same tokens
  int32_t priority = 0;     // -kv::kPriorityMax … kv::kPriorityMax; the lowest is served last by
                            // prefill, and preempted first by decode
  int32_t preemptions = 0;  // of earlier attempts; decode only
  scheduling::TenantShare share{};  // prefill only
  bool prefills = false;            // decode computes the prompt itself
  // Prefill only: so many leading tokens, in whole blocks and fewer than there are, may be held by
  // another worker, and so long they are waited for. 0: none.
  int32_t pull_tokens = 0;
  Duration pull_for{};
  // Slices of pictures, by position: their multimedia tokens stand for the ids in their places.
  std::vector<kv::MediaSpan> slices{};
  // Of token_ids; has no block where nothing may be reused or kept.
  kv::BlockChain chain{};

  int32_t prompt_tokens() const { return static_cast<int32_t>(token_ids.size()); }
  int32_t remaining_tokens() const { return sampling.max_tokens - output_index; }
  bool is_length_known() const { return sampling.ignore_eos && sampling.stop_token_ids.empty(); }
  kv::AnswerBounds bounds() const {
    return {.remaining = remaining_tokens(),
            .in_full = is_length_known() || choices > 1,
            .preemptions = preemptions};
  }
  engine::SamplingParams SamplingOf(int32_t choice) const {
    engine::SamplingParams params = sampling;
    params.seed += static_cast<uint64_t>(choice);
    return params;
  }
};

// A prefix that another worker wants. The ticket ends where the chain does.
struct PrefixRequest {
  transfer::Credentials key;
  kv::BlockChain chain;
  transfer::Ticket ticket;
};

// One token of the answer, with its place.
struct OutputToken {
  int32_t choice = 0;
  int32_t index = 0;
  engine::SampledToken token{};
  bool has_logprob = false;  // the request asked for it
  engine::FinishReason finish = engine::FinishReason::kNone;
};

inline int32_t BlocksFor(int32_t tokens, int32_t block_tokens) {
  return (tokens + block_tokens - 1) / block_tokens;
}

// Blocks of the prompt and `output_tokens` of each choice. The choices share the prompt's full
// blocks, which nobody writes any more.
inline kv::GroupNeed NeedOf(const StageRequest& request, int32_t output_tokens,
                            int32_t block_tokens) {
  const int32_t all = BlocksFor(request.prompt_tokens() + output_tokens, block_tokens);
  const int32_t shared = request.choices == 1 ? 0 : request.prompt_tokens() / block_tokens;
  return {.shared = shared, .own = all - shared, .members = request.choices};
}

// The leading blocks that may be found in the pool instead of being computed. There is always a row
// left to compute logits from. An answer that has begun is not ended by what others have cached.
inline kv::PrefixUse PrefixOf(const StageRequest& request, int32_t block_tokens) {
  return {.chain = &request.chain,
          .blocks_max = (request.prompt_tokens() - 1) / block_tokens,
          .may_take_kept = request.output_index > 0};
}

}  // namespace trivium::worker
