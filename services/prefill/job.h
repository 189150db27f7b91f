// One prompt inside the prefill stage's step loop. Thread-safety: none; the engine's thread.
#pragma once

#include <cstdint>
#include <memory>

#include "services/prefill/picture_intake.h"
#include "services/prefill/pull.h"
#include "services/prefill/step_loop.h"

namespace trivium::prefill {

struct StepLoop::Job {
  // kFetching: it has its blocks, and some are being filled from a tier; kPulling: by another
  // worker.
  enum class State : uint8_t { kWaiting, kFetching, kPulling, kComputing, kSending };

  uint64_t number = 0;
  worker::StageRequest request;
  transfer::Ticket ticket;
  PrefillSink* sink = nullptr;
  TimePoint submitted;

  State state = State::kWaiting;
  uint64_t turn = 0;   // in which it got its blocks
  int32_t cached = 0;  // tokens whose KV was here already
  int32_t loaded = 0;  // of these, from a tier
  int32_t pulled = 0;  // and came from another worker
  int32_t done = 0;    // tokens whose KV is there
  TimePoint started;
  TimePoint kv_computed;  // of the last layer's keys and values
  double queue_s = 0, compute_s = 0;
  int64_t kv_bytes_acked_before_end = 0;
  // The sender goes first: it stops reading before the blocks go.
  kv::Reservation blocks;
  std::unique_ptr<transfer::Sender> sender;
  std::unique_ptr<Pull> pull;
  std::unique_ptr<PictureIntake> pictures;  // null: it needs none, or has no blocks yet
  // Late callbacks of a request that has ended find this gone and post nothing.
  std::shared_ptr<const uint64_t> alive;

  // Tokens whose KV is there, or will be soon without being computed.
  int32_t reach() const { return state == State::kPulling ? request.pull_tokens : done; }
  bool is_scored() const { return IsScored(request); }
  // Tokens that may be computed by now: those before a slice that has yet to come, in whole blocks.
  int32_t ready_end(int32_t block_tokens) const {
    const int32_t end = pictures == nullptr ? request.prompt_tokens() : pictures->ready_end();
    return end == request.prompt_tokens() ? end : end / block_tokens * block_tokens;
  }
};

}  // namespace trivium::prefill
