// A prefix that another worker sends into a prompt's blocks, before the rest of the prompt is
// computed. `landed` comes once. With an arrival, nobody else writes these blocks any more, ReachOf
// tells how far they are complete, and the rest can be computed; after an error late rows may still
// touch them, as long as they are leased, and they are of no use. Thread-safety: none; belongs to
// the step loop.
#pragma once

#include <functional>
#include <memory>

#include "common/worker/loop_context.h"
#include "common/worker/types.h"

namespace trivium::prefill {

class Pull {
 public:
  // Waits, from now on, for the tokens from `token_begin`, a block border, to request.pull_tokens.
  // `landed` is called on the transport's thread.
  static absl::StatusOr<std::unique_ptr<Pull>> Begin(const worker::LoopContext& context,
                                                     const worker::StageRequest& request,
                                                     const kv::Reservation& blocks,
                                                     int32_t token_begin,
                                                     transfer::ArrivalCallback landed);
  ~Pull();
  Pull(const Pull&) = delete;
  Pull& operator=(const Pull&) = delete;

  const transfer::Ticket& ticket() const { return ticket_; }
  // Waits no longer once its time is up; `landed` comes soon after.
  void CheckTime(TimePoint now);

  // The tokens that are complete then, in whole blocks.
  int32_t ReachOf(const transfer::Arrival& arrival) const;

 private:
  Pull(transfer::Transport* transport, transfer::Ticket ticket, TimePoint until)
      : transport_(*transport), ticket_(std::move(ticket)), until_(until) {}
  void GiveUp();

  transfer::Transport& transport_;
  const transfer::Ticket ticket_;
  const TimePoint until_;
  bool has_given_up_ = false;
};

}  // namespace trivium::prefill
