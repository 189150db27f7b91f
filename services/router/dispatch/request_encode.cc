// What a RequestRun does so that its prefill worker gets multimedia tokens. The prefill worker
// gives out a ticket for each slice that it lacks, and a new one for a slice that was lost on its
// way; the router asks workers that encode, and another one where a worker fails before its tokens
// have begun to come. No failure of an encoder ends the attempt, until there were too many.
#include <algorithm>
#include <map>
#include <utility>

#include "common/telemetry/log.h"
#include "services/router/dispatch/request_run.h"
#include "services/router/dispatch/router_metrics.h"
#include "services/router/dispatch/stage_messages.h"

namespace trivium::router {
namespace {

using SliceState = EncodeState::Slice;

// Until somebody is asked again, where nobody could be, or was full: each time carries the file, so
// the pause doubles up to the second, and has an end.
constexpr Duration kRetryPause = std::chrono::milliseconds(50);
constexpr Duration kRetryPauseMax = std::chrono::seconds(1);
constexpr int kRoomTriesMax = 64;
// Calls whose tokens were not taken; as many tickets does a prefill worker give out for a slice.
constexpr int kStraysMax = 8;
// A slice that was not taken: the prefill worker knows why, and gives out a new ticket once it
// misses the sender's beats. Longer than that the old one is tried again.
constexpr Duration kStrayPause = std::chrono::seconds(4);
// What another encoder holds is waited for as long as encoding it would take, within these.
constexpr Duration kPullMin = std::chrono::milliseconds(50);
constexpr Duration kPullMax = std::chrono::seconds(2);

}  // namespace

void RequestRun::OnSliceTickets(Leg& leg, const v1::SliceTickets& tickets) {
  EncodeState& encode = leg.attempt.encode;
  for (const v1::SliceTicket& ticket : tickets.tickets()) {
    const bool is_known = ticket.slice() >= 0 && ticket.slice() < std::ssize(request_.slices);
    if (!is_known || ticket.attempt() <= encode.slices[ticket.slice()].attempt) {
      return FailStage(leg, Role::kPrefill,
                       absl::InternalError("it asked for a slice that is none"));
    }
    encode.slices[ticket.slice()] = {ticket.attempt(), ticket.ticket()};
  }
  AskForSlices(leg);
}

void RequestRun::AskForSlices(Leg& leg) {
  EncodeState& encode = leg.attempt.encode;
  const TimePoint now = Now();
  encode.retry_at = TimePoint::max();
  SlicesShape shape{.slices = {},
                    .numerics_class = leg.attempt.at.prefill.numerics_class,
                    .failed = encode.failed};
  std::vector<int32_t> wanted;
  for (auto& [number, slice] : encode.slices) {
    if (slice.state != SliceState::kWanted) continue;
    if (slice.not_before > now) {
      encode.retry_at = std::min(encode.retry_at, slice.not_before);
      continue;
    }
    wanted.push_back(number);
    const RunSlice& one = request_.slices[static_cast<size_t>(number)];
    const uint64_t key = request_.pictures[static_cast<size_t>(one.picture)]->key;
    shape.slices.push_back(
        {.picture = one.picture, .key = key == 0 ? 0 : key + static_cast<uint64_t>(one.slice)});
  }
  if (wanted.empty()) return SetDue();
  auto placed = context_.host->PlaceSlices(std::move(shape));
  if (!placed.ok()) {
    if (!encode.stuck_since.has_value()) encode.stuck_since = now;
    if (now - *encode.stuck_since >= context_.encode_patience) return Fail(placed.status());
    encode.retry_at = std::min(encode.retry_at, now + kRetryPause);
    return SetDue();
  }
  encode.stuck_since.reset();
  // One call for each worker and picture.
  std::map<std::pair<WorkerIndex, int32_t>, SlicesAt> calls;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const int32_t picture = request_.slices[static_cast<size_t>(wanted[i])].picture;
    calls[{(*placed)[i].at.worker, picture}].emplace_back(wanted[i], (*placed)[i]);
  }
  for (const auto& [key, slices] : calls) OpenEncode(leg, slices);
  SetDue();
}

// All but what is wanted of the picture.
v1::EncodeRequest RequestRun::EncodeRequestOf(const Leg& leg, int32_t picture) const {
  v1::EncodeRequest request;
  FillKey(leg, request.mutable_key());
  request.set_tower(context_.tower);
  request.set_numerics_class(leg.attempt.at.prefill.numerics_class);
  const std::optional<kv::Domain>& domain = request_.pictures[static_cast<size_t>(picture)]->domain;
  if (domain.has_value()) FillDomain(*domain, request.mutable_domain());
  FillShare(request_.share, request.mutable_share());
  return request;
}

void RequestRun::OpenEncode(Leg& leg, const SlicesAt& slices) {
  EncodeState& encode = leg.attempt.encode;
  account_.AskedForSlice(Now());
  const size_t number = encode.calls.size();
  const PlacedWorker& at = slices.front().second.at;
  const int32_t picture = request_.slices[static_cast<size_t>(slices.front().first)].picture;
  EncodeCall& call = encode.calls.emplace_back(
      EncodeCall{.at = at, .picture = picture, .call = nullptr, .slices = {}, .holders = {}});
  v1::EncodeRequest request = EncodeRequestOf(leg, picture);
  request.set_picture(request_.pictures[static_cast<size_t>(picture)]->file);
  for (const auto& [slice, placed] : slices) {
    EncodeState::Wanted& wanted = encode.slices.at(slice);
    wanted.state = SliceState::kAsked;
    call.slices.emplace_back(slice, wanted.attempt);
    v1::WantedSlice* message = request.add_slices();
    message->set_slice(request_.slices[static_cast<size_t>(slice)].slice);
    *message->mutable_ticket() = wanted.ticket;
    if (placed.holder.worker == kNoWorker) continue;
    message->set_held_elsewhere(true);
    call.holders.emplace(message->slice(), placed.holder);
    call.pull_for += placed.pull_for;
  }
  if (!call.holders.empty()) {
    call.pull_for = std::clamp(call.pull_for, kPullMin, kPullMax);
    request.set_pull_ms(std::chrono::duration<double, std::milli>(call.pull_for).count());
  }
  const auto post = PosterFor(leg);
  call.call = context_.stages->Encode(at.worker, request, request_.deadline,
                                      {.on_event =
                                           [post, number](const v1::EncodeEvent& event) {
                                             post([number, event](RequestRun& run, Leg& of) {
                                               run.OnEncodeEvent(of, number, event);
                                             });
                                           },
                                       .on_end =
                                           [post, number](const absl::Status& status) {
                                             post([number, status](RequestRun& run, Leg& of) {
                                               run.OnEncodeEnd(of, number, status);
                                             });
                                           }});
}

void RequestRun::OnEncodeEvent(Leg& leg, size_t call, const v1::EncodeEvent& event) {
  if (event.has_sent()) return OnSliceSent(leg, call, event.sent());
  if (event.has_elsewhere()) OnSlicesElsewhere(leg, call, event.elsewhere());
}

// Whoever pulls waits only so long and then encodes, so nothing that happens to the holder matters.
void RequestRun::OnSlicesElsewhere(Leg& leg, size_t call, const v1::SlicesElsewhere& slices) {
  EncodeCall& of = leg.attempt.encode.calls[call];
  const std::map<int32_t, PlacedWorker> holders = std::exchange(of.holders, {});
  std::map<WorkerIndex, v1::EncodeRequest> requests;
  for (const v1::WantedSlice& wanted : slices.slices()) {
    const auto holder = holders.find(wanted.slice());
    if (holder == holders.end()) continue;
    auto [request, is_new] = requests.try_emplace(holder->second.worker);
    if (is_new) request->second = EncodeRequestOf(leg, of.picture);
    v1::WantedSlice* message = request->second.add_slices();
    message->set_slice(wanted.slice());
    *message->mutable_ticket() = wanted.ticket();
  }
  TimePoint until = Now() + of.pull_for;
  if (request_.deadline.has_value()) until = std::min(until, *request_.deadline);
  for (auto& [worker, request] : requests) {
    request.set_picture_key(slices.picture_key());
    context_.stages->Encode(
        worker, request, until,
        {.on_event = [](const v1::EncodeEvent&) {}, .on_end = [](const absl::Status&) {}});
  }
}

void RequestRun::OnSliceSent(Leg& leg, size_t call, const v1::SliceSent& sent) {
  EncodeCall& of = leg.attempt.encode.calls[call];
  const auto slice = std::ranges::find_if(of.slices, [&](const auto& one) {
    return request_.slices[static_cast<size_t>(one.first)].slice == sent.slice();
  });
  if (slice == of.slices.end()) return;
  EncodeState::Wanted& wanted = leg.attempt.encode.slices.at(slice->first);
  if (wanted.attempt == slice->second) wanted.state = SliceState::kLanded;
  of.slices.erase(slice);
  for (auto& [number, other] : leg.attempt.encode.slices) other.room_tries = 0;
  context_.host->SlicesEnded(of.at, 1);
  account_.Encoded(of.at.id, sent.cached(), Now());
  CompleteIfAccounted(leg);
}

void RequestRun::OnEncodeEnd(Leg& leg, size_t number, const absl::Status& status) {
  EncodeState& encode = leg.attempt.encode;
  EncodeCall& call = encode.calls[number];
  call.call = nullptr;  // with the picture's file
  const auto missing = std::exchange(call.slices, {});
  if (missing.empty()) return;
  context_.host->SlicesEnded(call.at, static_cast<int32_t>(missing.size()));
  if (leg.phase != Phase::kRunning) return CompleteIfAccounted(leg);
  const std::string why =
      fmt::format("encode worker {}: {}", call.at.id,
                  status.ok() ? "it ended before the last slice" : Message(status));
  if (IsPastDeadline(status)) return Fail(absl::DeadlineExceededError(why));
  const FailureAction action = ActionFor(status.ok() ? absl::InternalError(why) : status);
  if (action == FailureAction::kGiveUp) return Fail(absl::Status(status.code(), ToAbsl(why)));
  // Counts by the slice, as many calls may end by one event; the most that one of them has.
  const auto want_again = [&](int EncodeState::Wanted::*tries, const auto& pause_after) {
    int most = 0;
    for (const auto& [slice, attempt] : missing) {
      EncodeState::Wanted& wanted = encode.slices.at(slice);
      if (wanted.attempt != attempt) continue;
      const int count = ++(wanted.*tries);
      wanted.state = SliceState::kWanted;
      wanted.not_before = Now() + pause_after(count);
      most = std::max(most, count);
    }
    return most;
  };
  if (action == FailureAction::kMakeWay) {  // ABORTED: it was not taken
    // Perhaps it is this worker that cannot reach the other: somebody else first.
    encode.failed.push_back(call.at.worker);
    const int strays = want_again(&EncodeState::Wanted::strays, [](int) { return kStrayPause; });
    return strays >= kStraysMax ? Fail(Unavailable("{}", why)) : AskForSlices(leg);
  }
  if (action == FailureAction::kWaitForRoom) {
    const int tries = want_again(&EncodeState::Wanted::room_tries, [](int count) {
      const Duration pause = kRetryPause * (1 << std::min(count - 1, 5));
      return std::min(kRetryPauseMax, pause);
    });
    return tries >= kRoomTriesMax ? Fail(ResourceExhausted("{}", why)) : AskForSlices(leg);
  }
  const int failures = want_again(&EncodeState::Wanted::failures, [](int) { return Duration(0); });
  context_.host->WorkerFailed(call.at, action, Message(status));
  context_.metrics->Retried(Role::kEncode, RetryReason::kFailed);
  telemetry::Log(telemetry::Level::kWarning, "encode_failed",
                 {{"request_id", leg.id}, {"attempt", leg.attempt.number}, {"why", why}});
  encode.failed.push_back(call.at.worker);
  if (failures >= context_.attempts_max) {
    return Fail(Unavailable("{} calls of encode workers failed; the last: {}", failures, why));
  }
  AskForSlices(leg);
}

void RequestRun::HandleEncoderLoss(Leg& leg, WorkerIndex worker, uint64_t epoch,
                                   const std::string& why) {
  const size_t calls = leg.attempt.encode.calls.size();
  const uint32_t attempt = leg.attempt.number;
  for (size_t i = 0; i < calls; ++i) {
    if (leg.phase != Phase::kRunning || leg.attempt.number != attempt) return;
    EncodeCall& call = leg.attempt.encode.calls[i];
    if (call.slices.empty() || call.at.worker != worker || call.at.epoch != epoch) continue;
    call.call->Cancel();
    OnEncodeEnd(leg, i, Unavailable("{}", why));
  }
}

void RequestRun::DropEncodes(Leg& leg) {
  for (EncodeCall& call : leg.attempt.encode.calls) {
    if (call.slices.empty()) continue;
    context_.host->SlicesEnded(call.at,
                               static_cast<int32_t>(std::exchange(call.slices, {}).size()));
    call.call->Cancel();
  }
  leg.attempt.encode = {};
}

}  // namespace trivium::router
