#include "services/prefill/picture_intake.h"

#include <algorithm>
#include <utility>

#include "common/worker/landing.h"

namespace trivium::prefill {

PictureIntake::~PictureIntake() {
  for (const Slice& slice : slices_) {
    if (slice.landing != 0) pool_.transport->Withdraw(slice.landing);
  }
}

absl::Status PictureIntake::CheckFits(const media::MediaPool* pool,
                                      const worker::StageRequest& request) {
  if (request.slices.empty()) return absl::OkStatus();
  if (pool == nullptr) {
    return FailedPrecondition("slices are given, but this worker takes no pictures");
  }
  int64_t blocks = 0;
  for (const kv::MediaSpan& span : request.slices) blocks += media::BlocksFor(span.tokens);
  const int32_t total = pool->blocks->counts().total;
  if (blocks <= total) return absl::OkStatus();
  return InvalidArgument("slices need {} blocks for multimedia tokens, this worker has {}", blocks,
                         total);
}

absl::Status PictureIntake::Reserve(int32_t done) {
  std::vector<Slice> slices;
  for (size_t i = 0; i < request_.slices.size(); ++i) {
    Slice slice{.index = static_cast<int32_t>(i), .span = &request_.slices[i]};
    if (slice.end() <= done) continue;
    ASSIGN_OR_RETURN(slice.blocks, pool_.blocks->Reserve(media::BlocksFor(slice.span->tokens)));
    slices.push_back(std::move(slice));
  }
  slices_ = std::move(slices);
  return absl::OkStatus();
}

absl::StatusOr<SliceTicket> PictureIntake::Expect(Slice& slice) {
  transfer::LandingOptions landing =
      worker::LandingIn(slice.blocks, *pool_.blocks, {0, slice.span->tokens});
  landing.credentials = request_.key;
  landing.on_arrival = [landed = landed_, index = slice.index, attempt = slice.attempt + 1](
                           const absl::StatusOr<transfer::Arrival>& arrival) {
    absl::Status status = arrival.status();
    if (status.ok() && !arrival->kv_complete) status = absl::DataLossError("rows are missing");
    landed(index, attempt, status);
  };
  ASSIGN_OR_RETURN(transfer::Ticket ticket, pool_.transport->Expect(std::move(landing)));
  slice.landing = ticket.landing_id;
  return SliceTicket{slice.index, ++slice.attempt, std::move(ticket)};
}

absl::StatusOr<std::vector<SliceTicket>> PictureIntake::Begin(int32_t done) {
  std::erase_if(slices_, [done](const Slice& slice) { return slice.end() <= done; });
  std::vector<SliceTicket> tickets;
  for (Slice& slice : slices_) {
    ASSIGN_OR_RETURN(SliceTicket ticket, Expect(slice));
    tickets.push_back(std::move(ticket));
  }
  return tickets;
}

absl::Status PictureIntake::OnLanded(int32_t slice, uint32_t attempt, const absl::Status& arrival) {
  const auto at = std::ranges::find(slices_, slice, &Slice::index);
  if (at == slices_.end() || at->attempt != attempt) return absl::OkStatus();
  at->landing = 0;
  at->has_landed = arrival.ok();
  if (arrival.ok()) return absl::OkStatus();
  at->blocks = kv::Reservation();
  if (attempt < kAttemptsMax) return absl::OkStatus();
  return Unavailable("encode worker lost: slice {} did not come in {} attempts; the last: {}",
                     slice, attempt, Message(arrival));
}

absl::StatusOr<std::vector<SliceTicket>> PictureIntake::Retry() {
  std::vector<SliceTicket> tickets;
  for (Slice& slice : slices_) {
    if (!slice.blocks.empty()) continue;
    auto blocks = pool_.blocks->Reserve(media::BlocksFor(slice.span->tokens));
    if (absl::IsResourceExhausted(blocks.status())) break;
    RETURN_IF_ERROR(blocks.status());
    slice.blocks = *std::move(blocks);
    ASSIGN_OR_RETURN(SliceTicket ticket, Expect(slice));
    tickets.push_back(std::move(ticket));
  }
  return tickets;
}

void PictureIntake::KeepAlive() {
  for (const Slice& slice : slices_) {
    if (slice.landing != 0) pool_.transport->KeepAlive(slice.landing);
  }
}

int32_t PictureIntake::ready_end() const {
  const auto missing = std::ranges::find(slices_, false, &Slice::has_landed);
  return missing == slices_.end() ? request_.prompt_tokens() : missing->span->position;
}

std::vector<engine::GivenRows> PictureIntake::Rows(int32_t begin, int32_t end,
                                                   std::vector<float>* rows) const {
  struct Part {
    const Slice* slice;
    int32_t begin, end;
  };
  std::vector<Part> parts;
  int64_t count = 0;
  for (const Slice& slice : slices_) {
    const Part part{&slice, std::max(begin, slice.span->position), std::min(end, slice.end())};
    if (part.begin >= part.end) continue;
    TRIVIUM_CHECK(slice.has_landed, "rows of slice {} are wanted before they are there",
                  slice.index);
    parts.push_back(part);
    count += part.end - part.begin;
  }
  const int64_t hidden = pool_.hidden();
  rows->resize(static_cast<size_t>(count * hidden));
  std::vector<engine::GivenRows> given;
  int64_t at = 0;
  for (const Part& part : parts) {
    const int64_t size = (part.end - part.begin) * hidden;
    const auto place = std::span(*rows).subspan(static_cast<size_t>(at), static_cast<size_t>(size));
    media::ReadRows(*pool_.storage, part.slice->blocks.blocks(),
                    part.begin - part.slice->span->position, place);
    given.push_back({part.begin - begin, place});
    at += size;
  }
  return given;
}

void PictureIntake::Release(int32_t done) {
  std::erase_if(slices_, [done](const Slice& slice) { return slice.end() <= done; });
}

}  // namespace trivium::prefill
