#include "services/prefill/pull.h"

#include <utility>

#include "common/worker/landing.h"

namespace trivium::prefill {

absl::StatusOr<std::unique_ptr<Pull>> Pull::Begin(const worker::LoopContext& context,
                                                  const worker::StageRequest& request,
                                                  const kv::Reservation& blocks,
                                                  int32_t token_begin,
                                                  transfer::ArrivalCallback landed) {
  transfer::LandingOptions landing =
      worker::LandingIn(blocks, *context.pool, {token_begin, request.pull_tokens});
  landing.credentials = request.key;
  landing.on_arrival = std::move(landed);
  ASSIGN_OR_RETURN(transfer::Ticket ticket, context.transport->Expect(std::move(landing)));
  return std::unique_ptr<Pull>(
      new Pull(context.transport, std::move(ticket), context.clock->Now() + request.pull_for));
}

Pull::~Pull() { GiveUp(); }

void Pull::CheckTime(TimePoint now) {
  if (now >= until_) GiveUp();
}

void Pull::GiveUp() {
  if (!std::exchange(has_given_up_, true)) transport_.Withdraw(ticket_.landing_id);
}

int32_t Pull::ReachOf(const transfer::Arrival& arrival) const {
  return arrival.token_end / ticket_.block_tokens * ticket_.block_tokens;
}

}  // namespace trivium::prefill
