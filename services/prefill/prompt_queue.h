// The prompts that wait for blocks and for their turn to be computed: in the order of
// scheduling::FairQueue, and no more of them at a time than the next steps need, because whoever is
// admitted before can be overtaken by nobody.
//
// A prompt whose next blocks another one is just computing waits for these alone.
// Thread-safety: none; the engine's thread. Bounded by the loop's admission.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "common/base/clock.h"
#include "common/base/status.h"
#include "common/kv/block_pool.h"
#include "common/scheduling/fair_queue.h"
#include "common/worker/types.h"

namespace trivium::prefill {

class PromptQueue {
 public:
  // `pool` outlives this.
  PromptQueue(const kv::BlockPool* pool, int32_t block_tokens, int32_t step_tokens)
      : pool_(*pool), block_tokens_(block_tokens), step_tokens_(step_tokens) {}

  // `comes_back`: it was admitted before, and has lost its blocks.
  void Add(uint64_t number, const worker::StageRequest& request, TimePoint submitted,
           bool comes_back = false);
  void Remove(uint64_t number) { order_.Remove(number); }

  // A prompt that has its blocks.
  struct Admitted {
    const worker::StageRequest* request = nullptr;
    int32_t done = 0;    // tokens whose KV is there
    int32_t next = 0;    // the first of those that it gets next; what is before it may be waiting
    int32_t reach = 0;   // and is to come from another worker
    bool waits = false;  // for what another worker sends; until then it needs no step
  };
  // `start` gives a prompt its blocks. RESOURCE_EXHAUSTED: it waits for some; ABORTED: for
  // something that nobody behind it needs; after any other error it is the caller's to end.
  // `requests`: what each of those that wait asks for.
  using Start = std::function<absl::StatusOr<Admitted>(uint64_t number)>;
  using RequestOf = std::function<const worker::StageRequest&(uint64_t number)>;
  void Admit(TimePoint now, std::vector<Admitted> admitted, const RequestOf& requests,
             const Start& start);

 private:
  bool FillTwoSteps(const std::vector<Admitted>& admitted) const;
  bool IsBeingComputed(const worker::StageRequest& request,
                       const std::vector<Admitted>& admitted) const;

  const kv::BlockPool& pool_;
  const int32_t block_tokens_, step_tokens_;
  scheduling::FairQueue order_;
};

// It has to be computed to the last row.
inline bool IsScored(const worker::StageRequest& request) {
  return request.sampling.prompt_logprobs >= 0;
}
// Of a step, for all prompts that are scored together: a row of logits is as wide as the
// vocabulary, so many of 128 k tokens are 128 MiB, which the engine keeps.
inline constexpr int32_t kScoredRows = 256;

}  // namespace trivium::prefill
