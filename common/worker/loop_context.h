// What a step loop works with, and what it tells about its steps and requests.
// Everything pointed to outlives the loop.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "common/base/clock.h"
#include "common/base/status.h"
#include "common/engine/engine.h"
#include "common/kv/block_pool.h"
#include "common/media/media_pool.h"
#include "common/transfer/transport.h"
#include "common/worker/load_board.h"
#include "common/worker/promotion.h"
#include "common/worker/prompt_schedule.h"

namespace trivium::worker {

// The part of one request in a step.
struct RangeRecord {
  uint64_t request = 0;  // the loop's own number of it
  int32_t position = 0;
  int32_t rows = 0;
  int layer_begin = 0, layer_end = 0;  // that these rows passed in this step
};

struct StepRecord {
  std::span<const RangeRecord> ranges;  // those that run, then prompts
  // Rows and keys; of rows that passed some of the layers, that share.
  StepLoad load{};
  double seconds = 0;
  // Why it held no more of prompts; none: it held nothing of a prompt.
  std::optional<PromptStep::Limit> limit{};
  int64_t expert_bytes = 0;  // weights of routed experts that were read
};

// Where the KV of a prompt came from, in tokens.
struct PromptRecord {
  int32_t cached = 0;    // was in the pool
  int32_t loaded = 0;    // from a tier below it
  int32_t received = 0;  // from another worker
  int32_t computed = 0;
};

// Called on the engine's thread; must not block.
class LoopProbe {
 public:
  virtual ~LoopProbe() = default;
  virtual void OnStep(const StepRecord& step) = 0;
  virtual void OnFirstToken(double seconds_since_submit) = 0;
  // From one token of an answer to its next, where both were computed here.
  virtual void OnTokenGap(double seconds) = 0;
  // The KV of a prompt is complete here.
  virtual void OnPrompt(const PromptRecord& prompt) = 0;
  virtual void OnEnd(const absl::Status& status) = 0;  // of a request
};

struct LoopContext {
  engine::Engine* engine = nullptr;  // driven by the loop's thread alone
  kv::BlockPool* pool = nullptr;
  transfer::Transport* transport = nullptr;
  LoadBoard* board = nullptr;
  LoopProbe* probe = nullptr;
  Promotion* promotion = nullptr;           // null: there are no tiers below the pool
  const media::MediaPool* media = nullptr;  // prefill; null: it takes no pictures
  Clock* clock = &Clock::Real();
  int32_t step_tokens = 512;  // rows of one step at most
  PrefillPolicy prefill_policy = PrefillPolicy::kChunked;
  double step_target_s = 0;                // of a step with rows of prompts; 0: none
  const engine::StepCost* cost = nullptr;  // as measured; needed where there is a target
  int32_t requests_max = 64;               // running and waiting together
  bool admits_expected = true;             // decode: on expected length, not on all that may come
  Duration keep_alive_interval = std::chrono::milliseconds(250);  // of landings that wait
};

inline double SecondsBetween(TimePoint begin, TimePoint end) {
  return std::chrono::duration<double>(end - begin).count();
}

}  // namespace trivium::worker
