// What the encode loop does with slices that are named instead of given: it sends those that it
// holds to another worker, and takes from another those that it does not.
#include <algorithm>
#include <utility>

#include "common/encode/job.h"
#include "common/worker/landing.h"

namespace trivium::encode {
namespace {

constexpr size_t kPictureKeyBytes = 32;

}  // namespace

absl::Status EncodeLoop::CheckNamed(const EncodeRequest& request) const {
  if (request.picture_key.size() != kPictureKeyBytes || !request.picture.empty()) {
    return InvalidArgument("picture_key has {} bytes, must have {}, and no picture beside it",
                           request.picture_key.size(), kPictureKeyBytes);
  }
  if (!request.domain.has_value()) return InvalidArgument("picture_key: needs a domain");
  for (const WantedSlice& wanted : request.slices) {
    if (wanted.slice < 0 || wanted.slice >= kSlicesMax || wanted.is_elsewhere) {
      return InvalidArgument("slices: has {}, must be 0 … {} and here", wanted.slice,
                             kSlicesMax - 1);
    }
    const transfer::Ticket& ticket = wanted.ticket;
    if (ticket.token_begin != 0 ||
        media::BlocksFor(ticket.token_end) > context_.media->blocks->counts().total) {
      return InvalidArgument("slices: a ticket for the tokens {} to {} is none of a slice",
                             ticket.token_begin, ticket.token_end);
    }
  }
  return request.slices.empty() ? InvalidArgument("slices: none is wanted") : absl::OkStatus();
}

// Those that are held are sent with the next batch; whoever asks can encode the others himself.
void EncodeLoop::FindHeld(Job& job) {
  job.turn = ++turns_;
  decoded_.emplace(job.turn, &job);
  const kv::Domain& domain = *job.request.domain;
  for (Slice& slice : job.slices) {
    auto chain = media::ChainOf(domain.key, job.request.picture_key, slice.index, slice.tokens(),
                                domain.quota, domain.floor);
    if (chain.ok()) slice.chain = *std::move(chain);
    if (slice.chain.size() > 0 && Take(slice) && slice.report.cached) continue;
    slice.blocks = kv::Reservation();
    slice.state = Slice::State::kLost;
    --job.slices_queued;
    LeaveQueue(1, 0);
    job.lost = fmt::format("slice {} is not held", slice.index);
  }
  EndIfDone(job);
}

// A slice of which a part is here is encoded: what was found of it is others' too, and must not be
// landed on.
void EncodeLoop::BeginPull(Job& job, const std::string& picture_key) {
  SlicesElsewhere elsewhere{.picture_key = picture_key, .slices = {}};
  for (Slice& slice : job.slices) {
    if (!slice.is_elsewhere || slice.chain.size() == 0 || !slice.blocks.empty()) continue;
    if (!Take(slice)) break;
    transfer::LandingOptions landing =
        worker::LandingIn(slice.blocks, *context_.media->blocks, {0, slice.tokens()});
    landing.credentials = job.request.key;
    landing.on_arrival = [mailbox = mailbox_, alive = std::weak_ptr<const uint64_t>(job.alive),
                          index = slice.index](const absl::StatusOr<transfer::Arrival>& arrival) {
      absl::Status status = arrival.status();
      if (status.ok() && !arrival->kv_complete) status = absl::DataLossError("rows are missing");
      const auto number = alive.lock();
      if (number != nullptr) mailbox->Post(Pulled{*number, index, std::move(status)});
    };
    const bool is_new = slice.blocks.cached_blocks() == 0;
    auto ticket = is_new ? context_.media->transport->Expect(std::move(landing))
                         : absl::StatusOr<transfer::Ticket>(absl::AlreadyExistsError("a part"));
    if (!ticket.ok()) {
      slice.blocks = kv::Reservation();
      continue;
    }
    slice.landing = ticket->landing_id;
    slice.state = Slice::State::kPulling;
    elsewhere.slices.push_back({slice.index, *std::move(ticket)});
  }
  if (elsewhere.slices.empty()) return;
  job.pull_until = context_.clock->Now() + job.request.pull_for;
  job.sink->OnElsewhere(elsewhere);
}

void EncodeLoop::EndPull(Job& job, const Pulled& pulled) {
  Slice& slice = *std::ranges::find(job.slices, pulled.slice, &Slice::index);
  slice.landing = 0;
  if (!pulled.status.ok()) {
    // What is still on its way may touch these blocks as long as they are leased: it takes others.
    slice.blocks = kv::Reservation();
    slice.state = Slice::State::kWaiting;
    return;
  }
  context_.media->blocks->Publish(slice.blocks, slice.chain, slice.chain.size());
  slice.report.cached = slice.report.pulled = true;
  Send(job, slice);
}

// The landing's end comes soon after.
void EncodeLoop::CheckPulls() {
  const TimePoint now = context_.clock->Now();
  for (const auto& [turn, job] : decoded_) {
    if (job->pull_until > now) continue;
    for (const Slice& slice : job->slices) {
      if (slice.landing != 0) context_.media->transport->Withdraw(slice.landing);
    }
  }
}

}  // namespace trivium::encode
