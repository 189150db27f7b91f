// The multimedia tokens that a prompt waits for: blocks for all of its slices at once, a landing
// for each, and the rows once they are there. A slice that is lost gets other blocks and another
// landing, alone; late rows may still touch the former ones as long as they are leased.
//
// Thread-safety: none; belongs to the step loop. `landed` is called on the transport's thread, once
// for each ticket, and may come after this has gone. Invariants: all slices that a prompt needs
// have blocks, or none has, so that no two prompts wait for each other's; no row is read before its
// slice has landed whole.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "common/base/status.h"
#include "common/engine/engine.h"
#include "common/media/media_pool.h"
#include "common/worker/types.h"

namespace trivium::prefill {

struct SliceTicket {
  int32_t slice = 0;  // of the request
  uint32_t attempt = 1;
  transfer::Ticket ticket;
};

class PictureIntake {
 public:
  // Of one slice, before the request gives up.
  static constexpr uint32_t kAttemptsMax = 8;

  using Landed = std::function<void(int32_t slice, uint32_t attempt, const absl::Status& arrival)>;
  // `pool` and `request` outlive this.
  PictureIntake(const media::MediaPool& pool, const worker::StageRequest& request, Landed landed)
      : pool_(pool), request_(request), landed_(std::move(landed)) {}
  ~PictureIntake();
  PictureIntake(const PictureIntake&) = delete;
  PictureIntake& operator=(const PictureIntake&) = delete;

  // INVALID_ARGUMENT: this worker could never hold the slices. Null pool: it takes no pictures.
  static absl::Status CheckFits(const media::MediaPool* pool, const worker::StageRequest& request);

  // Blocks for the slices that end behind the first `done` tokens. RESOURCE_EXHAUSTED: none.
  absl::Status Reserve(int32_t done);
  // The tickets of those that still do; the blocks of others are let go.
  absl::StatusOr<std::vector<SliceTicket>> Begin(int32_t done);
  // What `landed` was told. After an error the slice waits for Retry; the last attempt's error is
  // this one's.
  absl::Status OnLanded(int32_t slice, uint32_t attempt, const absl::Status& arrival);
  // Tickets for slices that were lost, as far as there are blocks.
  absl::StatusOr<std::vector<SliceTicket>> Retry();
  void KeepAlive();

  // Tokens before the first slice that has not landed.
  int32_t ready_end() const;
  bool is_complete() const { return ready_end() == request_.prompt_tokens(); }
  // The rows of the tokens from `begin` to `end`, all of them ready, by place in these; they lie in
  // `rows`.
  std::vector<engine::GivenRows> Rows(int32_t begin, int32_t end, std::vector<float>* rows) const;
  // The first `done` tokens are computed: what they needed is let go.
  void Release(int32_t done);

 private:
  struct Slice {
    int32_t index = 0;
    const kv::MediaSpan* span = nullptr;
    uint32_t attempt = 0;
    kv::Reservation blocks;
    uint64_t landing = 0;  // 0: none is open
    bool has_landed = false;
    int32_t end() const { return span->end(); }
  };
  absl::StatusOr<SliceTicket> Expect(Slice& slice);

  const media::MediaPool& pool_;
  const worker::StageRequest& request_;
  const Landed landed_;
  std::vector<Slice> slices_;  // those that are needed, by position
};

}  // namespace trivium::prefill
