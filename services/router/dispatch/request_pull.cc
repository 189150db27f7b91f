// What a RequestRun does so that its prefill worker gets a prefix from another worker. The prefill
// worker waits for it as long as it was told to and then goes on without: so nothing that happens
// to the holder or to its call is a failure of the attempt.
#include <algorithm>
#include <chrono>

#include "services/router/dispatch/request_run.h"
#include "services/router/dispatch/router_metrics.h"
#include "services/router/dispatch/stage_messages.h"

namespace trivium::router {

void RequestRun::OnPullTicket(Leg& leg, const v1::LandingTicket& ticket) {
  const PlacedPair& at = leg.attempt.at;
  if (at.pull_tokens == 0 || leg.attempt.pull != nullptr) return;  // nobody asked for it
  v1::SendPrefixRequest request;
  FillKey(leg, request.mutable_key());
  FillDomains(request_.kv_domains, request.mutable_kv_domains());
  request.set_fingerprint(context_.fingerprint);
  request.set_numerics_class(at.prefill.numerics_class);
  request.mutable_token_ids()->Assign(request_.prompt_ids.begin(),
                                      request_.prompt_ids.begin() + at.pull_tokens);
  FillSlices(request_.slices, at.pull_tokens, request.mutable_slices());
  *request.mutable_ticket() = ticket;
  const TimePoint begin = Now();
  TimePoint until = begin + at.pull_for;
  if (request_.deadline.has_value()) until = std::min(until, *request_.deadline);
  const auto post = PosterFor(leg);
  leg.attempt.pull = context_.stages->SendPrefix(
      at.holder.worker, request, until,
      {.on_event =
           [post](const v1::PrefixSent& sent) {
             post([sent](RequestRun& run, Leg& of) { run.OnPrefixSent(of, sent); });
           },
       .on_end =
           [post, begin](const absl::Status& status) {
             post([status, begin](RequestRun& run, Leg& of) { run.OnPullEnd(of, status, begin); });
           }});
}

void RequestRun::OnPrefixSent(Leg& leg, const v1::PrefixSent& sent) {
  const bool is_whole = sent.tokens() >= leg.attempt.at.pull_tokens;
  context_.metrics->Pulled(is_whole ? PullEnd::kWhole : PullEnd::kPart);
  context_.host->Pulled(leg.ticket, sent.kv_bytes(),
                        std::chrono::duration_cast<Duration>(
                            std::chrono::duration<double, std::milli>(sent.transfer_ms())));
}

void RequestRun::OnPullEnd(Leg& leg, const absl::Status& status, TimePoint begin) {
  if (status.ok()) return;
  context_.metrics->Pulled(PullEnd::kFailed);
  // One that was given up says that it takes longer than that; one that was refused says nothing.
  const Duration time = Now() - begin;
  if (time >= leg.attempt.at.pull_for * 3 / 4) context_.host->Pulled(leg.ticket, 0, time);
}

}  // namespace trivium::router
